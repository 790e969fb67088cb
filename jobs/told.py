"""What is wrong at every look is not logged at every look."""

import time

_SECONDS = 60.0
# Beyond this, some are told again too soon.
_MOST = 1000


class Told:
    """Which errors the log has: what comes again with every look is told once a minute."""

    def __init__(self) -> None:
        self._until: dict[tuple[str, str], float] = {}

    def is_new(self, error: BaseException, what: str = "") -> bool:
        """Whether this kind of error, of this thing, was not told within the last minute; now it is."""
        now, key = time.monotonic(), (what, type(error).__qualname__)
        if self._until.get(key, 0.0) > now:
            return False
        if len(self._until) >= _MOST:
            self._until.clear()
        self._until[key] = now + _SECONDS
        return True
