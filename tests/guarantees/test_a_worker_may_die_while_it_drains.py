"""The deaths of G03, G04, G10, G11 and G15 once more, of workers that drain: they have got SIGTERM, and finish jobs."""

from pathlib import Path

import pytest
from django.contrib.auth.models import Group

from accounts import services
from jobs.models import Job, Worker
from notifications.models import EmailLog
from tests import often_killed, sample_tasks
from tests.guarantees.ledger import assert_ledger_consistent
from tests.processes import Process, Processes
from tests.smtp import SmtpServer
from tests.waiting import wait_until

pytestmark = [pytest.mark.variant, pytest.mark.timeout(300), pytest.mark.django_db(transaction=True)]
POOLS = pytest.mark.parametrize("pool", ["prefork", "threads"])
KILLS = 50


def has_begun(*results: object) -> bool:
    ids = [result.id for result in results]  # type: ignore[attr-defined]
    return Job.objects.filter(pk__in=ids, state="active", progress_percent=10).count() == len(ids)


def all_completed() -> bool:
    return not Job.objects.exclude(state="completed").exists()


def die(victim: Process, how: str) -> None:
    if how == "killed":
        victim.kill()
    else:
        victim.freeze()


@POOLS
@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_its_jobs_run_elsewhere_and_it_writes_nothing_more(
    processes: Processes, tmp_path: Path, pool: str, how: str
) -> None:
    gate = tmp_path / "gate"
    victim = processes.worker("default", pool=pool, concurrency=2)
    Worker.objects.update(pid_space="another host")
    results = [sample_tasks.wait_for_file.delay(str(gate)) for _ in range(2)]
    wait_until(lambda: has_begun(*results))
    victim.drain()
    die(victim, how)
    processes.worker("default", pool=pool, concurrency=2)
    wait_until(lambda: Job.objects.filter(stalled_count=1).count() == 2, timeout=60)
    wait_until(lambda: has_begun(*results))
    gate.touch()
    wait_until(lambda: Job.objects.filter(state="completed").count() == 2)
    before = list(Job.objects.order_by("pk").values())
    if how == "frozen":
        victim.thaw()
        victim.wait()
    assert list(Job.objects.order_by("pk").values()) == before
    assert set(Job.objects.values_list("attempt", "stalled_count")) == {(1, 1)}
    assert_ledger_consistent()


def test_the_job_of_a_killed_pool_process_goes_to_another_worker_and_the_main_process_ends(
    processes: Processes, tmp_path: Path
) -> None:
    lease, gate = {"JOBS_LEASE_SECONDS": "600", "JOBS_GRACE_SECONDS": "600"}, tmp_path / "gate"
    victim = processes.worker("default", env=lease)
    result = sample_tasks.wait_for_file.delay(str(gate))
    wait_until(lambda: has_begun(result))
    victim.drain()
    victim.kill_child()
    assert victim.wait() == 0
    gate.touch()
    processes.worker("default", env=lease)
    wait_until(lambda: Job.objects.get(pk=result.id).state == "completed")
    assert Job.objects.get().attempts.get().error.startswith("WorkerLostError: Worker exited prematurely: signal 9")
    assert_ledger_consistent()


@POOLS
@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_an_effect_in_an_open_transaction_is_there_once(
    processes: Processes, tmp_path: Path, pool: str, how: str
) -> None:
    gate = tmp_path / "gate"
    victim = processes.worker("default", pool=pool)
    result = sample_tasks.write_atomically.delay("effect", str(gate))
    wait_until(lambda: Job.objects.get(pk=result.id).progress_message == "written")
    victim.drain()
    die(victim, how)
    processes.worker("default", pool=pool)
    wait_until(lambda: Job.objects.get(pk=result.id).stalled_count == 1, timeout=60)
    gate.touch()
    wait_until(lambda: Job.objects.get(pk=result.id).state == "completed", timeout=60)
    if how == "frozen":
        victim.thaw()
        victim.wait()
    assert Group.objects.count() == 1
    assert_ledger_consistent()


def test_its_slot_of_a_concurrency_key_is_given_back(processes: Processes, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    victim = processes.worker("default")
    held, waiting = (sample_tasks.wait_for_file.apply_async((str(gate),), concurrency_key="user:42") for _ in range(2))
    wait_until(lambda: has_begun(held))
    victim.drain()
    victim.kill()
    processes.worker("default")
    wait_until(lambda: Job.objects.get(pk=held.id).stalled_count == 1)
    gate.touch()
    wait_until(lambda: Job.objects.filter(state="completed").count() == 2)
    assert Job.objects.get(pk=waiting.id).started_at >= Job.objects.get(pk=held.id).finished_at
    assert_ledger_consistent()


@POOLS
def test_the_mail_that_its_server_holds_is_sent_once(processes: Processes, smtp_server: SmtpServer, pool: str) -> None:
    smtp_server.hold()
    victim = processes.worker("email", pool=pool)
    services.sign_up(email="ann@example.com", name="Ann", password="correct horse battery")
    wait_until(lambda: smtp_server.held_count == 1)
    victim.drain()
    victim.kill()
    # Before the server knows that the client is gone, it would take the mail.
    wait_until(lambda: smtp_server.held_count == 0)
    smtp_server.release()
    processes.worker("email", pool=pool)
    wait_until(all_completed, timeout=30)
    assert [mail.recipients for mail in smtp_server.mails] == [["ann@example.com"]]
    assert EmailLog.objects.get().state == EmailLog.State.SENT
    assert_ledger_consistent()


@pytest.mark.timeout(600)
def test_one_after_the_other_is_killed_while_it_drains_and_no_job_hangs_or_has_two_effects(
    processes: Processes,
) -> None:
    jobs = 0
    for number in range(KILLS):
        for _ in range(20):
            jobs += 1
            often_killed.write_at_once.delay(f"effect-{jobs}")
        victim = processes.worker("default", concurrency=4, include=["tests.often_killed"], env={"OFTEN_KILLED": "1"})
        wait_until(lambda: Job.objects.filter(state="active").exists() or all_completed())
        if number % 2:
            victim.drain()
        else:
            # At some moment between the signal and the end of what it does about it.
            victim.terminate()
        victim.kill()
    processes.worker("default", concurrency=4, include=["tests.often_killed"], env={"OFTEN_KILLED": "1"})
    wait_until(all_completed, timeout=120)
    assert Group.objects.count() == jobs
    assert_ledger_consistent()
