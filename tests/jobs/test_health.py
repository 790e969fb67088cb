"""What the probes say, also while a server is away or frozen."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder
from django.db.models import F
from django.db.models.functions import Now
from django.test import Client
from django.utils import timezone

from devstack.throwaway import Server
from jobs import health, settle
from jobs.dispatcher import retention, statistics
from jobs.models import Duty, Job, JobEvent, QueueControl, Stat, Worker
from jobs.queues import QUEUES
from tests.jobs.factories import claim_job, make_events, make_job, make_worker

pytestmark = pytest.mark.django_db(transaction=True)

NOTHING = {"waiting": 0, "active": 0, "completed": 0, "failed": 0, "delayed": 0, "paused": 0}


@pytest.fixture
def ticking() -> None:
    """Dispatcher and beat have ticked just now."""
    Duty.objects.bulk_create([Duty(name=name, ticked_at=timezone.now()) for name in health.DUTIES])


@pytest.fixture(autouse=True)
def _no_question_is_left() -> Iterator[None]:
    """A question that was given up is asked to its end, and needs the database of its own test."""
    yield
    for thread in threading.enumerate():
        if thread.name.startswith("health-"):
            thread.join()


def make_jobs(count: int, **fields: Any) -> None:
    Job.objects.bulk_create([Job(task="tests.sample_tasks.add", **fields) for _ in range(count)])


@pytest.mark.usefixtures("ticking")
def test_an_idle_system_is_ok_and_names_every_declared_queue(client: Client) -> None:
    answer = client.get("/health")
    assert answer.status_code == 200
    assert "no-store" in answer["Cache-Control"]
    body = answer.json()
    assert (body["status"], body["reasons"]) == ("ok", [])
    assert body["queues"] == dict.fromkeys(QUEUES, NOTHING)
    assert body["dispatcher"]["tick_age_seconds"] < 60
    assert body["beat"]["tick_age_seconds"] < 60


@pytest.mark.usefixtures("ticking")
@pytest.mark.parametrize("path", ["/health", "/readyz"])
def test_many_that_ask_at_once_share_one_look(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "SHARED_SECONDS", 60.0)
    looks = {"/health": health.Shared(health._check), "/readyz": health.Shared(health._why_not_ready)}
    monkeypatch.setattr(health, "_health", looks["/health"])
    monkeypatch.setattr(health, "_readiness", looks["/readyz"])
    asked: list[str] = []
    ask = health.Question.__init__

    def count(question: health.Question[Any], server: str, *arguments: Any) -> None:
        asked.append(server)
        ask(question, server, *arguments)

    monkeypatch.setattr(health.Question, "__init__", count)
    together = threading.Barrier(32)

    def get(_: int) -> int:
        together.wait()
        return Client().get(path).status_code

    with ThreadPoolExecutor(32) as threads:
        assert set(threads.map(get, range(32))) == {200}
    assert sorted(asked) == (["PostgreSQL", "Redis"] if path == "/health" else ["PostgreSQL"])


@pytest.mark.usefixtures("ticking")
def test_jobs_are_counted_by_queue_and_state(client: Client) -> None:
    for state in ("waiting", "waiting", "delayed"):
        make_job(queue="email", state=state)
    worker = make_worker()
    settle.complete(claim_job(make_job(queue="email"), worker), result=None)
    settle.fail(claim_job(make_job(queue="email"), worker), error="no")
    assert client.get("/health").json()["queues"]["email"] == {
        **NOTHING,
        "waiting": 2,
        "delayed": 1,
        "completed": 1,
        "failed": 1,
    }


@pytest.mark.usefixtures("ticking")
def test_a_thousand_waiting_jobs_degrade_and_999_do_not(client: Client) -> None:
    make_jobs(999, queue="images", state="waiting")
    assert client.get("/health").status_code == 200
    make_jobs(1, queue="images", state="waiting")
    answer = client.get("/health")
    assert answer.status_code == 503
    assert answer.json()["status"] == "degraded"
    assert answer.json()["reasons"] == ["images: 1000 jobs waiting (threshold 1000)."]


@pytest.mark.usefixtures("ticking")
def test_fifty_failures_degrade_for_an_hour(client: Client) -> None:
    make_events(30, queue="crm", kind="failed", at=Now() - timedelta(minutes=59))
    statistics.Fold().run_once()
    make_events(20, queue="crm", kind="failed", at=Now() - timedelta(minutes=59))
    assert client.get("/health").json()["reasons"] == ["crm: 50 jobs failed in the last hour (threshold 50)."]
    Stat.objects.update(minute=F("minute") - timedelta(minutes=2))
    JobEvent.objects.update(at=Now() - timedelta(minutes=61))
    answer = client.get("/health")
    assert answer.status_code == 200
    assert answer.json()["queues"]["crm"]["failed"] == 50


@pytest.mark.usefixtures("ticking")
def test_no_figure_changes_when_retention_removes_the_jobs(client: Client) -> None:
    worker = make_worker()
    for number in range(4):
        run = claim_job(make_job(queue="email", created_at=Now() - timedelta(hours=3)), worker)
        if number:
            settle.complete(run, result=None)
        else:
            settle.fail(run, error="no")
    QueueControl.objects.create(name="email", keep_completed_count=1, keep_failed_count=0, failed_threshold_count=1)
    before = client.get("/health").json()
    assert before["reasons"] == ["email: 1 jobs failed in the last hour (threshold 1)."]
    Job.objects.update(finished_at=Now() - timedelta(hours=2))
    while retention.run_once():
        pass
    assert Job.objects.count() == 1
    after = client.get("/health").json()
    assert (after["queues"], after["reasons"]) == (before["queues"], before["reasons"])
    assert after["queues"]["email"] == {**NOTHING, "completed": 3, "failed": 1}


@pytest.mark.usefixtures("ticking")
def test_a_paused_queue_has_no_waiting_jobs_and_raises_no_alarm(client: Client) -> None:
    make_jobs(1000, queue="email", state="waiting")
    QueueControl.objects.create(name="email", paused_at=timezone.now())
    answer = client.get("/health")
    assert answer.status_code == 200
    assert answer.json()["queues"]["email"] == {**NOTHING, "paused": 1000}


@pytest.mark.usefixtures("ticking")
def test_an_operators_threshold_replaces_the_declared_one(client: Client) -> None:
    QueueControl.objects.create(name="video", waiting_threshold_count=2, failed_threshold_count=0)
    make_jobs(2, queue="video", state="waiting")
    assert client.get("/health").json()["reasons"] == [
        "video: 2 jobs waiting (threshold 2).",
        "video: 0 jobs failed in the last hour (threshold 0).",
    ]


@pytest.mark.usefixtures("ticking")
def test_jobs_that_no_worker_takes_are_a_reason_after_half_a_minute(client: Client) -> None:
    make_jobs(2, queue="email", state="waiting")
    make_jobs(1, queue="nobodys", state="waiting")
    assert client.get("/health").json()["reasons"] == []
    Job.objects.update(run_at=Now() - timedelta(seconds=31))
    told = {
        "email: 2 jobs wait, and no living worker takes from it.",
        "nobodys: 1 jobs wait in a queue that nobody declares.",
    }
    answer = client.get("/health")
    assert answer.status_code == 503
    assert set(answer.json()["reasons"]) == told
    worker = make_worker(queues=["email"])
    assert client.get("/health").json()["reasons"] == ["nobodys: 1 jobs wait in a queue that nobody declares."]
    # It has given the queue up, as `cancel_consumer` tells it to.
    Worker.objects.filter(pk=worker.pk).update(queues=[])
    assert set(client.get("/health").json()["reasons"]) == told


@pytest.mark.usefixtures("ticking")
def test_a_job_that_waits_for_too_long_is_a_reason(client: Client) -> None:
    make_worker(queues=list(QUEUES))
    QueueControl.objects.create(name="video", oldest_threshold_seconds=60)
    make_jobs(1, queue="video", state="waiting", run_at=Now() - timedelta(seconds=90))
    (reason,) = client.get("/health").json()["reasons"]
    assert reason.startswith("video: the oldest job has waited for 9")
    assert reason.endswith("(threshold 60 s).")


@pytest.mark.usefixtures("ticking")
def test_a_paused_queue_with_jobs_is_a_warning_and_degrades_nothing(client: Client) -> None:
    QueueControl.objects.create(name="video", paused_at=Now(), oldest_threshold_seconds=60)
    make_jobs(3, queue="video", state="waiting", run_at=Now() - timedelta(hours=2))
    answer = client.get("/health")
    assert answer.status_code == 200
    assert (answer.json()["reasons"], answer.json()["warnings"]) == ([], ["video: paused, with 3 jobs waiting."])


def come(queue: str, each_minute: list[int], **fields: Any) -> None:
    """Jobs that came in the last full minutes, so many in each, the last one's first."""
    minute = (timezone.now() - timedelta(seconds=20)).replace(second=0, microsecond=0)
    for number, count in enumerate(each_minute, 1):
        at = minute - timedelta(minutes=number) + timedelta(seconds=30)
        make_jobs(count, **{"queue": queue, "state": "waiting", "created_at": at, "run_at": at, **fields})
    arrivals = statistics.Arrivals()
    while arrivals.run_once():
        pass


def end(queue: str, each_minute: list[int]) -> None:
    minute = (timezone.now() - timedelta(seconds=20)).replace(second=0, microsecond=0)
    for number, count in enumerate(each_minute, 1):
        make_events(count, queue=queue, kind="completed", at=minute - timedelta(minutes=number))


@pytest.fixture
def workers_of_all() -> None:
    make_worker(queues=list(QUEUES))


@pytest.mark.usefixtures("ticking", "workers_of_all")
@pytest.mark.parametrize("is_folded", [True, False])
def test_a_queue_that_only_grows_is_a_reason(client: Client, is_folded: bool) -> None:
    come("crm", [6, 6, 6, 6, 6])
    end("crm", [5, 5, 5, 5, 5])
    if is_folded:
        statistics.Fold().run_once()
    assert client.get("/health").json()["reasons"] == [
        "crm: grows. In five minutes 30 jobs came and 25 ended, and no more of them are being started."
    ]


@pytest.mark.usefixtures("ticking", "workers_of_all")
@pytest.mark.parametrize(
    ("came", "ended", "fields"),
    [
        # For less than five minutes.
        ([6, 6, 6, 6], [5, 5, 5, 5], {}),
        # In one of them it did not grow.
        ([6, 6, 6, 6, 6], [5, 5, 6, 5, 5], {}),
        # More and more are started.
        ([60, 60, 60, 60, 60], [12, 10, 8, 6, 4], {}),
        # They are for later, or have come just now.
        ([6, 6, 6, 6, 6], [0], {"state": "delayed", "run_at": Now() + timedelta(hours=1)}),
        ([6, 6, 6, 6, 6], [0], {"run_at": Now()}),
    ],
)
def test_a_queue_that_may_catch_up_is_none(
    client: Client, came: list[int], ended: list[int], fields: dict[str, Any]
) -> None:
    come("crm", came, **fields)
    end("crm", ended)
    assert client.get("/health").json()["reasons"] == []


@pytest.mark.usefixtures("ticking", "workers_of_all")
def test_a_paused_queue_may_grow(client: Client) -> None:
    QueueControl.objects.create(name="crm", paused_at=Now())
    come("crm", [6, 6, 6, 6, 6])
    assert client.get("/health").json()["reasons"] == []


@pytest.mark.usefixtures("ticking")
def test_a_worker_that_lives_and_does_not_look_for_jobs_is_a_reason(client: Client) -> None:
    make_worker(node="idle@a", queues=list(QUEUES), looked_at=Now() - timedelta(seconds=35))
    make_worker(node="well@a", queues=list(QUEUES), looked_at=Now() - timedelta(seconds=6))
    dead = {"dead_at": Now(), "looked_at": Now() - timedelta(hours=1)}
    make_worker(node="gone@a", queues=list(QUEUES), **dead)
    (reason,) = client.get("/health").json()["reasons"]
    assert reason.startswith("idle@a: lives, but has not looked for jobs for 3")


@pytest.mark.usefixtures("ticking")
def test_a_worker_that_redis_does_not_answer_is_a_reason_unless_it_answers_nobody(
    client: Client, redis_server: Server
) -> None:
    make_worker(node="deaf@a", queues=list(QUEUES), deaf_since=Now() - timedelta(seconds=35))
    make_worker(node="well@a", queues=list(QUEUES), deaf_since=Now() - timedelta(seconds=6))
    (reason,) = client.get("/health").json()["reasons"]
    assert reason.startswith("deaf@a: Redis has not answered it for 3")
    redis_server.stop()
    assert client.get("/health").json()["reasons"] == ["Redis does not answer."]


@pytest.mark.usefixtures("ticking")
def test_a_queue_that_a_worker_was_told_to_leave_is_told(client: Client) -> None:
    make_worker(node="one@a", queues=["crm"], left_queues=["email"])
    assert client.get("/health").json()["reasons"] == [
        "one@a: does not take from email any more, as it was told by cancel_consumer, and no other worker does."
    ]
    other = make_worker(node="two@a", queues=["email"])
    answer = client.get("/health").json()
    assert (answer["status"], answer["warnings"]) == (
        "ok",
        ["one@a: does not take from email any more, as it was told by cancel_consumer; others do."],
    )
    Worker.objects.filter(pk=other.pk).update(queues=[], left_queues=["email"])
    assert (
        "two@a: takes from no queue any more, as it was told by cancel_consumer."
        in (client.get("/health").json()["reasons"])
    )


def test_duties_that_never_ticked_or_stopped_ticking_are_reported(client: Client) -> None:
    Duty.objects.create(name="beat", ticked_at=timezone.now() - timedelta(seconds=90))
    answer = client.get("/health")
    assert answer.status_code == 503
    never, late = answer.json()["reasons"]
    assert never == "The dispatcher has never ticked: is one running?"
    assert late.startswith("The beat last ticked 9")
    assert answer.json()["dispatcher"] == {"tick_age_seconds": None}


@pytest.mark.usefixtures("ticking")
def test_a_stopped_redis_is_a_reason_and_the_counts_stay(client: Client, redis_server: Server) -> None:
    make_job(queue="email")
    redis_server.stop()
    answer = client.get("/health")
    assert answer.status_code == 503
    assert answer.json()["reasons"] == ["Redis does not answer."]
    assert answer.json()["queues"]["email"]["waiting"] == 1


@pytest.mark.usefixtures("ticking")
def test_a_frozen_redis_is_a_reason_too(client: Client, redis_server: Server) -> None:
    redis_server.freeze()
    answer = client.get("/health")
    redis_server.thaw()
    assert answer.status_code == 503
    assert answer.json()["reasons"][0].startswith("Redis does not answer")


def test_without_postgres_the_answer_is_degraded_and_holds_no_trace(client: Client, postgres_server: Server) -> None:
    connection.close()
    postgres_server.stop()
    health_answer, ready_answer, alive_answer = client.get("/health"), client.get("/readyz"), client.get("/livez")
    postgres_server.start()
    assert health_answer.status_code == 503
    assert health_answer.json() == {
        "status": "degraded",
        "reasons": ["PostgreSQL does not answer."],
        "warnings": [],
        "queues": {},
        "dispatcher": {"tick_age_seconds": None},
        "beat": {"tick_age_seconds": None},
    }
    assert (ready_answer.status_code, ready_answer.content) == (503, b"PostgreSQL does not answer.\n")
    assert alive_answer.status_code == 200


def test_a_frozen_postgres_holds_nobody_up(client: Client, postgres_server: Server) -> None:
    connection.close()
    postgres_server.freeze()
    answer = client.get("/health")
    postgres_server.thaw()
    assert answer.status_code == 503
    assert answer.json()["reasons"] == ["PostgreSQL does not answer within 3 s."]


def test_ready_means_that_every_migration_is_applied(client: Client) -> None:
    assert client.get("/readyz").status_code == 200
    recorder = MigrationRecorder(connection)
    recorder.record_unapplied("jobs", "0001_initial")
    try:
        answer = client.get("/readyz")
    finally:
        recorder.record_applied("jobs", "0001_initial")
    assert (answer.status_code, answer.content) == (503, b"Migrations are not applied: jobs.0001_initial.\n")


def test_the_probes_only_answer_questions(client: Client) -> None:
    for path in ("/livez", "/readyz", "/health"):
        assert client.post(path).status_code == 405


@pytest.mark.parametrize("path", ["/health", "/readyz", "/livez"])
def test_a_wrong_method_is_told_as_one(path: str) -> None:
    answer = Client(enforce_csrf_checks=True).post(path)
    assert (answer.status_code, answer["Allow"]) == (405, "GET, HEAD")
