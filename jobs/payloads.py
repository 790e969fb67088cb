"""Values as the ledger keeps them: Celery's JSON, in which dates, decimals and UUIDs are marked."""

import json
import math
import re
from typing import Any

from django.conf import settings
from kombu.exceptions import EncodeError
from kombu.utils import json as kombu_json

from jobs.bounds import DEEPEST_NESTING, MESSAGE_BYTES, TRACEBACK_BYTES, depth, shortened

# What Celery takes for a date, a decimal or the like.
_MARKS = {"__type__", "__value__"}
# Levels around what a caller may nest: arguments, and Celery's signatures.
_WRAPPED = 10
_TOO_DEEP = f"more than {DEEPEST_NESTING} lists and objects inside of each other"
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


def as_json(value: Any, *, wrapped: int = 0) -> str:
    """The value as the ledger keeps it. Raises NotKept before PostgreSQL would, which ends the caller's transaction.

    `wrapped`: so many lists and objects around it are not the caller's, and may come on top of those that it may have.
    """
    try:
        text = json.dumps(value, cls=kombu_json.JSONEncoder, allow_nan=False)
    except RecursionError as error:
        raise NotKept(_TOO_DEEP) from error
    except (TypeError, ValueError) as error:
        raise NotKept(f"not JSON ({error})") from error
    deepest = DEEPEST_NESTING + wrapped
    # As many as there are can be inside of each other; what is in texts only counts too many.
    if text.count("[") + text.count("{") > deepest and depth(text) > deepest:
        raise NotKept(_TOO_DEEP)
    if "\\u0000" in text and _NUL.search(text):
        raise NotKept("a NUL character, which PostgreSQL cannot store")
    if "\\ud" in text:
        try:
            json.dumps(json.loads(text), ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise NotKept("half a character, which PostgreSQL cannot store") from None
    return text


def result_json(value: Any) -> str:
    """A result as the ledger keeps it. Raises NotKept for no JSON, and for more than `JOBS_RESULT_MAX_BYTES`."""
    text = as_json(value)
    size, limit = len(text.encode()), settings.JOBS_RESULT_MAX_BYTES
    if size > limit:
        raise NotKept(f"the result is {size:,} bytes, more than {limit:,}: keep it elsewhere, and return where")
    return text


def from_json(text: str) -> Any:
    """The value that was kept."""
    # Those of most jobs; a decoder is made for each of the others.
    if text == "{}":
        return {}
    if text == "[]":
        return []
    return json.loads(text, cls=PayloadDecoder)


class Unreadable(str):
    """Stands for JSON that PostgreSQL keeps and Python cannot work with; it says why."""


def readable(text: str) -> Any:
    """The value that was kept, whoever has written it. Where it is nested too deeply, or holds a number that is too
    long, an `Unreadable`: no job can run with that, and whoever reads many rows goes on."""
    deepest = DEEPEST_NESTING + _WRAPPED
    try:
        if text.count("[") + text.count("{") > deepest and depth(text) > deepest:
            return Unreadable(f"(cannot be read: {_TOO_DEEP})")
        return from_json(text)
    except ValueError as error:
        return Unreadable(f"(cannot be read: {error})")


def readable_mapping(text: str) -> dict[str, Any]:
    """The object that was kept; an empty one where somebody has written something else."""
    value = readable(text)
    return value if isinstance(value, dict) else {}


def in_a_message(text: str) -> str:
    """An error as it is kept: what PostgreSQL cannot store is shown, and what is too long is cut in the middle."""
    return shortened(storable(text), MESSAGE_BYTES)


def in_a_traceback(text: str | None) -> str:
    """A traceback as it is kept."""
    return shortened(storable(text or ""), TRACEBACK_BYTES)


def storable(value: Any, *, levels: int = DEEPEST_NESTING) -> Any:
    """The same, as PostgreSQL can keep it: a NUL character or half a surrogate pair in an error must not lose it.

    What is nested deeper than so many levels is left out.
    """
    if isinstance(value, str):
        return value.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()
    if isinstance(value, (dict, list, tuple)) and not levels:
        return "…"
    if isinstance(value, dict):
        return {storable(key): storable(item, levels=levels - 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [storable(item, levels=levels - 1) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
