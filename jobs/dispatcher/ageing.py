"""Ageing: a job of low priority is not kept waiting for ever by more urgent ones that keep coming.

While old jobs wait behind more urgent ones, every tenth start is that of the one that has waited longest.
"""

from collections import Counter
from datetime import timedelta

# What has been due for less than this waits its turn.
OLD = timedelta(minutes=1)
# Of so many starts, one is that of an old job.
SHARE = 10
# The others of these.
OTHERS = SHARE - 1
# The priority of a grant of an old job: the most urgent one.
PRIORITY = 0
# At once.
MOST_TURNS = 10


class Turns:
    """Counts starts of urgent jobs by queue, or by any other name, while old jobs wait behind them."""

    def __init__(self) -> None:
        self._passed: Counter[str] = Counter()

    def passed(self, name: str, count: int) -> None:
        """So many urgent jobs have started."""
        self._passed[name] = min(self._passed[name] + count, OTHERS * MOST_TURNS)

    def due(self, name: str) -> int:
        """How many old jobs may go ahead now."""
        return self._passed[name] // OTHERS

    def taken(self, name: str, count: int) -> None:
        """So many old jobs went ahead."""
        self._passed[name] -= OTHERS * count

    def nobody_waits(self, name: str) -> None:
        """No old job waits behind urgent ones: the next one has to let nine of them pass."""
        self._passed.pop(name, None)
