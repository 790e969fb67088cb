"""What the options of a call may be: one table for single calls and many, canvases, flows, retries and schedules.

Everything that PostgreSQL could refuse is refused here, before anything is written: an error of PostgreSQL's would end
the transaction of the caller.
"""

import math
import reprlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

from celery.utils.time import maybe_iso8601
from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.utils import timezone
from kombu import Queue as KombuQueue

from jobs.bounds import LONGEST_DELAY, LONGEST_KEY_CHARACTERS, MOST_ATTEMPTS
from jobs.ids import InvalidJobId, is_id

# Options of Celery's that mean nothing here: the ledger decides how, when and where a message travels.
IRRELEVANT = frozenset(
    [
        "add_to_parent",
        "callbacks",
        "compression",
        "confirm_timeout",
        "connection",
        "declare",
        "delivery_mode",
        "errbacks",
        "expiration",
        "immediate",
        "mandatory",
        "origin",
        "producer",
        "publisher",
        "replaced_task_nesting",
        "reply_to",
        "result_cls",
        "retries",
        "retry",
        "retry_policy",
        "route_name",
        "router",
        "serializer",
        "shadow",
        "timeout",
    ]  # one per line is long
)
_YEARS = round(LONGEST_DELAY.days / 365)
_LONGEST_SHOWN = 100
# As long as Celery makes it.
_LONGEST_REPR = 1024
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxlong = _REPR.maxother = _LONGEST_SHOWN


class InvalidOption(ValueError):
    """An option of a call cannot be what it is; the message names it, and says what is expected."""


class NotSupported(ValueError):
    """An option of Celery's that the ledger refuses rather than ignores."""


def check(task: str, options: Mapping[str, Any]) -> None:
    """Raises InvalidOption, or InvalidJobId for an id, for the first option that cannot be kept. None says nothing.

    Options that are unknown here are left to the caller, and so is what only together makes no sense.
    """
    for name, value in options.items():
        if value is None:
            continue
        if name in _IDS:
            if not is_id(value):
                raise InvalidJobId(value, name=name)
        elif name in _CHECKS:
            is_fit, expected = _CHECKS[name]
            if not is_fit(value):
                raise InvalidOption(f"{task}: {name}={shown(value)}: expected {expected}.")


def is_text(value: Any, longest: int) -> bool:
    """Whether it is a text, not empty, that a column of this length can keep."""
    if not isinstance(value, str) or not 0 < len(value) <= longest or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_owner(task: str, owner_id: Any, *, using: str) -> None:
    """Raises InvalidOption where there is no such user: PostgreSQL would tell at the commit of the caller."""
    try:
        if get_user_model()._base_manager.using(using).filter(pk=owner_id).exists():
            return
    except (TypeError, ValueError, ValidationError, OverflowError):
        pass
    raise InvalidOption(f"{task}: owner_id={shown(owner_id)}: expected the id of a user.")


def shown(value: Any) -> str:
    """A value in an error, in ASCII, however long or deep it is."""
    try:
        text = _REPR.repr(value)
    except ValueError:
        # Python refuses to write a whole number of thousands of digits.
        text = f"a huge {type(value).__name__}"
    text = text.encode("ascii", "backslashreplace").decode()
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."


def _is_number(value: Any) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return isinstance(value, int) or math.isfinite(value)


def _is_delay(value: Any) -> bool:
    return _is_number(value) and abs(value) <= LONGEST_DELAY.total_seconds()


def _is_length(value: Any) -> bool:
    return _is_delay(value) and value >= 0


def _is_moment(value: Any) -> bool:
    try:
        moment = maybe_iso8601(value)
    except (TypeError, ValueError, OverflowError):
        return False
    if not isinstance(moment, datetime):
        return False
    aware = moment if moment.tzinfo is not None and moment.utcoffset() is not None else moment.replace(tzinfo=UTC)
    return abs(aware - timezone.now()) <= LONGEST_DELAY


def _is_delay_or_moment(value: Any) -> bool:
    return _is_delay(value) or _is_moment(value)


def _is_whole(value: Any, *, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_queue(value: Any) -> bool:
    return isinstance(value, (str, KombuQueue))


def _is_headers(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)


def _are_steps(value: Any) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, (list, tuple)) and all(isinstance(one, Mapping) for one in value)
    )


def _is_slot(value: Any) -> bool:
    return isinstance(value, Mapping) and value.keys() == {"flow_id", "path", "is_whole"}


_KEY = f"a text of 1 to {LONGEST_KEY_CHARACTERS} characters"
_IDS = frozenset(["task_id", "parent_id", "root_id", "awaited_flow_id"])
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "countdown": (_is_delay, f"seconds, at most {_YEARS} years"),
    "eta": (_is_moment, f"a moment within {_YEARS} years, as a datetime or in ISO 8601"),
    "expires": (_is_delay_or_moment, f"seconds or a moment, within {_YEARS} years"),
    "priority": (partial(_is_whole, least=0, most=9), "0 to 9, where a lower number runs sooner"),
    "max_attempts": (partial(_is_whole, least=1, most=MOST_ATTEMPTS), f"a whole number, 1 to {MOST_ATTEMPTS:,}"),
    "soft_time_limit": (_is_length, f"seconds, at most {_YEARS} years"),
    "time_limit": (_is_length, f"seconds, at most {_YEARS} years"),
    "queue": (_is_queue, "the name of a queue"),
    "argsrepr": (partial(is_text, longest=_LONGEST_REPR), f"a text of 1 to {_LONGEST_REPR} characters"),
    "kwargsrepr": (partial(is_text, longest=_LONGEST_REPR), f"a text of 1 to {_LONGEST_REPR} characters"),
    "headers": (_is_headers, "a mapping of texts to JSON"),
    "link": (_are_steps, "a signature, or a list of them"),
    "link_error": (_are_steps, "a signature, or a list of them"),
    "chain": (_are_steps, "signatures, the last step first"),
    "group_id": (partial(is_text, longest=64), "a text of 1 to 64 characters"),
    "group_index": (partial(_is_whole, least=0, most=2**31 - 1), "a whole number"),
    "correlation_id": (partial(is_text, longest=64), "a text of 1 to 64 characters"),
    "dedup_key": (partial(is_text, longest=255), "a text of 1 to 255 characters"),
    "rate_key": (partial(is_text, longest=LONGEST_KEY_CHARACTERS), _KEY),
    "concurrency_key": (partial(is_text, longest=LONGEST_KEY_CHARACTERS), _KEY),
    "flow_slot": (_is_slot, "nothing: it is the ledger's own"),
}
