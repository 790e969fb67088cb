"""What operators and probes ask the ledger: counts, ages, who works. All from PostgreSQL, in a handful of queries.

States are compared with literals (the driver binds on the client's side), so that the partial indexes of `Job` apply.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Count, DurationField, ExpressionWrapper, F, Min, QuerySet, Value
from django.db.models.expressions import Combinable
from django.db.models.functions import Now

from jobs.models import Duty, Job, QueueControl, Worker
from jobs.queues import QUEUES, Queue
from jobs.states import State

FAILED_WINDOW = timedelta(hours=1)


@dataclass(kw_only=True)
class QueueStatus:
    """One queue at this moment. A waiting job of a paused queue counts as paused, not as waiting."""

    name: str
    purpose: str = ""
    is_declared: bool = True
    is_paused: bool = False
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
    worker_nodes: list[str] = field(default_factory=list)

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


def queue_statuses() -> dict[str, QueueStatus]:
    """Every declared queue in the order of its declaration, then undeclared ones that still have jobs. Five queries."""
    controls = {control.name: control for control in QueueControl.objects.all()}
    statuses = {name: _declared(queue, controls.get(name)) for name, queue in QUEUES.items()}
    for row in _live_counts():
        status = statuses.setdefault(row["queue"], QueueStatus(name=row["queue"], is_declared=False))
        state = State.WAITING if row["state"] == State.WAITING else State(row["state"])
        setattr(status, "paused" if status.is_paused and state is State.WAITING else state.value, row["count"])
        if state is State.WAITING and row["age"] is not None:
            status.oldest_waiting_seconds = max(0.0, row["age"].total_seconds())
    for row in _ended_counts():
        status = statuses.setdefault(row["queue"], QueueStatus(name=row["queue"], is_declared=False))
        setattr(status, row["state"], row["count"])
    for row in _failed_lately(statuses):
        statuses[row["queue"]].failed_last_hour_count = row["count"]
    for worker in living_workers():
        for name in worker.queues:
            if name in statuses:
                statuses[name].worker_nodes.append(worker.node)
    return statuses


def living_workers() -> QuerySet[Worker]:
    """The worker processes whose lease has not run out."""
    return Worker.objects.filter(dead_at__isnull=True, lease_expires_at__gt=Now()).order_by("node")


def stuck_workers() -> QuerySet[Worker]:
    """Living workers with threads that outlived the time limit of their job."""
    return living_workers().filter(stuck_count__gt=0)


def jobs_of(*, owner_id: int, start_at: datetime, end_at: datetime) -> QuerySet[Job]:
    """A user's jobs that were made in a span of time, its end not included. The index `job_owner` serves it."""
    return Job.objects.filter(owner=owner_id, created_at__gte=start_at, created_at__lt=end_at)


def paused_queues() -> list[str]:
    """The names of the queues that an operator has paused."""
    return list(QueueControl.objects.filter(paused_at__isnull=False).values_list("name", flat=True))


def tick_ages_seconds() -> dict[str, float | None]:
    """Seconds since each duty last ticked, by the database's clock; None where it never did or has no row."""
    ages = Duty.objects.annotate(age=_since(F("ticked_at"))).values_list("name", "age")
    return {name: None if age is None else max(0.0, age.total_seconds()) for name, age in ages}


def _declared(queue: Queue, control: QueueControl | None) -> QueueStatus:
    control = control or QueueControl(name=queue.name)
    waiting_threshold, failed_threshold = control.waiting_threshold_count, control.failed_threshold_count
    return QueueStatus(
        name=queue.name,
        purpose=queue.purpose,
        is_paused=control.paused_at is not None,
        waiting_threshold_count=queue.waiting_threshold_count if waiting_threshold is None else waiting_threshold,
        failed_threshold_count=queue.failed_threshold_count if failed_threshold is None else failed_threshold,
    )


def _live_counts() -> Iterable[Any]:
    """One scan of each partial index on live jobs, in one statement."""

    def of(state: State, age: Any) -> Any:
        jobs = Job.objects.filter(state=state.value).order_by()
        return jobs.values("queue").annotate(state=Value(state.value), count=Count("*"), age=age)

    nothing = Value(None, output_field=DurationField())
    waiting = of(State.WAITING, _since(Min("run_at")))
    return waiting.union(of(State.ACTIVE, nothing), of(State.DELAYED, nothing), all=True)


def _ended_counts() -> Iterable[Any]:
    """Ended jobs per queue and state: a scan of the index `job_ended` alone, while the rows are few enough to count."""
    jobs = Job.objects.filter(state__in=[State.COMPLETED.value, State.FAILED.value]).order_by()
    return jobs.values("queue", "state").annotate(count=Count("*"))


def _failed_lately(queues: Iterable[str]) -> Iterable[Any]:
    """Failures of the last hour: naming the queues lets PostgreSQL go straight to each one's end of `job_ended`."""
    jobs = Job.objects.filter(queue__in=list(queues), state=State.FAILED.value, finished_at__gte=Now() - FAILED_WINDOW)
    return jobs.order_by().values("queue").annotate(count=Count("*"))


def _since(moment: Any) -> Combinable:
    return ExpressionWrapper(Now() - moment, output_field=DurationField())
