"""G19: whatever a task's body does, its run ends as what it is, and neither the next job nor the ledger notices."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Group

from jobs.models import Job, Worker
from tests import hostile_tasks, sample_tasks
from tests.guarantees.ledger import assert_ledger_consistent
from tests.processes import Processes
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

INCLUDE = ("tests.sample_tasks", "tests.hostile_tasks")
# Nothing is settled by the end of a lease.
ENV = {"JOBS_LEASE_SECONDS": "600", "JOBS_HEARTBEAT_SECONDS": "0.5"}
POOLS = ["prefork", "threads", pytest.param("solo", marks=pytest.mark.variant)]


def worker(processes: Processes, pool: str) -> Any:
    return processes.worker("default", pool=pool, concurrency=1, include=INCLUDE, env=ENV)


def all_have_ended() -> bool:
    return not Job.objects.filter(state__in=["waiting", "delayed", "active"]).exists()


def job_of(result: Any) -> Job:
    return Job.objects.get(pk=result.id)


@pytest.mark.parametrize("pool", POOLS)
def test_whatever_a_body_raises_is_the_failure_of_its_job_at_once(processes: Processes, pool: str) -> None:
    process = worker(processes, pool)
    raised = {
        (task.name, name): task.delay(name)
        for name in hostile_tasks.RAISED
        for task in (hostile_tasks.raises, hostile_tasks.raises_atomically)
    }
    last = sample_tasks.add.delay(1, 2)
    wait_until(all_have_ended)
    for (_, name), result in raised.items():
        job = job_of(result)
        assert (job.state, job.attempt, job.stalled_count) == ("failed", 1, 0)
        assert name in job.error
        assert "in _raise" in job.traceback or "sys.exit" in job.traceback
    assert "the library gives up" in job_of(raised[hostile_tasks.raises.name, "SystemExit"]).error
    assert job_of(last).state == "completed"
    assert not Group.objects.filter(name__startswith="raised").exists()
    assert process.status is None
    assert_ledger_consistent()


@pytest.mark.parametrize("pool", POOLS)
def test_what_a_body_leaves_on_its_connection_reaches_neither_its_end_nor_the_next_body(
    processes: Processes, pool: str
) -> None:
    process = worker(processes, pool)
    first = hostile_tasks.session_seen.delay()
    left, seen = {}, {}
    for what in hostile_tasks.LEFT:
        left[what] = hostile_tasks.leaves.delay(what)
        seen[what] = hostile_tasks.session_seen.delay()
    wait_until(all_have_ended)
    as_it_should_be = job_of(first).result
    assert as_it_should_be["search_path"] == '"$user", public'
    assert {what: job_of(result).result for what, result in seen.items()} == dict.fromkeys(seen, as_it_should_be)
    assert {what: (job_of(result).state, job_of(result).attempt) for what, result in left.items()} == dict.fromkeys(
        left, ("completed", 1)
    )
    assert process.output.count("started id=") == Job.objects.count()
    for what in ("a block", "BEGIN", "no autocommit", "an aborted transaction"):
        assert f"id={left[what].id} has left a transaction on the database 'default' open" in process.output
    assert not Group.objects.exists()
    assert_ledger_consistent()


@pytest.mark.parametrize("pool", POOLS)
def test_what_the_body_of_an_atomic_task_leaves_is_whole_or_nothing(processes: Processes, pool: str) -> None:
    process = worker(processes, pool)
    first = hostile_tasks.session_seen.delay()
    left, seen = {}, {}
    for what in hostile_tasks.LEFT:
        left[what] = hostile_tasks.leaves_atomically.delay(what)
        seen[what] = hostile_tasks.session_seen.delay()
    wait_until(all_have_ended)
    assert {what: job_of(result).result for what, result in seen.items()} == dict.fromkeys(seen, job_of(first).result)
    for what, result in left.items():
        job = job_of(result)
        kept = Group.objects.filter(name=f"kept with {what}").count()
        assert (job.attempt, job.stalled_count) == (1, 0)
        assert (job.state, kept) in [("completed", 1), ("failed", 0)], (what, job.error)
    failed = {what for what, result in left.items() if job_of(result).state == "failed"}
    # The table hides the ledger's own.
    assert failed == {"a block", "COMMIT", "no autocommit", "an aborted transaction", "temporary table"}
    assert process.output.count("started id=") == Job.objects.count()
    assert_ledger_consistent()


@pytest.mark.parametrize("pool", POOLS)
def test_an_atomic_task_whose_connection_does_not_outlive_its_body_comes_to_an_end(
    processes: Processes, tmp_path: Path, pool: str
) -> None:
    process = worker(processes, pool)
    # Soft limits strike in processes alone.
    ways = [how for how in hostile_tasks.LOST if pool == "prefork" or how != "catches its limit"]
    jobs = {how: hostile_tasks.loses_its_connection.delay(how, str(tmp_path / "runs")) for how in ways}
    after = sample_tasks.add.delay(1, 2)
    wait_until(all_have_ended, timeout=100)
    runs = Counter((tmp_path / "runs").read_text().splitlines())
    for how, result in jobs.items():
        job = job_of(result)
        # Where nobody knows why, the next run is counted as that after a death is.
        counted = 1 if how == "is ended by PostgreSQL" else 0
        assert (job.state, job.attempts.count(), runs[how]) == ("failed", counted + 1, counted + 1), (how, job.error)
        assert "connection" in job.error or "interrupted" in job.error
    assert not Group.objects.exists()
    assert job_of(after).state == "completed"
    assert process.status is None
    assert_ledger_consistent()


@pytest.mark.parametrize("pool", POOLS)
def test_what_a_body_changes_in_its_process_is_set_back(processes: Processes, pool: str) -> None:
    process = worker(processes, pool)
    before, changed, after = (
        hostile_tasks.surroundings_seen.delay(),
        hostile_tasks.changes_its_surroundings.delay(),
        hostile_tasks.surroundings_seen.delay(),
    )
    later = sample_tasks.run_for.delay(1.0)
    wait_until(all_have_ended)
    assert job_of(changed).result != job_of(before).result
    assert job_of(after).result == job_of(before).result
    assert job_of(later).state == "completed"
    assert f"completed id={changed.id}" in process.output
    assert_ledger_consistent()


@pytest.mark.parametrize("options", [(), ("--max-tasks-per-child=1",)], ids=["as usual", "a process for each job"])
def test_what_is_not_set_back_goes_with_its_process(processes: Processes, options: tuple[str, ...]) -> None:
    include = "--include=tests.hostile_tasks"
    processes.start("celery", "-A", "config", "worker", "--queues=default", "--concurrency=1", *options, include)
    before = hostile_tasks.process_seen.delay()
    hostile_tasks.changes_its_process.delay()
    after = hostile_tasks.process_seen.delay()
    wait_until(all_have_ended)
    first, second = job_of(before).result, job_of(after).result
    differing = {name for name, value in first.items() if second[name] != value}
    assert differing == (set() if options else set(first))
    assert_ledger_consistent()


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_body_that_forks_by_multiprocessing_needs_a_pool_of_threads(processes: Processes, pool: str) -> None:
    worker(processes, pool)
    job = job_of(hostile_tasks.forks.delay())
    wait_until(all_have_ended)
    job.refresh_from_db()
    if pool == "threads":
        assert (job.state, job.result) == ("completed", [1, 2])
    else:
        assert (job.state, "not allowed to have children" in job.error) == ("failed", True), job.error
    assert_ledger_consistent()


def test_a_pool_of_greenlets_is_refused_at_the_start(processes: Processes) -> None:
    pytest.importorskip("gevent")
    process = processes.worker("default", pool="gevent", waits=False)
    assert process.wait() != 0
    assert "celery.concurrency.gevent is no pool for the ledger: start the worker with --pool=prefork" in process.output
    assert not Worker.objects.exists()


@pytest.mark.parametrize("pool", ["prefork", pytest.param("threads", marks=pytest.mark.variant)])
@pytest.mark.parametrize("task", [hostile_tasks.calls_run, hostile_tasks.is_mixed], ids=lambda task: task.__name__)
def test_no_base_class_switches_off_what_the_ledger_does_around_a_body(
    processes: Processes, pool: str, task: Any
) -> None:
    process = worker(processes, pool)
    found = {}
    for what in ("returns", "fails", "replaces", "needs too much memory", "calls itself"):
        Group.objects.all().delete()
        result = task.delay(what)
        wait_until(all_have_ended)
        found[what] = (job_of(result).state, Group.objects.count(), job_of(result).error)
    assert found == {
        "returns": ("completed", 1, ""),
        "fails": ("failed", 0, "ValueError: fails"),
        "replaces": ("completed", 0, ""),
        "needs too much memory": ("failed", 0, "RuntimeError: Out of memory: needs too much memory"),
        "calls itself": ("completed", 1, ""),
    }
    waits = task.delay("is told to wait")
    wait_until(lambda: f"left id={waits.id}" in process.output)
    assert (job_of(waits).state, job_of(waits).attempt) == ("waiting", 1)
    assert process.status is None
