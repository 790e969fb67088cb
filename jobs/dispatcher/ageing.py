"""Ageing: a job of low priority is not kept waiting for ever by more urgent ones that keep coming.

Redis hands hints out strictly by priority. So while old jobs wait behind more urgent ones, every tenth start of their
queue is theirs: the one that has waited longest is hinted as if it were the most urgent of all.
"""

from collections import Counter
from datetime import timedelta

# What has been due for less than this waits its turn.
OLD = timedelta(minutes=1)
# Of so many starts, one is that of an old job.
SHARE = 10
# The priority of a hint at an old job: the most urgent one.
PRIORITY = 0
# Of a queue, at once.
MOST_TURNS = 10


class Turns:
    """Counts starts of urgent jobs by queue, while old jobs wait behind them."""

    def __init__(self) -> None:
        self._passed: Counter[str] = Counter()

    def passed(self, queue: str, count: int) -> None:
        """So many urgent jobs have started."""
        self._passed[queue] = min(self._passed[queue] + count, SHARE * MOST_TURNS)

    def due(self, queue: str) -> int:
        """How many old jobs may go ahead now."""
        return self._passed[queue] // SHARE

    def taken(self, queue: str, count: int) -> None:
        """So many old jobs went ahead."""
        self._passed[queue] -= SHARE * count

    def nobody_waits(self, queue: str) -> None:
        """No old job waits behind urgent ones: whichever comes next has to let ten of them pass."""
        self._passed.pop(queue, None)
