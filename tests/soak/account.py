"""Who is missing after the storm, and what happened more than once."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from statistics import median, quantiles
from uuid import UUID

from django.contrib.auth.models import Group

from jobs.models import LIVE, Attempt, Job, Tick
from tests.guarantees.ledger import assert_ledger_consistent
from tests.soak.odd_tasks import ENDING, ODD
from tests.soak.poison import is_time

# Their effects come with the job's completion or not at all; the other kinds may repeat theirs.
EXACTLY_ONCE = {"whole", "delayed", "chained", "second", "retried", "long", "limited", "suicidal", "idempotent"}

# The task of short jobs that run by themselves.
_SHORT = "tests.soak.tasks.whole"
# A ring and sixteen named jobs for each of three queues.
MOST_MESSAGES = 3 * 17


@dataclass(frozen=True)
class Death:
    """A process was killed, and these jobs were active in its worker."""

    at: datetime
    running: list[UUID]


@dataclass(frozen=True, kw_only=True)
class Account:
    """What the storm has left."""

    jobs: int
    completed: int
    lost: int
    doubled: int
    recoveries: list[float]
    acts: Counter[str]
    complaints: list[str]
    most_messages: int = 0
    # Odd jobs by what became of them, and how late ordinary ones began, in seconds, without and with odd ones beside.
    odd: Counter[str] = field(default_factory=Counter)
    starts: tuple[list[float], list[float]] = ([], [])

    @classmethod
    def of(
        cls, deaths: list[Death], acts: Counter[str], *, most_messages: int = 0, complaints: Sequence[str] = ()
    ) -> "Account":
        """Looks at all jobs and effects. `complaints`: of what was seen during the storm."""
        wishes = Counter(_named("wish"))
        effects = Counter(_named("effect"))
        missing = sorted(wishes.keys() - effects.keys())
        unended = Job.objects.exclude(state="completed").exclude(task__in=ODD)
        doubled = sorted(wish for wish, count in effects.items() if wish[0] in EXACTLY_ONCE and count > 1)
        unwanted = sorted(effects.keys() - wishes.keys())
        complaints = [*complaints, *(f"Lost: {kind} {key}" for kind, key in missing)]
        complaints += [f"Not completed: {job} is {job.state}: {job.error}" for job in unended]
        complaints += [
            f"Never ended: {job} is {job.state}" for job in Job.objects.filter(task__in=ENDING, state__in=LIVE)
        ]
        complaints += Group.objects.filter(name__startswith="complaint ").values_list("name", flat=True)
        complaints += [f"Doubled: {kind} {key}" for kind, key in doubled]
        complaints += [f"Ticks: {complaint}" for complaint in _tick_complaints()]
        complaints += [f"Out of a transaction that was rolled back: {kind} {key}" for kind, key in unwanted]
        if most_messages > MOST_MESSAGES:
            complaints.append(f"Redis held {most_messages} messages; expected {MOST_MESSAGES} at most.")
        try:
            assert_ledger_consistent()
        except AssertionError as error:
            complaints.append(f"The ledger contradicts itself: {error}")
        return cls(
            jobs=Job.objects.exclude(task__in=ODD).count(),
            completed=Job.objects.filter(state="completed").exclude(task__in=ODD).count(),
            lost=len({*missing}) + unended.count(),
            doubled=len(doubled) + len(unwanted),
            recoveries=_recoveries(deaths),
            acts=acts,
            complaints=complaints,
            most_messages=most_messages,
            odd=Counter(f"{state} {task.rpartition('.')[2]}" for task, state in _odd()),
            starts=_starts(),
        )

    def rows(self) -> list[tuple[str, str]]:
        """For the terminal and for docs/guarantees.md."""
        seconds = self.recoveries or [float("nan")]
        return [
            *((name, str(count)) for name, count in sorted(self.acts.items())),
            ("jobs", str(self.jobs)),
            ("completed", str(self.completed)),
            ("lost", str(self.lost)),
            ("doubled", str(self.doubled)),
            ("messages in Redis, at most", str(self.most_messages)),
            ("runs cut short by a kill", str(len(self.recoveries))),
            ("recovery seconds, median", f"{median(seconds):.1f}"),
            ("recovery seconds, max", f"{max(seconds):.1f}"),
            *((f"odd jobs, {what}", str(count)) for what, count in sorted(self.odd.items())),
            *(
                (
                    f"ordinary jobs begun late by, {words}",
                    f"{_percentile(some, 50)} s at p50, {_percentile(some, 95)} s at p95",
                )
                for words, some in zip(("alone", "beside odd ones"), self.starts, strict=True)
            ),
        ]


def _named(word: str) -> list[tuple[str, str]]:
    """Kind and key of every wish, or of every effect."""
    names = Group.objects.filter(name__startswith=f"{word} ").values_list("name", flat=True)
    return [(parts[1], parts[2]) for name in names if (parts := name.split(" "))]


def _odd() -> Iterable[tuple[str, str]]:
    return Job.objects.filter(task__in=ODD).values_list("task", "state")


def _starts() -> tuple[list[float], list[float]]:
    """How late the first runs of short jobs began that were made while no odd calls were, and while some were."""
    starts: tuple[list[float], list[float]] = ([], [])
    first_runs = Job.objects.filter(task=_SHORT, attempt=1, stalled_count=0, started_at__isnull=False)
    for created_at, run_at, started_at in first_runs.values_list("created_at", "run_at", "started_at"):
        starts[is_time(created_at.timestamp())].append((started_at - run_at).total_seconds())
    return starts


def _percentile(values: list[float], percent: int) -> str:
    return f"{quantiles(values, n=100)[percent - 1]:.3f}" if len(values) > 1 else "–"


def _tick_complaints() -> list[str]:
    """A schedule of every second, all of whose missed ticks are caught up: none may be missing, none may be twice."""
    ticks = list(Tick.objects.order_by("scheduled_for"))
    jobs = Counter(
        Job.objects.filter(headers__has_key="scheduled_for").values_list("headers__scheduled_for", flat=True)
    )
    found = [f"{tick} is not enqueued" for tick in ticks if tick.outcome != "enqueued"]
    found += [
        f"none between {one} and {other}"
        for one, other in pairwise(ticks)
        if other.scheduled_for - one.scheduled_for != timedelta(seconds=1)
    ]
    found += [f"{count} jobs for {moment}" for moment, count in jobs.items() if count != 1]
    return found


def _recoveries(deaths: list[Death]) -> list[float]:
    """Seconds from the death of a run to the start of the next run of its job."""
    found = []
    for death in deaths:
        for job in Job.objects.filter(pk__in=death.running).prefetch_related("attempts"):
            runs: list[Attempt] = list(job.attempts.all())
            died = [run for run in runs if run.outcome == "stalled" and run.started_at < death.at < run.ended_at]
            starts = [run.started_at for run in runs if run.started_at] + [job.started_at]
            later = [start for start in starts if start and start > death.at]
            if died and later:
                found.append((min(later) - death.at).total_seconds())
    return found
