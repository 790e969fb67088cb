"""Values as the ledger keeps them: Celery's JSON, in which dates, decimals and UUIDs are marked."""

import json
import math
import re
from typing import Any

from kombu.exceptions import EncodeError
from kombu.utils import json as kombu_json

# What Celery takes for a date, a decimal or the like.
_MARKS = {"__type__", "__value__"}
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


class NotKept(EncodeError):
    """A value is not JSON, or none that PostgreSQL can store."""


class PayloadDecoder(json.JSONDecoder):
    """Turns Celery's marked values (dates, decimals, UUIDs) back into Python's.

    An object that only looks like one stays as it is: whoever reads many rows must not fail on what is in one of them.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"object_hook": _unmarked, **options})


def _unmarked(value: dict[str, Any]) -> Any:
    if value.keys() != _MARKS:
        return value
    try:
        return kombu_json.object_hook(value)
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError):
        return value


def as_json(value: Any) -> str:
    """The value as the ledger keeps it. Raises NotKept before PostgreSQL would, which ends the caller's transaction."""
    try:
        text = json.dumps(value, cls=kombu_json.JSONEncoder, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise NotKept(f"not JSON ({error})") from error
    if _NUL.search(text):
        raise NotKept("a NUL character, which PostgreSQL cannot store")
    if "\\ud" in text:
        try:
            json.dumps(json.loads(text), ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise NotKept("half a character, which PostgreSQL cannot store") from None
    return text


def from_json(text: str) -> Any:
    """The value that was kept."""
    return json.loads(text, cls=PayloadDecoder)


def storable(value: Any) -> Any:
    """The same, as PostgreSQL can keep it: a NUL character or half a surrogate pair in an error must not lose it."""
    if isinstance(value, str):
        return value.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {storable(key): storable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [storable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
