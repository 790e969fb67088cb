"""G12: what an operator does holds over restarts of everything, is done once, and is recorded."""

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import redis
from django.conf import settings
from django.db import connections, transaction
from django.utils import timezone

from accounts.models import User
from devstack.throwaway import Server
from jobs import bulk_actions, selectors, services
from jobs.job_filter import JobFilter
from jobs.models import AuditEntry, Duty, Job, QueueControl, Worker
from tests import sample_tasks
from tests.guarantees.ledger import assert_ledger_consistent
from tests.jobs.factories import make_job
from tests.processes import Process, Processes
from tests.variants import POOLS, variant
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

AT_ONCE = {"JOBS_CANCEL_GRACE_SECONDS": "0.5"}
NEVER = {"JOBS_CANCEL_GRACE_SECONDS": "600"}


@pytest.fixture
def operator(transactional_db: None) -> User:
    return User.objects.create_user("operator@example.com", name="Operator", is_staff=True)


def state(job_id: str | UUID) -> str:
    return Job.objects.values_list("state", flat=True).get(pk=job_id)


def is_running(job_id: str) -> bool:
    return Job.objects.get(pk=job_id).progress_percent == 10


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def run_another_job() -> None:
    result = sample_tasks.add.delay(1, 2)
    wait_until(lambda: state(result.id) == "completed")


# -- Pausing -----------------------------------------------------------------------------------------------------------
def test_a_pause_holds_over_a_restart_of_everything_and_a_wiped_redis_and_nothing_is_lost(
    processes: Processes, operator: User, tmp_path: Path, postgres_server: Server, redis_server: Server
) -> None:
    file, gate = tmp_path / "lines", tmp_path / "gate"
    worker = processes.worker("default", "email")
    running = sample_tasks.wait_for_file.delay(str(gate))
    wait_until(lambda: is_running(running.id))
    paused = [sample_tasks.append_line.delay(str(file), f"before-{number}") for number in range(3)]
    services.pause_queue(queue="default", actor=operator)
    gate.touch()
    wait_until(lambda: state(running.id) == "completed")
    paused += [sample_tasks.append_line.delay(str(file), f"during-{number}") for number in range(3)]
    worker.kill()
    with redis.Redis.from_url(settings.REDIS_URL) as client:
        client.flushall()
    redis_server.restart()
    postgres_server.restart()
    connections.close_all()

    processes.worker("default", "email")
    other = sample_tasks.append_line.apply_async((str(file), "email"), queue="email")
    wait_until(lambda: state(other.id) == "completed")
    let_the_dispatcher_look_for(timedelta(seconds=2))
    assert [line.split()[:2] for line in lines(file)] == [["begin", "email"], ["end", "email"]]
    assert selectors.queue_statuses()["default"].paused == 6

    services.resume_queue(queue="default", actor=operator)
    wait_until(lambda: {state(job.id) for job in paused} == {"completed"})
    assert set(Counter(line.split()[1] for line in lines(file)).values()) == {2}
    assert len(lines(file)) == 2 * 7
    assert list(AuditEntry.objects.order_by("pk").values_list("what", flat=True)) == ["Paused.", "Resumed."]
    assert_ledger_consistent()


def test_a_pause_is_in_force_within_two_seconds_on_all_workers_under_load(processes: Processes, operator: User) -> None:
    # Five seconds of work at best, so that some is left two seconds after the pause.
    Job.objects.bulk_create(
        Job(task=sample_tasks.run_for.name, queue="default", state="waiting", args=[0.05]) for _ in range(400)
    )
    for _ in range(2):
        processes.worker("default", concurrency=2)
    wait_until(lambda: Job.objects.filter(state="completed").count() > 20)
    services.pause_queue(queue="default", actor=operator)
    paused_at = QueueControl.objects.get(name="default").paused_at
    wait_until(lambda: not Job.objects.filter(state="active").exists())
    let_the_dispatcher_look_for(timedelta(seconds=2))
    assert not Job.objects.filter(started_at__gt=paused_at + timedelta(seconds=2)).exists()
    assert Job.objects.filter(state="waiting").exists()
    services.resume_queue(queue="default", actor=operator)
    wait_until(lambda: Job.objects.filter(state="completed").count() == 400, timeout=60)
    assert_ledger_consistent()


def let_the_dispatcher_look_for(length: timedelta) -> None:
    """Long enough to do what it must not do."""
    # A worker that has just started makes the row before its first tick.
    begun = wait_until(_dispatcher_ticked_at)
    wait_until(lambda: (_dispatcher_ticked_at() or begun) > begun + length)


def _dispatcher_ticked_at() -> datetime | None:
    return Duty.objects.filter(name="dispatcher").values_list("ticked_at", flat=True).first()


# -- An operator who dies ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("before", "action", "entry"),
    [
        ("failed", "services.retry_job(job_id='{id}', actor='ada')", "Run again (was failed)."),
        ("cancelled", "services.retry_job(job_id='{id}', actor='ada')", "Run again (was cancelled)."),
        ("completed", "services.retry_job(job_id='{id}', actor='ada')", "Run again (was completed)."),
        ("delayed", "services.promote_job(job_id='{id}', actor='ada')", "Promoted"),
        ("failed", "services.edit_job(job_id='{id}', args=[1, 2], kwargs={{}}, actor='ada')", "Edited and run again"),
    ],
)
def test_what_was_committed_is_done_once_though_its_operator_dies_before_any_ring(
    processes: Processes, before: str, action: str, entry: str
) -> None:
    job = make_job(
        task=sample_tasks.add.name,
        args=[1] if "edit_job" in action else [1, 2],
        state=before,
        run_at=timezone.now() + timedelta(days=1) if before == "delayed" else timezone.now(),
    )
    act_and_die(processes, action.format(id=job.pk))
    assert state(job.pk) == "waiting"
    worker = processes.worker("default")
    wait_until(lambda: state(job.pk) == "completed")
    assert worker.output.count("started id=") == 1
    assert (Job.objects.get().result, AuditEntry.objects.get().actor_name) == (3, "ada")
    assert AuditEntry.objects.get().what.startswith(entry)
    assert_ledger_consistent()


def test_an_operator_who_dies_before_the_commit_has_done_nothing_and_left_no_record(processes: Processes) -> None:
    job = make_job(state="failed", error="broken")
    before = Job.objects.filter(pk=job.pk).values().get()
    for action in (
        f"services.retry_job(job_id='{job.pk}', actor='ada'); os._exit(9)",
        "services.pause_queue(queue='default', actor='ada'); os._exit(9)",
    ):
        act_and_die(processes, action)
    assert Job.objects.filter(pk=job.pk).values().get() == before
    assert not AuditEntry.objects.exists()
    assert not QueueControl.objects.filter(paused_at__isnull=False).exists()
    assert_ledger_consistent()


# -- Many at once ------------------------------------------------------------------------------------------------------
def test_operators_who_race_with_claims_ends_and_one_another_leave_every_job_whole(
    processes: Processes, operator: User
) -> None:
    for _ in range(2):
        processes.worker("default", concurrency=2, env=AT_ONCE)
    ids = [sample_tasks.run_for.delay(0.02).id for _ in range(120)]

    def press(action: Any, job_id: str) -> tuple[str, str] | None:
        try:
            action(job_id=job_id, actor=operator)
        except services.ActionRefused:
            return None
        finally:
            connections.close_all()
        return action.__name__, job_id

    wishes = [(action, job_id) for job_id in ids for action in (services.cancel_job, services.retry_job)]
    with ThreadPoolExecutor(max_workers=4) as pool:
        done = Counter(found for found in pool.map(lambda wish: press(*wish), wishes * 2) if found)
    wait_until(lambda: not Job.objects.filter(state__in=["waiting", "active", "delayed"]).exists(), timeout=90)
    assert {action for action, _ in done} == {"cancel_job", "retry_job"}
    recorded = Counter(
        ("cancel_job" if what.startswith("Cancelled") else "retry_job", thing_id)
        for what, thing_id in AuditEntry.objects.values_list("what", "thing_id")
    )
    assert recorded == done
    assert_ledger_consistent()


@pytest.mark.parametrize(
    ("kind", "changes", "deaths", "result"),
    [
        # In the middle of a batch, after the next two, at the beginning of another, and late.
        ("run again", None, ["act 1", "batch 2", "plain 1", "act 3", "plain 2"], 3),
        # Each job is acted on by itself.
        ("edit", {"x": 40}, ["act 1", "batch 2", "act 3", "act 7"], 42),
    ],
    ids=["run again", "edit"],
)
def test_an_action_on_many_jobs_whose_job_is_killed_again_and_again_acts_on_each_once(
    processes: Processes,
    operator: User,
    tmp_path: Path,
    kind: str,
    changes: dict[str, Any] | None,
    deaths: list[str],
    result: int,
) -> None:
    count = 43
    for number in range(count):
        # Every third has a key, and so is acted on by itself.
        key = None if number % 3 else f"key-{number}"
        make_job(task=sample_tasks.add.name, args=[1, 2], state="failed", error="SMTP time-out", dedup_key=key)
    other = make_job(state="failed", error="something else")
    kills = tmp_path / "kills"
    kills.write_text("\n".join(deaths))
    action = bulk_actions.request(kind=kind, wanted=JobFilter(error="time-out"), actor=operator, changes=changes)
    deadly: dict[str, Any] = {
        "include": ("tests.sample_tasks", "tests.killed_batches"),
        "env": {"KILLED_BATCHES": str(kills)},
    }
    worker = processes.worker("default", concurrency=2, **deadly)
    wait_until(lambda: not kills.read_text(), timeout=90)
    worker.kill()
    processes.worker("default", concurrency=2, **deadly)
    wait_until(lambda: state(action.job_id) == "completed", timeout=90)
    wait_until(lambda: Job.objects.filter(task=sample_tasks.add.name, state="completed").count() == count, timeout=90)
    action.refresh_from_db()
    assert (action.done_count, action.refused_count) == (count, 0)
    assert Job.objects.get(pk=action.job_id).result == {"done": count, "refused": 0, "refusals": []}
    entries = AuditEntry.objects.filter(thing_type="job", bulk_action=action)
    acted_on = Counter(entries.values_list("thing_id", flat=True))
    assert (len(acted_on), set(acted_on.values())) == (count, {1})
    assert set(Job.objects.exclude(pk__in=[action.job_id, other.pk]).values_list("result", flat=True)) == {result}
    assert state(other.pk) == "failed"
    assert_ledger_consistent()


# -- Cancelling --------------------------------------------------------------------------------------------------------
@POOLS
def test_what_was_claimed_ahead_begins_with_its_body_and_not_at_all_once_it_is_cancelled(
    processes: Processes, tmp_path: Path, pool: str
) -> None:
    path = tmp_path / "times"
    processes.worker("default", pool=pool, concurrency=1)
    cancelled_at: dict[str, float] = {}
    for _ in range(8):
        with transaction.atomic():
            for _ in range(30):
                sample_tasks.note_the_time.delay(str(path), 0.01)
            # While this one runs, those behind it are claimed: the worker takes it for as short as the others.
            sample_tasks.note_the_time.delay(str(path), 0.2)
            next_id = sample_tasks.note_the_time.delay(str(path), 0.01).id
            sample_tasks.note_the_time.delay(str(path), 0.01)
        wait_until(lambda next_id=next_id: state(next_id) != "waiting")  # type: ignore[misc]
        with suppress(services.ActionRefused):
            services.cancel_job(job_id=UUID(next_id), actor="test")
            cancelled_at[next_id] = time.time()
        wait_until(lambda: not Job.objects.filter(state__in=["waiting", "active"]).exists())
    began_at = {line.split()[0]: float(line.split()[1]) for line in lines(path)}
    assert cancelled_at
    # A job whose claim is some hundredths of a second old is not asked about once more.
    assert {pk: began_at[pk] - at for pk, at in cancelled_at.items() if began_at.get(pk, 0) > at + 0.1} == {}
    starts = Job.objects.filter(state="completed").values_list("pk", "started_at")
    assert {pk: lag for pk, at in starts if (lag := began_at[str(pk)] - at.timestamp()) > 0.1} == {}
    assert_ledger_consistent()


@pytest.mark.parametrize("asks", ["progress", "check_cancelled"])
@POOLS
def test_a_running_job_that_asks_is_told_and_stops_by_itself(
    processes: Processes, operator: User, tmp_path: Path, pool: str, asks: str
) -> None:
    file = tmp_path / "lines"
    worker = processes.worker("default", pool=pool, env=NEVER)
    result = sample_tasks.count_for_ever.delay(str(file), asks)
    wait_until(lambda: len(lines(file)) == 1)
    services.cancel_job(job_id=result.id, actor=operator)
    wait_until(lambda: len(lines(file)) == 2)
    (begun, told), pids = zip(*(line.split() for line in lines(file)), strict=True)
    assert (begun, told) == ("begin", "JobCancelled")
    run_another_job()
    assert state(result.id) == "cancelled"
    assert f"cancelled id={result.id}" in worker.output
    assert "is ended" not in worker.output
    if pool == "prefork":
        assert worker.children() == [int(pids[0])]
    assert_ledger_consistent()


def test_the_process_of_a_cancelled_job_that_goes_on_is_ended_and_its_neighbours_is_not(
    processes: Processes, operator: User, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    worker = processes.worker("default", concurrency=2, env=AT_ONCE)
    stubborn = sample_tasks.go_on_at_first.delay(str(tmp_path / "lines"), str(tmp_path / "never"))
    neighbour = sample_tasks.wait_for_file.delay(str(gate))
    wait_until(lambda: is_running(stubborn.id) and is_running(neighbour.id))
    (pid,) = (int(line.split()[1]) for line in lines(tmp_path / "lines"))
    services.cancel_job(job_id=stubborn.id, actor=operator)
    wait_until(lambda: pid not in worker.children())
    wait_until(lambda: len(worker.children()) == 2)
    run_another_job()
    gate.touch()
    wait_until(lambda: state(neighbour.id) == "completed")
    job = Job.objects.get(pk=stubborn.id)
    assert (job.state, job.stalled_count, job.error) == ("cancelled", 0, "Cancelled by operator@example.com.")
    assert job.attempts.get().outcome == "cancelled"
    assert f"id={stubborn.id} was cancelled and goes on" in worker.output
    assert_ledger_consistent()


def test_a_thread_that_goes_on_with_a_cancelled_job_counts_as_stuck(
    processes: Processes, operator: User, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    processes.worker("default", pool="threads", concurrency=3, env=AT_ONCE)
    result = sample_tasks.go_on_at_first.delay(str(tmp_path / "lines"), str(gate))
    wait_until(lambda: is_running(result.id))
    services.cancel_job(job_id=result.id, actor=operator)
    wait_until(lambda: Worker.objects.get().stuck_count == 1)
    run_another_job()
    gate.touch()
    wait_until(lambda: Worker.objects.get().stuck_count == 0)
    assert state(result.id) == "cancelled"
    assert_ledger_consistent()


@POOLS
def test_a_job_that_is_cancelled_and_run_again_at_once_runs_beside_its_old_run(
    processes: Processes, operator: User, tmp_path: Path, pool: str
) -> None:
    worker = processes.worker("default", pool=pool, concurrency=3, env=AT_ONCE)
    file = tmp_path / "lines"
    result = sample_tasks.go_on_at_first.delay(str(file), str(tmp_path / "never"))
    wait_until(lambda: is_running(result.id))
    services.cancel_job(job_id=result.id, actor=operator)
    services.retry_job(job_id=result.id, actor=operator)
    wait_until(lambda: state(result.id) == "completed")
    old, new = (int(line.split()[1]) for line in lines(file))
    if pool == "prefork":
        wait_until(lambda: old not in worker.children())
        assert new in worker.children()
    else:
        wait_until(lambda: Worker.objects.get().stuck_count == 1)
    run_another_job()
    assert state(result.id) == "completed"
    assert Job.objects.get(pk=result.id).result == f"ran by {new}"
    assert_ledger_consistent()


@pytest.mark.parametrize("task", [sample_tasks.write_atomically, variant(sample_tasks.write_fenced)])
def test_what_a_cancelled_run_wrote_in_its_transaction_is_rolled_back(
    processes: Processes, operator: User, tmp_path: Path, task: object
) -> None:
    gate = tmp_path / "gate"
    for grace in (NEVER, AT_ONCE):
        worker = processes.worker("default", env=grace)
        result = task.delay("cancelled", str(gate))  # type: ignore[attr-defined]
        wait_until(lambda result=result: Job.objects.get(pk=result.id).progress_percent == 50)  # type: ignore[misc]
        services.cancel_job(job_id=result.id, actor=operator)
        if grace is NEVER:
            gate.touch()
        run_another_job()
        assert state(result.id) == "cancelled"
        assert sample_tasks.effects() == 0
        gate.unlink(missing_ok=True)
        worker.terminate()
        worker.wait()
    assert_ledger_consistent()


def test_a_run_that_is_cancelled_while_redis_is_away_is_ended_once_it_is_back(
    processes: Processes, operator: User, tmp_path: Path, redis_server: Server
) -> None:
    worker = processes.worker("default", env=AT_ONCE)
    result = sample_tasks.go_on_at_first.delay(str(tmp_path / "lines"), str(tmp_path / "never"))
    wait_until(lambda: is_running(result.id))
    (pid,) = worker.children()
    redis_server.stop()
    services.cancel_job(job_id=result.id, actor=operator)
    let_the_dispatcher_look_for(timedelta(seconds=2))
    redis_server.start()
    wait_until(lambda: pid not in worker.children(), timeout=60)
    run_another_job()
    assert (state(result.id), Job.objects.get(pk=result.id).stalled_count) == ("cancelled", 0)
    assert_ledger_consistent()


def test_a_cancellation_outlives_its_operator_and_the_worker_that_was_to_carry_it_out(
    processes: Processes, operator: User, tmp_path: Path
) -> None:
    worker = processes.worker("default", env=AT_ONCE)
    result = sample_tasks.go_on_at_first.delay(str(tmp_path / "lines"), str(tmp_path / "never"))
    wait_until(lambda: is_running(result.id))
    worker.freeze()
    act_and_die(processes, f"services.cancel_job(job_id={result.id!r}, actor='operator')")
    worker.kill()
    processes.worker("default", env=AT_ONCE)
    run_another_job()
    assert state(result.id) == "cancelled"
    assert len(lines(tmp_path / "lines")) == 1
    assert AuditEntry.objects.get().what == "Cancelled (was active)."
    assert_ledger_consistent()


def act_and_die(processes: Processes, action: str) -> Process:
    """Somebody acts, and dies right after the commit, before any hint."""
    script = processes.start("tests.script", env={"SCRIPT": ACT_AND_DIE.format(action=action)})
    assert script.wait() == 9
    return script


ACT_AND_DIE = """
import os
import django
django.setup()
from django.db import transaction
from jobs import services
from tests import sample_tasks
with transaction.atomic():
    transaction.on_commit(lambda: os._exit(9))
    {action}
"""
