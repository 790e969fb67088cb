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


def redacted_repr(value: Any, *, limit: int = 200) -> str:
    """A short text of a payload for monitors: secrets hidden, at most `limit` characters."""
    text = repr(redact(value))
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
