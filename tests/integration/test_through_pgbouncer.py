"""The main path through PgBouncer in transaction mode, where each transaction may get another connection."""

from datetime import timedelta
from pathlib import Path

import pytest
from django.contrib.auth.models import Group
from django.db import connection, transaction
from django_celery_beat.models import IntervalSchedule

from accounts.models import User
from jobs import services
from jobs.models import Job, Tick, Worker
from tests import sample_tasks
from tests.guarantees.ledger import assert_ledger_consistent
from tests.jobs.cron.schedules import every, make_schedule
from tests.pgbouncer import SERVER_CONNECTIONS, PgBouncer
from tests.processes import Processes
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.variant,
    pytest.mark.timeout(300),
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("pgbouncer"),
]
POOLS = pytest.mark.parametrize("pool", ["prefork", "threads"])


def completed() -> int:
    return Job.objects.filter(state="completed").count()


def connections_to_the_server() -> int:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND backend_type = 'client backend'"
        )
        return int(cursor.fetchone()[0])


@POOLS
def test_jobs_are_enqueued_with_their_transaction_retried_and_completed(
    pgbouncer: PgBouncer, processes: Processes, pool: str
) -> None:
    with transaction.atomic():
        sample_tasks.add.delay(0, 0)
        transaction.set_rollback(True)
    with transaction.atomic():
        sums = [sample_tasks.add.delay(number, 1) for number in range(100)]
    retried = [sample_tasks.fail_until.delay(2), sample_tasks.write_atomically_and_retry.delay("effect")]
    delayed = sample_tasks.add.apply_async((1, 1), countdown=1)
    for _ in range(2):
        processes.worker("default", pool=pool, concurrency=4)
    wait_until(lambda: completed() == 103, timeout=60)
    assert Job.objects.count() == 103
    assert [Job.objects.get(pk=result.id).result for result in sums] == [number + 1 for number in range(100)]
    assert [Job.objects.get(pk=result.id).attempt for result in (*retried, delayed)] == [2, 3, 1]
    assert Group.objects.count() == 1
    # Two workers of four slots have more connections than these to PgBouncer.
    assert connections_to_the_server() <= SERVER_CONNECTIONS
    assert_ledger_consistent()


@POOLS
def test_limits_hold(pgbouncer: PgBouncer, processes: Processes, tmp_path: Path, pool: str) -> None:
    file = tmp_path / "lines"
    for number in range(20):
        sample_tasks.add.apply_async((number, 1), rate_key="tenant:1", rate_limit="5/s")
    for number in range(6):
        sample_tasks.append_line.apply_async((str(file), f"{number}", 0.1), concurrency_key="user:1")
    for _ in range(2):
        processes.worker("default", pool=pool, concurrency=4)
    wait_until(lambda: completed() == 26, timeout=60)
    moments = [job.started_at for job in Job.objects.filter(rate_key="tenant:1") if job.started_at]
    second = timedelta(seconds=1)
    assert max(sum(begin <= moment < begin + second for moment in moments) for begin in moments) <= 5
    assert [line.split()[0] for line in file.read_text().splitlines()] == ["begin", "end"] * 6
    assert_ledger_consistent()


@POOLS
@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_the_jobs_of_a_worker_that_dies_run_elsewhere_with_one_effect(
    pgbouncer: PgBouncer, processes: Processes, tmp_path: Path, pool: str, how: str
) -> None:
    gate = tmp_path / "gate"
    victim = processes.worker("default", pool=pool, concurrency=2)
    # The second one reports over another connection than that of its open transaction.
    results = [sample_tasks.wait_for_file.delay(str(gate)), sample_tasks.write_atomically.delay("effect", str(gate))]
    wait_until(lambda: Job.objects.filter(state="active", progress_percent__gt=0).count() == 2)
    # On its own host its death would be noticed at once; to others only the lease tells of it.
    Worker.objects.update(pid_space="another host")
    if how == "killed":
        victim.kill()
    else:
        victim.freeze()
    processes.worker("default", pool=pool, concurrency=2)
    wait_until(lambda: Job.objects.filter(stalled_count=1).count() == 2, timeout=60)
    wait_until(lambda: Job.objects.filter(state="active", progress_percent__gt=0).count() == 2, timeout=60)
    gate.touch()
    wait_until(lambda: completed() == 2, timeout=60)
    if how == "frozen":
        victim.thaw()
        victim.wait()
    assert Group.objects.count() == 1
    assert {Job.objects.get(pk=result.id).stalled_count for result in results} == {1}
    assert_ledger_consistent()


def test_an_operator_cancels_what_runs_and_a_worker_that_is_stopped_hands_the_rest_back(
    pgbouncer: PgBouncer, processes: Processes, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    operator = User.objects.create_superuser("ada@example.org", "x" * 12, name="Ada")
    worker = processes.worker("default", concurrency=2, env={"JOBS_GRACE_SECONDS": "0"})
    cancelled, kept = (sample_tasks.wait_for_file.delay(str(gate)) for _ in range(2))
    wait_until(lambda: Job.objects.filter(state="active", progress_percent__gt=0).count() == 2)
    services.cancel_job(job_id=cancelled.id, actor=operator)
    worker.terminate()
    assert worker.wait() == 0
    assert Job.objects.get(pk=kept.id).state == "waiting"
    gate.touch()
    processes.worker("default")
    wait_until(lambda: Job.objects.get(pk=kept.id).state == "completed")
    assert Job.objects.get(pk=cancelled.id).state == "cancelled"
    assert_ledger_consistent()


def test_each_tick_of_a_schedule_makes_one_job_while_two_beats_run(pgbouncer: PgBouncer, processes: Processes) -> None:
    make_schedule(interval=every(1, IntervalSchedule.SECONDS))
    processes.worker("default")
    for _ in range(2):
        processes.start("tests.beat")
    wait_until(lambda: Tick.objects.filter(outcome="enqueued").count() >= 5, timeout=60)
    wait_until(lambda: completed() >= 5)
    ticks = Tick.objects.filter(outcome="enqueued")
    assert len(set(ticks.values_list("scheduled_for", flat=True))) == ticks.count()
    assert_ledger_consistent()
