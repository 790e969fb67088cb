"""Why a job is not running: one sentence for whoever waits for it."""

from datetime import datetime
from typing import Any
from uuid import UUID

from django.db.models import Q
from django.db.models.functions import Now

from jobs import audit, health, limits, live_counts, publish, selectors
from jobs.dispatcher import record
from jobs.models import ENDED, LIVE, AuditEntry, Job, QueueControl, Worker
from jobs.queues import QUEUES
from jobs.states import State

# A leader ticks once a second, and is replaced within seconds where it dies.
_LEADERLESS_SECONDS = 15.0


def why(job_id: UUID) -> str | None:
    """A sentence or two on why a job is not running, or that it runs, or how it ended; None where there is no such job.

    Of several reasons the one that must go first: nothing is said of the others. Takes a handful of queries and, where
    nothing in the database keeps the job, asks Redis whether it answers, which takes 0.3 s at most.
    """
    job: Any = Job.objects.annotate(now=Now()).filter(pk=job_id).first()
    if job is None:
        return None
    if job.state in ENDED:
        return _ended(job)
    if job.state == State.ACTIVE:
        return _running(job)
    if job.is_held:
        return _held(job)
    if job.state == State.DELAYED and job.run_at > job.now:
        return _delayed(job)
    return (
        _paused(job)
        or _no_worker(job)
        or _idle_workers(job)
        or _no_dispatcher()
        or _failing_duty(job)
        or _limited(job)
        or _unknown(job)
        or _no_broker(job)
        or _behind(job)
    )


def _ended(job: Job) -> str:
    at = _time(job.finished_at)
    if job.state == State.COMPLETED:
        return f"It completed at {at}."
    if job.state == State.CANCELLED:
        return f"It was cancelled at {at}: {_sentence(job.error)}"
    return f"It failed at {at}, in attempt {job.attempt}: {_sentence(job.error)}"


def _running(job: Any) -> str:
    worker = Worker.objects.filter(pk=job.worker_id).first()
    if worker is None or worker.dead_at is not None:
        return f"It was running since {_time(job.started_at)} on a worker that is gone, and runs again shortly."
    where = f"It has been running since {_time(job.started_at)} on worker {worker.node} (process {worker.pid})"
    if worker.lease_expires_at < job.now:
        return f"{where}, which is silent: it runs again elsewhere when that worker is given up."
    return f"{where}."


def _held(job: Job) -> str:
    members = Job.objects.filter(flow_id=job.awaited_flow_id)
    alive = members.filter(state__in=LIVE)
    first = alive.order_by("flow_path", "pk").first()
    if first is None:
        return "The jobs of its flow have ended: it goes on within moments."
    return f"It waits for {alive.count()} of the {members.count()} jobs of its flow; the first is job {first.pk}."


def _delayed(job: Job) -> str:
    if job.attempt > 1:
        return f"It waits until {_time(job.run_at)} for attempt {job.attempt}. The last one: {_sentence(job.error)}"
    return f"It is delayed until {_time(job.run_at)}."


def _paused(job: Job) -> str | None:
    control = QueueControl.objects.filter(name=job.queue, paused_at__isnull=False).first()
    if control is None:
        return None
    entries = AuditEntry.objects.filter(thing_type="queuecontrol", thing_id=job.queue, what=audit.PAUSED)
    last = entries.order_by("pk").last()
    by = f", by {last.actor_name}" if last else ""
    return f"Its queue {job.queue} has been paused since {_time(control.paused_at)}{by}."


def _no_worker(job: Job) -> str | None:
    if job.queue not in QUEUES:
        return f"Its queue {job.queue} is not declared in jobs/queues.py, so no worker takes it."
    if any(job.queue in worker.queues for worker in selectors.living_workers()):
        return None
    return f"No living worker consumes its queue {job.queue}. Start one: celery -A config worker -Q {job.queue}"


def _idle_workers(job: Job) -> str | None:
    """All workers of its queue live and do not look for jobs."""
    nodes = [worker.node for worker in selectors.living_workers() if job.queue in worker.queues]
    idle = dict(selectors.idle_workers(after_seconds=health.PATIENCE_SECONDS))
    if not nodes or any(node not in idle for node in nodes):
        return None
    seconds = min(idle[node] for node in nodes)
    if len(nodes) > 1:
        return (
            f"No worker of its queue {job.queue} has looked for jobs for {seconds:.0f} s. Restart {', '.join(nodes)}."
        )
    return f"The worker of its queue {job.queue} has not looked for jobs for {seconds:.0f} s. Restart {nodes[0]}."


def _failing_duty(job: Job) -> str | None:
    """The duty of the dispatcher that would let it go on."""
    name = record.DUE if job.state == State.DELAYED else record.PACING if publish.Ring.of(job).leader else None
    for duty, age_seconds, error in selectors.late_duties(after_seconds=health.TICK_AGE_LIMIT_SECONDS):
        if duty == name:
            since = "has never succeeded" if age_seconds is None else f"last succeeded {age_seconds:.0f} s ago"
            return f"The dispatcher's duty {duty}, which it waits for, {since}. {_sentence(error)}"
    return None


def _no_dispatcher() -> str | None:
    """Nobody makes jobs due or grants those with limits. Where workers live, their dispatcher's threads hang, or cannot
    write."""
    age_seconds = selectors.tick_ages_seconds().get("dispatcher")
    if age_seconds is not None and age_seconds <= _LEADERLESS_SECONDS:
        return None
    since = "none ever has" if age_seconds is None else f"the last time was {age_seconds:.0f} s ago"
    return f"No worker does the dispatcher's duties ({since}): look at the workers' logs, and restart them."


def _limited(job: Job) -> str | None:
    obstacle = limits.obstacle(job) if job.state == State.WAITING else None
    if obstacle is None:
        return None
    until = f" Not before {_time(obstacle.until)}." if obstacle.until else ""
    if not obstacle.job_ids:
        return f"{obstacle.text}{until}"
    others = f" and {len(obstacle.job_ids) - 1} more" if len(obstacle.job_ids) > 1 else ""
    return f"{obstacle.text}{until} Running: job {obstacle.job_ids[0]}{others}."


def _unknown(job: Job) -> str | None:
    workers = [worker for worker in selectors.living_workers() if job.queue in worker.queues]
    if any(job.task in worker.tasks or not worker.tasks for worker in workers):
        return None
    return (
        f"No living worker of its queue {job.queue} knows its task {job.task}: deploy the code that has it, and "
        "restart the workers."
    )


def _no_broker(job: Job) -> str | None:
    """Jobs without limits are found without it."""
    reason = health.why_no_broker() if publish.Ring.of(job).leader else None
    return (
        f"{reason} Workers hear through it when a job with limits may start: it starts when it is back."
        if reason
        else None
    )


def _behind(job: Job) -> str:
    """In the order in which jobs are claimed. Those that limits of their own keep are counted too."""
    earlier = Q(run_at__lt=job.run_at) | Q(run_at=job.run_at, pk__lt=job.pk)
    before = Q(priority__lt=job.priority) | (Q(priority=job.priority) & earlier)
    most = live_counts.COUNTED_AT_ONCE
    waiting = Job.objects.filter(before, state="waiting", queue=job.queue).order_by()[: most + 1].count()
    running = Job.objects.filter(state="active", queue=job.queue).count()
    if waiting:
        count = waiting if waiting <= most else f"more than {most}"
        return f"It waits behind {count} others in queue {job.queue}, where {running} are running."
    if running:
        return f"It is the next in queue {job.queue}, where {running} are running."
    return "Nothing keeps it: it starts within moments."


def _sentence(text: str) -> str:
    text = text.strip() or "nothing is known"
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _time(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC" if moment else "an unknown time"
