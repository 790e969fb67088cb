"""A worker's look at itself."""

from collections.abc import Iterator

import pytest

from jobs import settle
from jobs.models import Job, Worker
from jobs.settle import Run
from jobs.worker import identity
from jobs.worker.audit import Audit
from jobs.worker.requests import arriving, claimed
from tests.jobs.connections import another_connection
from tests.jobs.factories import claim_job, make_job, make_worker, state_of

pytestmark = pytest.mark.django_db


@pytest.fixture
def worker(db: None) -> Iterator[Worker]:
    """This process is that worker, and has claimed nothing before."""
    worker = make_worker()
    claimed.clear()
    with identity.assumed(worker.pk):
        yield worker
    claimed.clear()
    arriving.clear()


def claim(worker: Worker) -> Run:
    """A claim that the worker has noted, as it does with each."""
    job = make_job()
    run = claim_job(job, worker, str(job.pk))
    claimed[run.token] = run.job_id
    return run


def look_twice(audit: Audit) -> None:
    """Two looks, between which half a lease has passed."""
    audit.run_once()
    audit._since = {token: since - 1000 for token, since in audit._since.items()}
    audit.run_once()


def test_a_job_that_its_worker_owns_and_does_not_run_is_run_again(worker: Worker) -> None:
    run = claim(worker)
    look_twice(Audit())
    job = Job.objects.get(pk=run.job_id)
    assert (job.state, job.stalled_count) == ("waiting", 1)
    assert job.attempts.get().error == "its worker has no run of it any more"
    assert claimed == {}


@pytest.mark.django_db(transaction=True)
def test_a_job_that_somebody_has_locked_is_looked_at_again(worker: Worker) -> None:
    run, audit = claim(worker), Audit()
    with another_connection() as other:
        with other.cursor() as cursor:
            cursor.execute("SELECT FROM jobs_job WHERE id = %s FOR UPDATE", [run.job_id])
        look_twice(audit)
        assert (state_of(run.job_id), claimed) == ("active", {run.token: run.job_id})
        other.commit()
    audit.run_once()
    assert (state_of(run.job_id), claimed) == ("waiting", {})


def test_one_look_is_not_enough(worker: Worker) -> None:
    run = claim(worker)
    audit = Audit()
    for _ in range(3):
        audit.run_once()
    assert state_of(run.job_id) == "active"


def test_what_is_on_its_way_to_the_pool_or_runs_there_is_left_alone(worker: Worker) -> None:
    run, lost = claim(worker), claim(worker)
    arriving[run.token] = None  # type: ignore[assignment]  # only its key counts
    audit = Audit()
    look_twice(audit)
    assert (state_of(run.job_id), state_of(lost.job_id)) == ("active", "waiting")
    # Its end begins to count when it has left the pool.
    del arriving[run.token]
    audit.run_once()
    assert state_of(run.job_id) == "active"


def test_what_has_ended_is_never_asked_for_again(worker: Worker) -> None:
    runs = [claim(worker) for _ in range(3)]
    for run in runs:
        assert settle.complete(run, result=None)
    look_twice(Audit())
    assert {state_of(run.job_id) for run in runs} == {"completed"}
    assert claimed == {}


def test_a_job_that_another_worker_runs_by_now_is_left_to_it(worker: Worker) -> None:
    run = claim(worker)
    settle.lose(Job.objects.filter(pk=run.job_id), evidence="it was silent")
    other = claim_job(Job.objects.get(pk=run.job_id), make_worker(), "other")
    look_twice(Audit())
    assert other.row().exists()
    assert Job.objects.get(pk=run.job_id).stalled_count == 1


def test_many_at_once_are_settled_in_parts(worker: Worker) -> None:
    runs = [claim(worker) for _ in range(450)]
    audit = Audit()
    look_twice(audit)
    for _ in range(2):
        audit.run_once()
    assert set(Job.objects.values_list("state", flat=True)) == {"waiting"}
    assert Job.objects.count() == len(runs)
    assert claimed == {}


def test_after_an_outage_runs_get_the_time_to_write_their_ends(worker: Worker) -> None:
    run, audit = claim(worker), Audit()
    audit.run_once()
    audit._since = {token: since - 1000 for token, since in audit._since.items()}
    audit.wait()
    audit.run_once()
    assert state_of(run.job_id) == "active"
