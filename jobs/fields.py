"""Columns of the ledger that read whatever PostgreSQL keeps in them, or let it keep only what can be read.

Rows may be written by calls, by operators, or by any SQL. One value that Python cannot make of a row would end every
look that reads it.
"""

from typing import Any

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.fields.json import KeyTransform
from kombu.utils import json as kombu_json

from jobs.payloads import PayloadDecoder, readable

# How JSON is kept that Celery's JSON serializer keeps.
KEPT: dict[str, Any] = {"encoder": kombu_json.JSONEncoder, "decoder": PayloadDecoder}


class MomentField(models.DateTimeField):  # type: ignore[type-arg]
    """A moment that Python can tell: PostgreSQL refuses infinity, and what lies before the year 1 or after 9999."""

    def db_check(self, connection: BaseDatabaseWrapper) -> str:
        """The constraint of the column."""
        column = connection.ops.quote_name(self.column or "")
        return f"{column} BETWEEN '0001-01-01 00:00:00+00' AND '9999-12-31 23:59:59.999999+00'"


class PayloadField(models.JSONField):
    """JSON. What nobody can work with, as it is nested too deeply, reads as `Unreadable`."""

    def from_db_value(self, value: Any, expression: Any, *place: Any) -> Any:
        """What was kept."""
        if isinstance(expression, KeyTransform) or not isinstance(value, str):
            return super().from_db_value(value, expression, *place)
        return readable(value)


def payload_field(**options: Any) -> PayloadField:
    """A JSON column that keeps what Celery's JSON serializer keeps."""
    return PayloadField(**KEPT, **options)


class MappingField(PayloadField):
    """A JSON column that holds an object. What else somebody has written into it reads as an empty one."""

    def from_db_value(self, value: Any, expression: Any, *place: Any) -> Any:
        """An object, in any case; of one of its keys, whatever is there."""
        found = super().from_db_value(value, expression, *place)
        return found if isinstance(found, dict) or isinstance(expression, KeyTransform) else {}
