"""Ageing: a job of low priority is not kept waiting for ever by more urgent ones that keep coming.

Redis hands hints out strictly by priority, over all queues of a worker. So while old jobs wait behind more urgent ones,
of their queue or of another that a worker serves beside it, every tenth start is theirs: the one that has waited
longest is hinted as if it were the most urgent of all.
"""

import time
from collections import Counter
from collections.abc import Collection, Iterable
from datetime import timedelta
from uuid import UUID

from jobs import claims
from jobs.dispatcher.hints import Hints
from jobs.models import Job, Worker
from jobs.queues import QUEUES

# What has been due for less than this waits its turn.
OLD = timedelta(minutes=1)
# Of so many starts, one is that of an old job.
SHARE = 10
# The priority of a hint at an old job: the most urgent one.
PRIORITY = 0
# At once.
MOST_TURNS = 10

Hinted = dict[str, list[set[UUID]]]


class Turns:
    """Counts starts of urgent jobs by queue, or by any other name, while old jobs wait behind them."""

    def __init__(self) -> None:
        self._passed: Counter[str] = Counter()

    def passed(self, name: str, count: int) -> None:
        """So many urgent jobs have started."""
        self._passed[name] = min(self._passed[name] + count, SHARE * MOST_TURNS)

    def due(self, name: str) -> int:
        """How many old jobs may go ahead now."""
        return self._passed[name] // SHARE

    def taken(self, name: str, count: int) -> None:
        """So many old jobs went ahead."""
        self._passed[name] -= SHARE * count

    def nobody_waits(self, name: str) -> None:
        """No old job waits behind urgent ones: whichever comes next has to let ten of them pass."""
        self._passed.pop(name, None)


class Ageing:
    """Hints at old jobs, as often as it is their turn, look by look.

    Jobs without limits are old by the time at which they were due. Of those with limits only the ones that were hinted
    may start, so they are old when their hint has lain in Redis for so long.
    """

    def __init__(self, hints: Hints) -> None:
        self.seen_at: dict[UUID, float] = {}
        self._hints = hints
        self._turns = Turns()
        self._before: Hinted = {}
        # Jobs that went ahead, or whose hint was found to be of no more use, and when.
        self._settled: dict[UUID, float] = {}

    def forget(self) -> None:
        """Redis is away: what was seen there says nothing any more."""
        self.seen_at.clear()
        self._before.clear()

    def run_once(self, hinted: Hinted, *, without_limits: Collection[str]) -> None:
        """One look at what is hinted, of all queues; `without_limits` are those of which any job may start."""
        now = time.monotonic()
        before, self._before = self._before, hinted
        ids = {job_id for lists in hinted.values() for ids in lists for job_id in ids}
        self.seen_at = {job_id: self.seen_at.get(job_id, now) for job_id in ids}
        # Redis may have lost the hint of one that went ahead: some time later it is looked at again.
        self._settled = {job_id: at for job_id, at in self._settled.items() if now - at < OLD.total_seconds()}
        for queues in _served_together():
            name = min(queues)
            urgent = min((priority for one in queues for priority, ids in enumerate(hinted[one]) if ids), default=None)
            if urgent is None:
                self._turns.nobody_waits(name)
                continue
            left_lying = self._left_lying(queues, hinted, urgent, now)
            old = self._old(queues & set(without_limits), left_lying, below=urgent)
            self._settled |= dict.fromkeys(set(left_lying) - set(old), now)
            if not old:
                self._turns.nobody_waits(name)
                continue
            # What was taken of the lists that are served first.
            served_first = slice(urgent + 1)
            lists = [
                pair for one in queues for pair in zip(before.get(one, []), hinted[one][served_first], strict=False)
            ]
            self._turns.passed(name, sum(len(earlier - later) for earlier, later in lists))
            ahead = old[: self._turns.due(name)]
            self._turns.taken(name, len(ahead))
            self._settled |= dict.fromkeys(ahead, now)
            self._hints.send(ahead, priority=PRIORITY)

    def _left_lying(self, queues: Iterable[str], hinted: Hinted, urgent: int, now: float) -> list[UUID]:
        """The jobs whose hints have lain longest in the lists behind those that are served first."""
        behind = {job_id for name in queues for ids in hinted[name][urgent + 1 :] for job_id in ids}
        old = [one for one in behind - self._settled.keys() if now - self.seen_at[one] >= OLD.total_seconds()]
        return sorted(old, key=self.seen_at.__getitem__)[:MOST_TURNS]

    def _old(self, queues: Iterable[str], left_lying: Collection[UUID], *, below: int) -> list[UUID]:
        """Those that still wait, the oldest first."""
        lanes = {claims.Lane(name): below for name in queues}
        found = claims.longest_waiting(lanes, age=OLD, limit=MOST_TURNS, without=self._settled)
        ids = {*left_lying, *(job.job_id for job in found)}
        # By their ids alone: asked for the state, PostgreSQL might read all that wait.
        states = Job.objects.filter(pk__in=ids).order_by("run_at", "id").values_list("pk", "state") if ids else []
        return [job_id for job_id, state in states if state == "waiting"]


def _served_together() -> list[set[str]]:
    """The queues in groups: of one group are those that a living worker takes from, and what goes with these."""
    groups = [{name} for name in QUEUES]
    for served in Worker.objects.filter(dead_at__isnull=True).values_list("queues", flat=True):
        together = [group for group in groups if not group.isdisjoint(served)]
        if together:
            groups = [group for group in groups if group not in together] + [set().union(*together)]
    return groups
