"""Waiting for something to become true, instead of sleeping and hoping."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
LOOK_SECONDS = 0.05


class NeverHappened(AssertionError):
    """What a test waited for did not come true in time."""


def wait_until(predicate: Callable[[], T | None], *, timeout: float = 40, reason: str = "") -> T:
    """Calls `predicate` until it returns something true, and returns that.

    An AssertionError in it counts as "not yet". Raises NeverHappened after `timeout` seconds, with the reason or the
    last assertion. The timeout only bounds a failing test: choose it generously.
    """
    deadline = time.monotonic() + timeout
    while True:
        last: AssertionError | None = None
        try:
            if found := predicate():
                return found
        except AssertionError as error:
            last = error
        if time.monotonic() > deadline:
            what = reason or getattr(predicate, "__name__", "it")
            raise NeverHappened(f"Not within {timeout:g} s: {what}") from last
        time.sleep(LOOK_SECONDS)
