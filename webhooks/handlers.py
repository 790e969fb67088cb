"""What is done about which incoming event. The handlers belong to other apps; `config.subscriptions` registers them."""

from collections.abc import Callable, Mapping
from typing import Any

# Gets the event's `data`, inside a transaction; returns a sentence about what it has done.
# Raises jobs.errors.Permanent for data that it cannot use.
Handler = Callable[[Mapping[str, Any]], str]

_handlers: dict[str, Handler] = {}


def register(event_type: str, handler: Handler) -> None:
    """From now on events of this type go to this handler, in place of any other."""
    _handlers[event_type] = handler


def handler_of(event_type: str) -> Handler | None:
    """The handler of a type; None for one that nobody handles."""
    return _handlers.get(event_type)
