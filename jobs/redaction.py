"""Keeps secrets out of what people and monitors see of a payload."""

import re
from typing import Any

HIDDEN = "•••"
_SENSITIVE = re.compile(
    r"pass(word|wd|phrase)|secret|token|api_?key|private_?key|authorization|cookie|credential", re.I
)


def redact(value: Any) -> Any:
    """The same structure with the values of sensitive keys replaced by dots, at any depth."""
    if isinstance(value, dict):
        return {key: HIDDEN if _SENSITIVE.search(str(key)) else redact(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(item) for item in value]
    return value


def restored(edited: Any, original: Any) -> Any:
    """The edited structure with the values that `redact` has hidden from its editor put back from the original.

    A hidden value is found again under the same keys and, in lists of an unchanged length, at the same places. Raises
    ValueError where there is none.
    """
    if edited == HIDDEN:
        raise ValueError(f"{HIDDEN} stands where the job has no hidden value.")
    if isinstance(edited, dict):
        before = original if isinstance(original, dict) else {}
        return {
            key: before[key]
            if item == HIDDEN and key in before and _SENSITIVE.search(key)
            else restored(item, before.get(key))
            for key, item in edited.items()
        }
    if isinstance(edited, list):
        same = isinstance(original, list) and len(original) == len(edited)
        return [restored(item, original[place] if same else None) for place, item in enumerate(edited)]
    return edited


def redacted_repr(value: Any, *, limit: int = 200) -> str:
    """A short text of a payload for monitors: secrets hidden, at most `limit` characters."""
    text = repr(redact(value))
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
