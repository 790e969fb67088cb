"""How many jobs ended, how, how long they waited and ran: counts that do not depend on the rows that are kept.

A trigger appends an event for each run that ends (`JobEvent`). The dispatcher folds events into `Stat`, a row for each
queue, task and minute, and into `OwnerStat`, a row for each owner, task and quarter of an hour. Every reader here adds
the events that are not folded yet, in one statement, so that a fold meanwhile neither hides nor doubles any. Jobs that
arrive are counted by the dispatcher, minute by minute, from their rows.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import reduce
from operator import add
from typing import Any, NamedTuple

from django.db.models import Count, Q, Sum, Value
from django.db.models.functions import Coalesce, Now, TruncMinute
from django.utils import timezone

from jobs.models import JobEvent, OwnerStat, Stat

# Upper bounds of the buckets, each exclusive; one more bucket has no bound. Steps of about two: a percentile is off by
# half of its value at the most. Rows of all times are counted by these: a change needs a migration of theirs.
BOUNDS_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
# After so long, the minutes of a UTC day become one row: totals stay true for ever, and the table stays small.
MINUTES_KEPT = timedelta(days=2)
QUARTER = timedelta(minutes=15)

_MINUTE = timedelta(minutes=1)
_KINDS = [kind.value for kind in JobEvent.Kind]
_COUNTED = ["arrived", *_KINDS]
_ENDS = ["completed", "failed", "cancelled"]


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Lengths of time, counted per bucket of `BOUNDS_SECONDS`."""

    buckets: tuple[int, ...] = (0,) * (len(BOUNDS_SECONDS) + 1)
    seconds_sum: float = 0

    def __add__(self, other: "Histogram") -> "Histogram":
        buckets = tuple(map(add, self.buckets, other.buckets))
        return Histogram(buckets=buckets, seconds_sum=self.seconds_sum + other.seconds_sum)

    @property
    def count(self) -> int:
        """How many were counted."""
        return sum(self.buckets)

    @property
    def mean_seconds(self) -> float | None:
        """Their average; None where none was counted."""
        return self.seconds_sum / self.count if self.count else None

    def percentile_seconds(self, percent: float) -> float | None:
        """The length that `percent` of them stay under; None where none was counted.

        Linear within a bucket, as Prometheus' `histogram_quantile`; the last bound where it lies beyond that.
        """
        if not self.count:
            return None
        rank = self.count * percent / 100
        below = 0
        for count, lower, upper in zip(self.buckets, (0.0, *BOUNDS_SECONDS), BOUNDS_SECONDS, strict=False):
            if count and below + count >= rank:
                return lower + (upper - lower) * (rank - below) / count
            below += count
        return BOUNDS_SECONDS[-1]


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What became of runs. A job is completed, failed or cancelled once, unless an operator runs it again."""

    arrived: int = 0
    completed: int = 0
    failed: int = 0
    retried: int = 0
    stalled: int = 0
    cancelled: int = 0
    # From the moment at which a job was due to the start of its run, and from there to the run's end.
    waits: Histogram = field(default_factory=Histogram)
    runs: Histogram = field(default_factory=Histogram)

    def __add__(self, other: "Counts") -> "Counts":
        kinds = {kind: getattr(self, kind) + getattr(other, kind) for kind in _COUNTED}
        return Counts(**kinds, waits=self.waits + other.waits, runs=self.runs + other.runs)

    @property
    def finished(self) -> int:
        """Jobs that came to an end, whichever: divided by the span, the rate at which a queue drains."""
        return self.completed + self.failed + self.cancelled


class Minute(NamedTuple):
    """What happened in a queue in one minute: jobs that were made, jobs that ended, and runs that did."""

    arrived: int = 0
    ended: int = 0
    runs: int = 0


@dataclass(kw_only=True)
class OwnerCounts:
    """The jobs of one owner and task that ended in one quarter of an hour, which is named by its beginning."""

    owner_id: int
    task: str
    quarter: datetime
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    error: str = ""


def counts(
    *, start_at: datetime, end_at: datetime | None = None, by: Sequence[str] = ("queue", "task")
) -> dict[tuple[str, ...], Counts]:
    """What ended from `start_at` until `end_at`, its own minute not included, or until now; by queue, task, or both.

    Both are rounded down to the minute, and to the UTC day where they are more than two days ago (`MINUTES_KEPT`).
    """
    start_at = counted_from(start_at)
    in_minutes, in_events = Q(minute__gte=start_at), Q(at__gte=start_at)
    if end_at is not None:
        in_minutes &= Q(minute__lt=counted_from(end_at))
        in_events &= Q(at__lt=counted_from(end_at))
    folded: Any = Stat.objects.filter(in_minutes).order_by().values_list(*by)
    unfolded: Any = JobEvent.objects.filter(in_events).order_by().values_list(*by)
    rows = folded.annotate(**_sums_of_stats()).union(unfolded.annotate(**_sums_of_events()), all=True)
    found: dict[tuple[str, ...], Counts] = {}
    for row in rows:
        key = row[: len(by)]
        found[key] = found.get(key, Counts()) + _counts(row[len(by) :])
    return found


def counted_from(moment: datetime) -> datetime:
    """The beginning of the minute, or of the UTC day, that is counted as a whole where a span begins at a moment."""
    moment = moment.astimezone(UTC).replace(second=0, microsecond=0)
    today = timezone.now().astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return moment if moment >= today - MINUTES_KEPT else moment.replace(hour=0, minute=0)


def by_minute(*, start_at: datetime, end_at: datetime) -> dict[str, dict[datetime, Minute]]:
    """Each minute of a span of time in which something happened, by queue; within the last two days."""
    folded: Any = Stat.objects.filter(minute__gte=start_at, minute__lt=end_at).order_by()
    unfolded: Any = (
        JobEvent.objects.filter(at__gte=start_at, at__lt=end_at).order_by().annotate(minute=TruncMinute("at"))
    )
    sums = {name: Sum(f"{name}_count") for name in _COUNTED}
    counts = {"arrived": Value(0), **{kind: Count("pk", filter=Q(kind=kind)) for kind in _KINDS}}
    rows = folded.values_list("queue", "minute").annotate(**sums)
    found: dict[str, dict[datetime, Minute]] = {}
    for queue, minute, *numbers in rows.union(unfolded.values_list("queue", "minute").annotate(**counts), all=True):
        one = Counts(**dict(zip(_COUNTED, numbers, strict=True)))
        before = found.setdefault(queue, {}).get(minute, Minute())
        runs = one.completed + one.failed + one.retried + one.stalled
        found[queue][minute] = Minute(before.arrived + one.arrived, before.ended + one.finished, before.runs + runs)
    return found


def total(several: Iterable[Counts]) -> Counts:
    """Their sum."""
    return reduce(add, several, Counts())


def totals(*, failed_for: timedelta) -> Iterator[tuple[str, int, int, int]]:
    """Per queue: jobs completed and failed since the beginning, and failed within the time `failed_for` until now.

    A queue may come twice: what is folded, and what is not. To the minute: one that has begun counts.
    """
    lately = Now() - failed_for
    folded: Any = Stat.objects.order_by().values_list("queue")
    unfolded: Any = JobEvent.objects.order_by().values_list("queue")
    yield from folded.annotate(
        completed=Sum("completed_count"),
        failed=Sum("failed_count"),
        failed_lately=Coalesce(Sum("failed_count", filter=Q(minute__gt=lately - _MINUTE)), 0),
    ).union(
        unfolded.annotate(
            completed=Count("pk", filter=Q(kind="completed")),
            failed=Count("pk", filter=Q(kind="failed")),
            failed_lately=Count("pk", filter=Q(kind="failed", at__gte=lately)),
        ),
        all=True,
    )


def of_owners(owner_ids: Collection[int], *, start_at: datetime, end_at: datetime) -> list[OwnerCounts]:
    """What ended of these users' jobs in a span of time, its end not included; by quarter, owner and task.

    Both ends of the span are whole quarters of an hour, as the beginnings of days are in every time zone. Of the jobs
    that failed in one quarter, the reason of the last is kept.
    """
    folded: Any = OwnerStat.objects.filter(owner__in=owner_ids, quarter__gte=start_at, quarter__lt=end_at)
    unfolded: Any = JobEvent.objects.filter(owner__in=owner_ids, at__gte=start_at, at__lt=end_at, kind__in=_ENDS)
    rows = folded.values_list("owner", "task", "quarter", "error", *(f"{end}_count" for end in _ENDS)).union(
        unfolded.values_list("owner", "task", "at", "error").annotate(
            **{f"{end}_count": Count("pk", filter=Q(kind=end)) for end in _ENDS}
        ),
        all=True,
    )
    found: dict[tuple[datetime, int, str], OwnerCounts] = {}
    for owner_id, task, at, error, completed, failed, cancelled in sorted(rows, key=lambda row: row[2]):
        quarter = at - (at - datetime.min.replace(tzinfo=UTC)) % QUARTER
        one = found.setdefault((quarter, owner_id, task), OwnerCounts(owner_id=owner_id, task=task, quarter=quarter))
        one.completed += completed
        one.failed += failed
        one.cancelled += cancelled
        one.error = error or one.error
    return sorted(found.values(), key=lambda one: (one.quarter, one.owner_id, one.task))


def _sums_of_stats() -> dict[str, Any]:
    sums: dict[str, Any] = {kind: Sum(f"{kind}_count") for kind in _COUNTED}
    for what in ("wait", "run"):
        sums[f"{what}_sum"] = Sum(f"{what}_seconds_sum")
        sums |= {f"{what}_{place}": Sum(f"{what}_buckets__{place}") for place in range(len(BOUNDS_SECONDS) + 1)}
    return sums


def _sums_of_events() -> dict[str, Any]:
    sums: dict[str, Any] = {"arrived": Value(0)}
    sums |= {kind: Count("pk", filter=Q(kind=kind)) for kind in _KINDS}
    for what in ("wait", "run"):
        seconds = f"{what}_seconds"
        sums[f"{what}_sum"] = Coalesce(Sum(seconds), 0.0)
        for place, (lower, upper) in enumerate(zip((None, *BOUNDS_SECONDS), (*BOUNDS_SECONDS, None), strict=True)):
            within = Q(**{f"{seconds}__isnull": False})
            if lower is not None:
                within &= Q(**{f"{seconds}__gte": lower})
            if upper is not None:
                within &= Q(**{f"{seconds}__lt": upper})
            sums[f"{what}_{place}"] = Count("pk", filter=within)
    return sums


def _counts(row: Sequence[Any]) -> Counts:
    kinds, lengths = row[: len(_COUNTED)], row[len(_COUNTED) :]
    middle = len(lengths) // 2
    waits, runs = (
        Histogram(seconds_sum=half[0], buckets=tuple(half[1:])) for half in (lengths[:middle], lengths[middle:])
    )
    return Counts(**dict(zip(_COUNTED, kinds, strict=True)), waits=waits, runs=runs)
