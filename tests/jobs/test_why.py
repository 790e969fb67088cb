"""The sentence on why a job is not running, for each reason."""

import re
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.db.models.functions import Now
from django.utils import timezone

from devstack.throwaway import Server
from jobs import limits, services
from jobs.models import Duty, Job, RateStart, Worker
from tests.jobs.factories import claim_job, make_job, make_worker

pytestmark = pytest.mark.django_db(transaction=True)
WHEN = timezone.now().replace(microsecond=0) + timedelta(hours=3)
AT = f"{WHEN:%Y-%m-%d %H:%M:%S} UTC"


@pytest.fixture
def leader() -> None:
    """Somebody does the dispatcher's duties."""
    Duty.objects.update_or_create(name="dispatcher", defaults={"ticked_at": Now() + timedelta(hours=1)})


def why(job: Job) -> str:
    found = services.why(job.pk)
    assert found is not None
    return found


# -- Jobs that ended, run or are delayed -------------------------------------------------------------------------------
def test_ends_are_told_with_their_reason() -> None:
    ended = {"finished_at": WHEN}
    assert why(make_job(state="completed", **ended)) == f"It completed at {AT}."
    failed = make_job(state="failed", attempt=3, error="The disk was full", **ended)
    assert why(failed) == f"It failed at {AT}, in attempt 3: The disk was full."
    cancelled = make_job(state="cancelled", error="Cancelled by ada@example.com.", **ended)
    assert why(cancelled) == f"It was cancelled at {AT}: Cancelled by ada@example.com."


def test_a_running_job_is_told_with_its_worker() -> None:
    worker, job = make_worker(node="email@web-1", pid=4711), make_job()
    claim_job(job, worker)
    since = Job.objects.get(pk=job.pk).started_at
    assert why(job) == f"It has been running since {since:%Y-%m-%d %H:%M:%S} UTC on worker email@web-1 (process 4711)."
    worker.lease_expires_at = timezone.now() - timedelta(seconds=1)
    worker.save()
    assert "which is silent" in why(job)
    worker.delete()
    assert "on a worker that is gone" in why(job)


def test_delays_and_waits_before_a_retry_are_told_apart() -> None:
    assert why(make_job(state="delayed", run_at=WHEN)) == f"It is delayed until {AT}."
    retried = make_job(state="delayed", run_at=WHEN, attempt=2, error="ConnectionError: no route")
    assert why(retried) == f"It waits until {AT} for attempt 2. The last one: ConnectionError: no route."


def test_a_job_that_waits_for_a_flow_names_its_members() -> None:
    flow_id = uuid4()
    held = make_job(state="delayed", is_held=True, awaited_flow_id=flow_id)
    first = make_job(flow_id=flow_id, flow_path=[0])
    make_job(flow_id=flow_id, flow_path=[1], state="completed")
    assert why(held) == f"It waits for 1 of the 2 jobs of its flow; the first is job {first.pk}."


def test_of_a_job_that_is_unknown_nothing_is_said() -> None:
    assert services.why(uuid4()) is None


# -- Jobs that could run -----------------------------------------------------------------------------------------------
def test_a_pause_is_told_with_its_operator(leader: None) -> None:
    services.pause_queue(queue="default", actor="ada@web-1")
    services.resume_queue(queue="default", actor="bob@web-1")
    services.pause_queue(queue="default", actor="eve@web-1")
    sentence = why(make_job())
    assert sentence.startswith("Its queue default has been paused since ")
    assert sentence.endswith(", by eve@web-1.")


def test_a_queue_without_a_worker_is_told_with_the_cure(leader: None) -> None:
    make_worker(queues=["email"])
    make_worker(queues=["default"], dead_at=timezone.now())
    sentence = "No living worker consumes its queue default. Start one: celery -A config worker -Q default"
    assert why(make_job()) == sentence
    assert why(make_job(queue="nonsense")).startswith("Its queue nonsense is not declared")


def test_a_dispatcher_that_does_not_tick_is_told() -> None:
    make_worker(queues=["default"])
    assert "(none ever has)" in why(make_job())
    Duty.objects.create(name="dispatcher", ticked_at=timezone.now() - timedelta(seconds=100))
    assert "(the last time was 10" in why(make_job())
    assert "dispatcher's duties" in why(make_job(state="delayed", run_at=timezone.now() - timedelta(seconds=9)))


def test_a_limit_is_told_with_its_time_or_with_who_runs_instead(leader: None) -> None:
    worker = make_worker(queues=["default"])
    running = [make_job(concurrency_key="user:7", concurrency_limit=2, lane="x") for _ in range(2)]
    for job in running:
        Job.objects.filter(pk=job.pk).update(
            state="active", worker_id=worker.pk, claim_token=str(job.pk), started_at=Now()
        )
    waiting = make_job(concurrency_key="user:7", concurrency_limit=2, lane="x")
    sentence = f"At most 2 of key user:7 run at once. Running: job {running[0].pk} and 1 more."
    assert why(waiting) == sentence
    RateStart.objects.create(key=limits.rate_key("tenant:1"), number=1, started_at=WHEN)
    limited = make_job(rate_key="tenant:1", rate_limit="1/h", lane="y")
    until = f"{WHEN + timedelta(hours=1):%Y-%m-%d %H:%M:%S} UTC"
    assert why(limited) == f"Rate key tenant:1 has had its 1/h starts. Not before {until}."


def test_a_task_that_workers_do_not_know_is_told(leader: None) -> None:
    make_worker(queues=["default"], tasks=["old.task"])
    make_worker(queues=["email"], tasks=["new.tasks.of_tomorrow"])
    job = make_job(task="new.tasks.of_tomorrow")
    assert why(job).startswith("No living worker of its queue default knows its task new.tasks.of_tomorrow: deploy")
    make_worker(queues=["default"], tasks=["new.tasks.of_tomorrow"])
    assert why(job) == "Nothing keeps it: it starts within moments."


def test_a_worker_that_does_not_tell_its_tasks_may_know_any(leader: None) -> None:
    make_worker(queues=["default"], tasks=[])
    assert why(make_job(task="new.tasks.of_tomorrow")) == "Nothing keeps it: it starts within moments."


def test_the_jobs_before_it_are_counted(leader: None) -> None:
    worker = make_worker(queues=["default"])
    assert why(make_job(queue="default", priority=9)) == "Nothing keeps it: it starts within moments."
    sooner = make_job(priority=0)
    make_job(priority=0, run_at=timezone.now() + timedelta(seconds=5))
    assert why(make_job(priority=1)) == "It waits behind 2 others in queue default, where 0 are running."
    claim_job(make_job(priority=0), worker)
    assert why(sooner) == "It is the next in queue default, where 1 are running."


def test_a_broker_that_is_away_is_told_of_jobs_with_limits_alone(leader: None, redis_server: Server) -> None:
    make_worker(queues=["default"])
    make_worker(queues=["email"])
    limited = [make_job(rate_key="t", rate_limit="100/s"), make_job(queue="email")]
    free = make_job(priority=0)
    redis_server.freeze()
    for job in limited:
        # Either this process or Redis's driver is the first to give up.
        assert re.match(r"Redis does not answer( within 0\.3 s)?\. Workers hear through it when a job with", why(job))
    assert why(free) == "Nothing keeps it: it starts within moments."


@pytest.mark.usefixtures("leader")
def test_workers_that_live_and_do_not_look_are_told() -> None:
    make_worker(node="a@host", queues=["default"], looked_at=Now() - timedelta(seconds=40))
    job = make_job()
    told = r"The worker of its queue default has not looked for jobs for 4\d s\. Restart a@host\."
    assert re.fullmatch(told, why(job))
    other = make_worker(node="b@host", queues=["default"], looked_at=Now() - timedelta(seconds=60))
    told = r"No worker of its queue default has looked for jobs for 4\d s\. Restart a@host, b@host\."
    assert re.fullmatch(told, why(job))
    Worker.objects.filter(pk=other.pk).update(looked_at=Now())
    assert "looked" not in why(job)


@pytest.mark.usefixtures("leader")
@pytest.mark.parametrize(
    ("fields", "duty"),
    [({"rate_key": "k", "rate_limit": "1/s"}, "pacing"), ({"state": "delayed", "run_at": Now()}, "due")],
)
def test_a_duty_that_fails_is_told_where_the_job_waits_for_it(fields: dict[str, Any], duty: str) -> None:
    make_worker(queues=["default"])
    for name in ("pacing", "due"):
        Duty.objects.create(
            name=name,
            every_seconds=1,
            succeeded_at=Now() - timedelta(seconds=50),
            failed_at=Now(),
            error=f"{name}: it is broken",
        )
    assert re.fullmatch(
        rf"The dispatcher's duty {duty}, which it waits for, last succeeded 5\d s ago. {duty}: it is broken\.",
        why(make_job(**fields)),
    )
    assert "duty" not in why(make_job())
