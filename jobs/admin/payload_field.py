"""A field of a form for arguments of jobs."""

import json
from typing import Any

from django import forms
from django.forms.fields import InvalidJSONInput
from kombu.utils import json as kombu_json

from jobs.payloads import NotKept, PayloadDecoder, as_json


class PayloadField(forms.JSONField):
    """A part of a payload as indented JSON, with the values that Celery's JSON marks."""

    def __init__(self, **options: Any) -> None:
        super().__init__(decoder=PayloadDecoder, encoder=kombu_json.JSONEncoder, **options)

    def to_python(self, value: Any) -> Any:
        """Refuses also numbers that are too long, and what the ledger cannot keep: half a character, or what is nested
        too deep."""
        try:
            found = super().to_python(value)
            # The list or the object of all arguments is not the caller's.
            as_json(found, wrapped=1)
        except (ValueError, RecursionError) as error:
            raise forms.ValidationError(f"Not a value that can be read: {error}", code="invalid") from error
        except NotKept as error:
            raise forms.ValidationError(f"Not a value that can be kept: {error}", code="invalid") from error
        return found

    def bound_data(self, data: Any, initial: Any) -> Any:
        """What was typed, as it was typed: it need not be such that it can be read."""
        return InvalidJSONInput(data or "")

    def prepare_value(self, value: Any) -> str:
        """What stands in the field; what was typed stays as it is, and nothing is nothing."""
        if isinstance(value, InvalidJSONInput):
            return value
        if value is None:
            return ""
        return json.dumps(value, indent=2, ensure_ascii=False, cls=self.encoder)
