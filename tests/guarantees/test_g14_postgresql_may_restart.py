"""G14: PostgreSQL may restart; workers, beat and dispatcher go on by themselves, and nothing is lost."""

import httpx
import pytest
from django.db import connection, connections
from pytest_django.live_server_helper import LiveServer

from devstack.throwaway import Server
from jobs.models import Duty, Job, Worker
from tests import sample_tasks
from tests.guarantees.ledger import assert_ledger_consistent
from tests.processes import Processes
from tests.variants import POOLS
from tests.waiting import wait_until

COUNT = 300
_BREAK_ALL_OTHERS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
"""

# A pooler goes on to say for a while that PostgreSQL is away.
pytestmark = pytest.mark.asks_postgresql_itself


@pytest.fixture(autouse=True)
def _fresh_connections() -> None:
    """What a test leaves of its connections to a server that was restarted."""
    connections.close_all()


@pytest.mark.django_db(transaction=True)
@POOLS
def test_every_job_is_done_once_though_postgresql_restarts_twice_under_load(
    processes: Processes, postgres_server: Server, pool: str
) -> None:
    for number in range(COUNT):
        sample_tasks.write_after_a_while.delay(f"effect-{number}")
    workers = [processes.worker("default", concurrency=2, pool=pool) for _ in range(2)]
    beat = processes.start("celery", "-A", "config", "beat")
    wait_until(lambda: Job.objects.filter(state="completed").count() > 10, timeout=60)
    for share in (0.2, 0.5):
        postgres_server.restart()
        connections.close_all()
        wait_until(lambda share=share: Job.objects.filter(state="completed").count() > COUNT * share, timeout=90)  # type: ignore[misc]
    wait_until(lambda: Job.objects.filter(state="completed").count() == COUNT, timeout=90)
    ticked_at = wait_until(lambda: Duty.objects.filter(name="beat").values_list("ticked_at").first(), timeout=60)
    wait_until(lambda: Duty.objects.values_list("ticked_at").get(name="beat") > ticked_at, timeout=30)
    assert [process.status for process in (*workers, beat)] == [None, None, None]
    assert sample_tasks.effects() == COUNT
    assert_ledger_consistent()


@pytest.mark.django_db(transaction=True)
@POOLS
def test_every_job_is_done_once_though_all_connections_are_broken_again_and_again(
    processes: Processes, pool: str
) -> None:
    for number in range(COUNT):
        sample_tasks.write_after_a_while.delay(f"effect-{number}")
    workers = [processes.worker("default", concurrency=2, pool=pool) for _ in range(2)]
    beat = processes.start("celery", "-A", "config", "beat")
    for tenth in range(1, 10):
        wait_until(
            lambda tenth=tenth: Job.objects.filter(state="completed").count() > COUNT * tenth / 10,  # type: ignore[misc]
            timeout=90,
        )
        with connection.cursor() as cursor:
            cursor.execute(_BREAK_ALL_OTHERS)
    wait_until(lambda: Job.objects.filter(state="completed").count() == COUNT, timeout=90)
    assert [process.status for process in (*workers, beat)] == [None, None, None]
    assert sample_tasks.effects() == COUNT
    assert_ledger_consistent()


@pytest.mark.django_db(transaction=True)
def test_an_end_that_cannot_be_written_at_once_is_written_when_postgresql_is_back(
    processes: Processes, postgres_server: Server
) -> None:
    worker = processes.worker("default", env={"JOBS_LEASE_SECONDS": "60"})
    result = sample_tasks.run_for.delay(1.5)
    wait_until(lambda: Job.objects.get(pk=result.id).state == "active")
    postgres_server.stop()
    connections.close_all()
    wait_until(lambda: "PostgreSQL does not answer" in worker.output)
    postgres_server.start()
    wait_until(lambda: Job.objects.get(pk=result.id).state == "completed", timeout=30)
    assert Job.objects.get(pk=result.id).stalled_count == 0
    assert worker.output.count("started id=") == 1
    assert_ledger_consistent()


@pytest.mark.django_db(transaction=True)
def test_workers_outlive_an_outage_that_is_longer_than_their_lease(
    processes: Processes, postgres_server: Server
) -> None:
    leases = {"JOBS_LEASE_SECONDS": "2", "JOBS_HEARTBEAT_SECONDS": "0.5"}
    workers = [processes.worker("default", env=leases) for _ in range(2)]
    result = sample_tasks.run_for.delay(1)
    wait_until(lambda: Job.objects.get(pk=result.id).state == "active")
    postgres_server.stop()
    connections.close_all()
    # Five heartbeats are more than a lease.
    wait_until(lambda: all(worker.output.count("jobs-lease: PostgreSQL does not answer") >= 5 for worker in workers))
    postgres_server.start()
    other = sample_tasks.add.delay(1, 2)
    wait_until(lambda: Job.objects.filter(state="completed").count() == 2, timeout=40)
    assert [worker.status for worker in workers] == [None, None]
    assert Worker.objects.filter(dead_at__isnull=True).count() == 2
    assert Job.objects.get(pk=other.id).result == 3
    assert_ledger_consistent()


@pytest.mark.django_db(transaction=True)
def test_the_web_says_503_while_postgresql_is_away_and_recovers(
    live_server: LiveServer, postgres_server: Server
) -> None:
    body = {"email": "ada@example.org", "name": "Ada", "password": "correct horse battery"}
    postgres_server.stop()
    connections.close_all()
    answer = httpx.post(f"{live_server.url}/signup", json=body, timeout=30)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    postgres_server.start()
    assert httpx.post(f"{live_server.url}/signup", json=body, timeout=30).status_code == 201
