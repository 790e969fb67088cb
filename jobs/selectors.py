"""What operators and probes ask the ledger: counts, ages, who works. All from PostgreSQL, in a handful of queries.

States are compared with literals (the driver binds on the client's side), so that the partial indexes of `Job` apply.
"""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from django.db.models import DurationField, ExpressionWrapper, F, Q, QuerySet
from django.db.models.expressions import Combinable
from django.db.models.functions import Now

from jobs import claims, live_counts, statistics
from jobs.doorbell import LEAST_GRANTS, MOST_NAMED
from jobs.first_tasks import first_tasks
from jobs.models import LIVE, Duty, Job, QueueControl, Worker
from jobs.queues import QUEUES, Queue
from jobs.states import State

FAILED_WINDOW = timedelta(hours=1)
GROWS_MINUTES = 5
# Of a minute, the jobs that were made in it are known so long after its end.
_ARRIVALS_KNOWN_AFTER = timedelta(seconds=20)
_MINUTE = timedelta(minutes=1)
# More than the noise of a steady rate.
_MORE = 1.1


@dataclass(kw_only=True)
class QueueStatus:
    """One queue at this moment. A waiting job of a paused queue counts as paused, not as waiting.

    What ended is counted since the beginning, whether the jobs are still kept or not.
    """

    name: str
    purpose: str = ""
    is_declared: bool = True
    is_paused: bool = False
    # A job was told to wait, and with it the queue.
    rate_limited_until: datetime | None = None
    limits: str = ""
    waiting: int = 0
    active: int = 0
    completed: int = 0
    failed: int = 0
    delayed: int = 0
    paused: int = 0
    failed_last_hour_count: int = 0
    oldest_waiting_seconds: float | None = None
    waiting_threshold_count: int = 0
    failed_threshold_count: int = 0
    oldest_threshold_seconds: int = 0
    worker_nodes: list[str] = field(default_factory=list)
    growth: "Growth | None" = None
    # Of the states in which there are too many to count them at once: how long ago the number was true.
    counted_seconds_ago: dict[str, float] = field(default_factory=dict)
    # Of the states in which there are so many at least, and nobody has counted them yet.
    at_least: set[str] = field(default_factory=set)

    def words(self, *states: str, separator: str = "") -> str:
        """How many jobs are in these states, as a person reads it; thousands apart by this separator."""
        count = sum(getattr(self, state) for state in states)
        if self.at_least.intersection(states):
            return f"more than {count - 1:,}"
        return format(count, separator)

    @property
    def has_too_many_waiting(self) -> bool:
        """Whether the backlog has reached the queue's threshold."""
        return self.waiting >= self.waiting_threshold_count

    @property
    def has_too_many_failed(self) -> bool:
        """Whether the failures of the last hour have reached the queue's threshold."""
        return self.failed_last_hour_count >= self.failed_threshold_count

    @property
    def has_no_worker(self) -> bool:
        """Whether jobs are due that no living worker takes."""
        return not self.worker_nodes and self.waiting + self.paused > 0

    def has_waited_longer(self, seconds: float) -> bool:
        """Whether the oldest job has waited for longer than this, and not because its queue is paused."""
        return not self.is_paused and self.waiting > 0 and (self.oldest_waiting_seconds or 0) >= seconds


class Growth(NamedTuple):
    """How many jobs of a queue came in five minutes, and how many ended."""

    arrived: int
    ended: int


def queue_statuses(workers: Collection[Worker] | None = None) -> dict[str, QueueStatus]:
    """Every declared queue in the order of its declaration, then undeclared ones that ever had jobs.

    A handful of queries, and milliseconds, however many jobs wait. `workers` are those that live, if known, as for all
    that follow.
    """
    controls = {control.name: control for control in QueueControl.objects.all()}
    statuses = {name: _declared(queue, controls.get(name)) for name, queue in QUEUES.items()}
    now = claims.now()
    for live in live_counts.live(QUEUES):
        status = statuses.setdefault(live.queue, QueueStatus(name=live.queue, is_declared=False))
        is_paused = status.is_paused and live.state == State.WAITING
        state = "paused" if is_paused else live.state
        setattr(status, state, live.count)
        if live.is_least:
            status.at_least.add(state)
        if live.oldest_at is not None:
            status.oldest_waiting_seconds = max(0.0, (now - live.oldest_at).total_seconds())
        if live.counted_at is not None:
            status.counted_seconds_ago[state] = (now - live.counted_at).total_seconds()
    for name, completed, failed, failed_lately in statistics.totals(failed_for=FAILED_WINDOW):
        status = statuses.setdefault(name, QueueStatus(name=name, is_declared=False))
        status.completed += completed
        status.failed += failed
        status.failed_last_hour_count += failed_lately
    for name, growth in _growing(now).items():
        if name in statuses:
            statuses[name].growth = growth
    for worker in _living(workers):
        for name in worker.queues:
            if name in statuses:
                statuses[name].worker_nodes.append(worker.node)
    return statuses


def _growing(now: datetime) -> dict[str, Growth]:
    """Queues in which more jobs came than ended, in each of five minutes, and no more runs ended in the last one than
    before: nothing says that this will change."""
    end_at = (now - _ARRIVALS_KNOWN_AFTER).replace(second=0, microsecond=0)
    moments = [end_at - number * _MINUTE for number in range(GROWS_MINUTES, 0, -1)]
    found = {}
    for queue, by_minute in statistics.by_minute(start_at=moments[0], end_at=end_at).items():
        minutes = [by_minute.get(moment, statistics.Minute()) for moment in moments]
        *earlier, last = minutes
        is_more_done = last.runs > _MORE * max(one.runs for one in earlier)
        if all(one.arrived > one.ended for one in minutes) and not is_more_done:
            found[queue] = Growth(sum(one.arrived for one in minutes), sum(one.ended for one in minutes))
    return found


def living_workers() -> QuerySet[Worker]:
    """The worker processes whose lease has not run out."""
    return Worker.objects.filter(dead_at__isnull=True, lease_expires_at__gt=Now()).order_by("node")


def _living(workers: Collection[Worker] | None) -> Iterable[Worker]:
    return living_workers() if workers is None else workers


def idle_workers(*, after_seconds: float) -> list[tuple[str, float]]:
    """Living workers that have not looked for jobs for so long: the node of each, and for how many seconds."""
    idle = living_workers().annotate(idle=_since(F("looked_at")))
    rows = idle.filter(looked_at__lt=Now() - timedelta(seconds=after_seconds)).values_list("node", "idle")
    return [(node, age.total_seconds()) for node, age in rows]


def deaf_workers(*, after_seconds: float) -> list[tuple[str, float]]:
    """Living workers that Redis has not answered for so long: the node of each, and for how many seconds."""
    deaf = living_workers().annotate(deaf=_since(F("deaf_since")))
    rows = deaf.filter(deaf_since__lt=Now() - timedelta(seconds=after_seconds)).values_list("node", "deaf")
    return [(node, age.total_seconds()) for node, age in rows]


def most_messages(workers: Collection[Worker] | None = None) -> dict[str, int]:
    """How many messages of each queue may lie in Redis at once: grants, a ring, and jobs without limits that were
    named."""
    return {name: count + MOST_NAMED + 1 for name, count in most_grants(workers).items()}


def most_grants(workers: Collection[Worker] | None = None) -> dict[str, int]:
    """How many grants of each queue are of use in Redis at once: twice the slots of the workers that take from it, and
    sixteen at least."""
    slots = Counter[str]()
    for worker in _living(workers):
        slots.update(dict.fromkeys(worker.queues, worker.concurrency))
    return {name: max(LEAST_GRANTS, 2 * slots[name]) for name in QUEUES}


def known_tasks(workers: Collection[Worker] | None = None) -> dict[str, set[str] | None]:
    """The tasks that a living worker of each queue knows; None where one does not say which it knows."""
    known: dict[str, set[str] | None] = {name: set() for name in QUEUES}
    for worker in _living(workers):
        for name in worker.queues:
            tasks = known.get(name)
            known[name] = tasks | set(worker.tasks) if tasks is not None and worker.tasks else None
    return known


def unknown_tasks(workers: Collection[Worker] | None = None) -> dict[str, set[str]]:
    """Tasks of waiting jobs that no living worker of their queue knows, by queue; queues without a worker left out.

    Looks at the first jobs of each priority and lane, which those are sooner or later: nobody claims them.
    """
    known = {name: tasks for name, tasks in known_tasks(workers).items() if tasks}
    surveyed = live_counts.surveyed_tasks()
    waiting = first_tasks(list(known)) if surveyed is None else surveyed
    unknown = {name: set(waiting.get(name, ())) - tasks for name, tasks in known.items()}
    return {name: tasks for name, tasks in unknown.items() if tasks}


def unfinished_jobs_of(*, owner_id: int, start_at: datetime, end_at: datetime) -> QuerySet[Job]:
    """A user's jobs that were made in a span of time, its end not included, and have not ended yet. Those that have are
    in `jobs.statistics`. The index `job_owner` serves it."""
    return Job.objects.filter(owner=owner_id, created_at__gte=start_at, created_at__lt=end_at, state__in=LIVE)


def paused_queues() -> list[str]:
    """The names of the queues that an operator has paused."""
    return list(QueueControl.objects.filter(paused_at__isnull=False).values_list("name", flat=True))


def halted_queues() -> list[str]:
    """The names of the queues of which nothing starts: an operator has paused them, or a job raised `RateLimited`."""
    halted = Q(paused_at__isnull=False) | Q(rate_limited_until__gt=Now())
    return list(QueueControl.objects.filter(halted).values_list("name", flat=True))


def tick_ages_seconds() -> dict[str, float | None]:
    """Seconds since each duty last ticked, by the database's clock; None where it never did or has no row."""
    ages = Duty.objects.annotate(age=_since(F("ticked_at"))).values_list("name", "age")
    return {name: None if age is None else max(0.0, age.total_seconds()) for name, age in ages}


def late_duties(*, after_seconds: float) -> list[tuple[str, float | None, str]]:
    """Duties of the leader that have not succeeded in time: the name of each, for how many seconds, None where it never
    has, and what it last raised, if it did so since.

    In time is within twice as long as they are to be done, and `after_seconds` more. Only where a leader is at work.
    """
    duties = Duty.objects.filter(every_seconds__isnull=False).annotate(
        succeeded_age=_since(F("succeeded_at")), failed_age=_since(F("failed_at"))
    )
    found: list[tuple[str, float | None, str]] = []
    for duty in duties.order_by("name"):
        age = None if duty.succeeded_age is None else duty.succeeded_age.total_seconds()
        has_failed = duty.failed_age is not None and (age is None or duty.failed_age.total_seconds() < age)
        if age is None or age > 2 * (duty.every_seconds or 0) + after_seconds or (has_failed and age > after_seconds):
            found.append((duty.name, age, duty.error if has_failed else ""))
    return found


def _declared(queue: Queue, control: QueueControl | None) -> QueueStatus:
    in_force = control.over(queue) if control else queue
    return QueueStatus(
        name=queue.name,
        purpose=queue.purpose,
        is_paused=control is not None and control.paused_at is not None,
        rate_limited_until=control.rate_limited_until if control is not None else None,
        limits=in_force.limits,
        waiting_threshold_count=in_force.waiting_threshold_count,
        failed_threshold_count=in_force.failed_threshold_count,
        oldest_threshold_seconds=in_force.oldest_threshold_seconds,
    )


def _since(moment: Any) -> Combinable:
    return ExpressionWrapper(Now() - moment, output_field=DurationField())
