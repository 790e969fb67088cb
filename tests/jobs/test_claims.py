"""Claims over real SQL."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from django.db import connections
from django.db.models.functions import Now
from django.utils import timezone

from jobs import claims, settle
from jobs.models import Job, QueueControl
from tests.jobs.factories import claim_job, make_job, make_worker, state_of

LONG_AGO = datetime(1, 1, 1, tzinfo=UTC)


@pytest.mark.django_db
def test_a_claim_returns_the_arguments_of_the_row() -> None:
    job, worker = make_job(args=[1], kwargs={"when": timezone.now()}), make_worker()
    (claim,) = claims.claim({job.pk: "token"}, worker_id=worker.pk)
    assert (claim.args, claim.kwargs, claim.attempt, claim.max_attempts) == ([1], job.kwargs, 1, 3)
    assert state_of(job.pk) == "active"


@pytest.mark.django_db
def test_a_job_is_claimed_once() -> None:
    job, worker = make_job(), make_worker()
    claim_job(job, worker, "first")
    assert claims.claim({job.pk: "second"}, worker_id=worker.pk) == []


@pytest.mark.django_db(transaction=True)
def test_of_many_claims_at_one_moment_one_wins() -> None:
    job, worker = make_job(), make_worker()

    def attempt(number: int) -> int:
        try:
            return len(claims.claim({job.pk: f"token-{number}"}, worker_id=worker.pk))
        finally:
            connections.close_all()

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(40))) == 1


@pytest.mark.django_db
def test_a_token_is_good_for_one_claim_even_when_the_job_waits_again() -> None:
    job, worker = make_job(), make_worker()
    claim_job(job, worker, "claim")
    settle.hand_back(worker.pk)
    assert state_of(job.pk) == "waiting"
    assert claims.claim({job.pk: f"{worker.pk.hex}:claim"}, worker_id=worker.pk) == []


@pytest.mark.django_db
def test_a_claim_whose_answer_was_lost_finds_itself_when_repeated() -> None:
    job, worker = make_job(), make_worker()
    claim_job(job, worker, "claim")
    token = f"{worker.pk.hex}:claim"
    assert [claim.token for claim in claims.claim({job.pk: token}, worker_id=worker.pk, repeated=True)] == [token]


@pytest.mark.django_db
@pytest.mark.parametrize("queue", ["default", "email"])
@pytest.mark.parametrize("meanwhile", ["paused", "expired"])
def test_a_claim_whose_answer_was_lost_finds_itself_whatever_has_happened_meanwhile(queue: str, meanwhile: str) -> None:
    job, worker = make_job(queue=queue), make_worker()
    run = claim_job(job, worker)
    if meanwhile == "paused":
        QueueControl.objects.create(name=queue, paused_at=Now())
    else:
        Job.objects.update(expires_at=Now() - timedelta(seconds=1))
    found = claims.claim({job.pk: run.token}, worker_id=worker.pk, repeated=True)
    # Else it would be active, and nobody would run it: its worker has not heard of it.
    assert [claim.token for claim in found] == [run.token]


@pytest.mark.django_db
@pytest.mark.parametrize("state", ["delayed", "completed", "failed", "cancelled"])
def test_only_waiting_jobs_are_claimed(state: str) -> None:
    job, worker = make_job(state=state), make_worker()
    assert claims.claim({job.pk: "token"}, worker_id=worker.pk) == []


@pytest.mark.django_db
def test_an_expired_job_is_not_claimed() -> None:
    job, worker = make_job(expires_at=Now() - timedelta(seconds=1)), make_worker()
    assert claims.claim({job.pk: "token"}, worker_id=worker.pk) == []


@pytest.mark.django_db
def test_a_paused_queue_gives_no_jobs() -> None:
    job, worker = make_job(), make_worker()
    QueueControl.objects.create(name="default", paused_at=Now())
    assert claims.claim({job.pk: "token"}, worker_id=worker.pk) == []


@pytest.mark.django_db
def test_a_worker_that_was_given_up_claims_nothing() -> None:
    job, worker = make_job(), make_worker(dead_at=Now())
    assert claims.claim({job.pk: "token"}, worker_id=worker.pk) == []


@pytest.mark.django_db
def test_a_stranger_claims_nothing() -> None:
    assert claims.claim({make_job().pk: "token"}, worker_id=UUID(int=0)) == []


@pytest.mark.django_db
def test_many_jobs_are_claimed_in_one_statement() -> None:
    jobs, worker = [make_job() for _ in range(5)], make_worker()
    tokens = {job.pk: f"token-{number}" for number, job in enumerate(jobs)}
    claimed = claims.claim(tokens, worker_id=worker.pk)
    assert {claim.job_id: claim.token for claim in claimed} == tokens


@pytest.mark.django_db
def test_due_jobs_become_waiting_and_others_do_not() -> None:
    due = make_job(state="delayed", run_at=Now() - timedelta(seconds=1))
    later = make_job(state="delayed", run_at=Now() + timedelta(minutes=1))
    assert claims.promote_due(since=LONG_AGO, limit=10) == [claims.Due(due.pk, "default", due.priority, "")]
    assert (state_of(due.pk), state_of(later.pk)) == ("waiting", "delayed")


@pytest.mark.django_db
def test_six_hundred_expired_jobs_are_cancelled_in_words() -> None:
    Job.objects.bulk_create(
        Job(task="t", queue="default", state="waiting", expires_at=Now() - timedelta(seconds=1)) for _ in range(600)
    )
    assert len(claims.cancel_expired(since=LONG_AGO, limit=1000)) == 600
    assert set(Job.objects.values_list("state", "error")) == {
        ("cancelled", "It expired before a worker could start it.")
    }


@pytest.mark.django_db
def test_of_many_ends_in_one_statement_each_lands_where_its_run_owns_the_job_and_nothing_follows() -> None:
    worker = make_worker()
    runs = [claim_job(make_job(**fields), worker) for fields in ({}, {}, {"successor": {"task": "next"}}, {})]
    lost = runs[3]
    when = timezone.now()
    ends: dict[UUID, tuple[str, Any]] = {run.job_id: (run.token, {"when": when}) for run in runs}
    ends[runs[1].job_id] = (runs[1].token, None)
    ends[lost.job_id] = ("another run's", 1)
    assert claims.complete(ends) == {runs[0].job_id, runs[1].job_id}
    assert [state_of(run.job_id) for run in runs] == ["completed", "completed", "active", "active"]
    with_result, without = (Job.objects.get(pk=run.job_id) for run in runs[:2])
    assert with_result.result == {"when": when}
    assert without.result is None
    assert Job.objects.filter(pk=without.pk, result__isnull=True).exists()
    assert claims.complete(ends) == set()


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("statement", "parameters"),
    [
        (
            claims.CLAIM,
            {"tokens": ["token"], "worker_id": UUID(int=0), "tasks": None, "repeated": False, "paced_queues": []},
        ),
        (claims.COMPLETE, {"tokens": ["token"], "results": [None]}),
    ],
)
@pytest.mark.parametrize("state", ["waiting", "active"])
def test_a_run_finds_its_row_by_its_id_whatever_the_planner_believes_of_the_backlog(
    statement: str, parameters: dict[str, Any], state: str
) -> None:
    owner = {"worker_id": UUID(int=0), "claim_token": "other"} if state == "active" else {}
    Job.objects.bulk_create(
        Job(task="tests.sample_tasks.add", queue="default", state=state, **owner) for _ in range(1000)
    )
    with connections["default"].cursor() as cursor:
        # No statistics: those of an empty table would say the same, that next to nothing is in this state.
        cursor.execute(f"EXPLAIN {statement}", {"job_ids": [UUID(int=0)], **parameters})
        plan = "\n".join(row[0] for row in cursor.fetchall())
    assert "jobs_job_pkey" in plan
    assert "job_waiting" not in plan
    assert "job_active" not in plan
