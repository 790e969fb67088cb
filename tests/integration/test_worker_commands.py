"""Celery's commands to a worker, and its ways to change a pool, where workers claim from the table."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import current_app, shared_task
from django.conf import settings
from django.db import transaction

from jobs import services
from jobs.models import Job, Worker
from tests import sample_tasks
from tests.guarantees.ledger import assert_ledger_consistent
from tests.processes import Processes
from tests.variants import POOLS, variant
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


@shared_task(queue="default")
def wait_for_file_with(path: str, password: Any, text: Any) -> None:
    while not Path(path).exists():
        time.sleep(0.05)


def inspect(method: str) -> dict[str, Any]:
    """What all workers answer."""
    asked: Callable[[], dict[str, Any] | None] = getattr(current_app.control.inspect(timeout=2), method)
    return asked() or {}


def running(file: Path) -> str:
    """A job that runs until the file is there; returns its id."""
    result = sample_tasks.wait_for_file.delay(str(file))
    wait_until(lambda: Job.objects.get(pk=result.id).progress_percent == 10)
    return str(result.id)


def state_of(job_id: str) -> str:
    return Job.objects.values_list("state", flat=True).get(pk=job_id)


@POOLS
def test_a_running_job_is_among_the_active_under_its_own_id_with_its_arguments(
    processes: Processes, tmp_path: Path, pool: str
) -> None:
    processes.worker("default", pool=pool, concurrency=2)
    job_id = running(tmp_path / "gate")
    [active] = [request for requests in inspect("active").values() for request in requests]
    assert (active["id"], active["name"]) == (job_id, sample_tasks.wait_for_file.name)
    assert str(tmp_path / "gate") in active["args"]
    (tmp_path / "gate").touch()
    wait_until(lambda: state_of(job_id) == "completed")
    assert_ledger_consistent()


def test_revoke_cancels_in_the_ledger_and_leaves_no_id_behind(processes: Processes, tmp_path: Path) -> None:
    processes.worker("default", concurrency=1)
    job_id = running(tmp_path / "gate")
    waiting = str(sample_tasks.add.delay(1, 2).id)
    current_app.control.broadcast("revoke", arguments={"task_id": [waiting, job_id]}, reply=True, timeout=3)
    wait_until(lambda: [state_of(one) for one in (waiting, job_id)] == ["cancelled", "cancelled"])
    assert [ids for ids in inspect("revoked").values() if ids] == []
    (tmp_path / "gate").touch()
    assert_ledger_consistent()


def test_revoke_waits_for_no_transaction_that_has_the_job_locked(processes: Processes) -> None:
    processes.worker("default")
    locked = sample_tasks.add.apply_async((1, 2), countdown=3600).id
    free = sample_tasks.add.apply_async((1, 2), countdown=3600).id
    with transaction.atomic():
        Job.objects.select_for_update().get(pk=locked)
        arguments = {"task_id": [locked, free], "terminate": True}
        answers = current_app.control.broadcast("revoke", arguments=arguments, reply=True, timeout=5, limit=1)
        [answer] = [words for one in answers for words in one.values()]
        assert answer == {"ok": f"cancelled: {free}; locked, so later: {locked}; ended here: none"}
        assert state_of(locked) == "delayed"
    wait_until(lambda: state_of(locked) == state_of(free) == "cancelled")
    wait_until(lambda: [ids for ids in inspect("revoked").values() if ids] == [])


@POOLS
def test_a_job_that_was_revoked_before_it_was_there_is_cancelled_once_and_an_operator_may_run_it_again(
    processes: Processes, pool: str
) -> None:
    for _ in range(2):
        processes.worker("default", pool=pool)
    with transaction.atomic():
        late = sample_tasks.add.delay(1, 2)
        answers = current_app.control.broadcast("revoke", arguments={"task_id": late.id}, reply=True, timeout=3)
        assert len(answers) == 2
    wait_until(lambda: state_of(late.id) == "cancelled")
    services.retry_job(job_id=late.id, actor="test")
    wait_until(lambda: state_of(late.id) == "completed")
    wait_until(lambda: [ids for ids in inspect("revoked").values() if ids] == [])
    assert Job.objects.get(pk=late.id).stalled_count == 0
    assert_ledger_consistent()


def test_a_job_that_comes_late_and_never_to_a_worker_that_was_told_is_cancelled_and_forgotten(
    processes: Processes,
) -> None:
    processes.worker("default")
    with transaction.atomic():
        late = sample_tasks.add.apply_async((1, 2), queue="webhooks", countdown=3600)
        current_app.control.broadcast("revoke", arguments={"task_id": late.id}, reply=True, timeout=3)
    wait_until(lambda: state_of(late.id) == "cancelled")
    wait_until(lambda: [ids for ids in inspect("revoked").values() if ids] == [])
    assert_ledger_consistent()


def test_whatever_state_a_job_is_in_the_command_revoke_leaves_it_cancelled_or_as_it_was(
    processes: Processes, tmp_path: Path
) -> None:
    processes.worker("default", concurrency=1)
    ended = sample_tasks.add.delay(1, 2).id
    wait_until(lambda: state_of(ended) == "completed")
    ids = [
        running(tmp_path / "gate"),
        sample_tasks.add.delay(1, 2).id,
        sample_tasks.add.apply_async((1, 2), countdown=3600).id,
        ended,
    ]
    command = processes.start("celery", "-A", "config", "control", "--timeout=5", "revoke", *ids)
    assert command.wait() == 0, command.output
    wait_until(lambda: [state_of(one) for one in ids] == ["cancelled"] * 3 + ["completed"])
    assert [ids for ids in inspect("revoked").values() if ids] == []
    (tmp_path / "gate").touch()
    assert_ledger_consistent()


def test_a_command_to_revoke_by_stamps_cancels_what_has_them_and_no_neighbour(
    processes: Processes, tmp_path: Path
) -> None:
    processes.worker("default", concurrency=2)
    stamped = sample_tasks.wait_for_file.s(str(tmp_path / "never"))
    stamped.stamp(tenant="north")
    ended, neighbour = stamped.delay().id, running(tmp_path / "gate")
    wait_until(lambda: Job.objects.get(pk=ended).progress_percent == 10)
    arguments = {"headers": {"tenant": ["north"]}, "terminate": True, "signal": "KILL"}
    current_app.control.broadcast("revoke_by_stamped_headers", arguments=arguments, reply=True, timeout=5, limit=1)
    later = stamped.delay().id
    wait_until(lambda: [state_of(one) for one in (ended, later)] == ["cancelled", "cancelled"])
    (tmp_path / "gate").touch()
    wait_until(lambda: state_of(neighbour) == "completed")
    assert set(Job.objects.values_list("attempt", "stalled_count")) == {(1, 0)}
    assert_ledger_consistent()


def test_commands_that_would_change_limits_of_a_task_in_one_worker_are_refused(processes: Processes) -> None:
    processes.worker("default", pool="threads", concurrency=1)
    task = sample_tasks.enqueue_child
    said: dict[str, dict[str, Any]] = {"rate_limit": {"rate_limit": "1/h"}, "time_limit": {"soft": 7, "hard": 8}}
    for command, limits in said.items():
        arguments = {"task_name": task.name, **limits}
        [answer] = current_app.control.broadcast(command, arguments=arguments, reply=True, timeout=5, limit=1)
        assert "limits hold over all workers" in str([one["error"] for one in answer.values()])
    made_here = task.delay(1)
    wait_until(lambda: Job.objects.filter(parent_id=made_here.id, state="completed").exists())
    columns = ("rate_limit", "soft_time_limit_seconds", "time_limit_seconds", "lane")
    assert Job.objects.values(*columns).distinct().count() == 1
    assert_ledger_consistent()


def test_workers_show_arguments_shortened_and_without_secrets_and_nothing_as_scheduled(
    processes: Processes, tmp_path: Path
) -> None:
    processes.worker("default", concurrency=2, include=("tests.sample_tasks", "tests.integration.test_worker_commands"))
    wait_for_file_with.apply_async(kwargs={"path": str(tmp_path / "gate"), "password": "hunter2", "text": "x" * 9000})
    wait_for_file_with.delay(str(tmp_path / "gate"), {"api_key": "hunter2"}, ["y" * 9000])
    sample_tasks.add.apply_async((1, 2), countdown=3600)

    def active() -> list[dict[str, Any]]:
        return [one for found in inspect("active").values() for one in found]

    shown = wait_until(lambda: found if len(found := active()) == 2 else None)
    assert "hunter2" not in str(shown)
    for one in shown:
        assert max(len(one["args"]), len(one["kwargs"])) == 200
    assert [found for found in inspect("scheduled").values() if found] == []
    (tmp_path / "gate").touch()
    wait_until(lambda: Job.objects.filter(state="completed").count() == 2)
    assert_ledger_consistent()


def test_terminate_ends_the_run_and_no_neighbour(processes: Processes, tmp_path: Path) -> None:
    processes.worker("default", concurrency=2)
    ended, neighbour = running(tmp_path / "one"), running(tmp_path / "other")
    arguments = {"task_id": ended, "signal": "TERM"}
    [answer] = current_app.control.broadcast("terminate", arguments=arguments, reply=True, timeout=5)
    assert "ended here" in str(answer)
    assert state_of(ended) == "cancelled"
    (tmp_path / "other").touch()
    wait_until(lambda: state_of(neighbour) == "completed")
    after = sample_tasks.add.delay(1, 2)
    wait_until(lambda: state_of(after.id) == "completed")
    assert Job.objects.get(pk=neighbour).stalled_count == 0
    assert_ledger_consistent()


def test_queues_that_a_worker_gives_up_and_takes_again(processes: Processes) -> None:
    processes.worker("default", "webhooks", pool="threads", concurrency=2)
    current_app.control.cancel_consumer("webhooks", reply=True, timeout=3)
    left = sample_tasks.add.apply_async((1, 2), queue="webhooks")
    # Of a queue with limits, which the leader grants to workers that take from it.
    granted = sample_tasks.add.apply_async((1, 2), queue="email")
    other = sample_tasks.add.delay(1, 2)
    wait_until(lambda: state_of(other.id) == "completed")
    # More than a worker's look by itself takes.
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began > 2.5)
    assert state_of(left.id) == "waiting"
    for queue in ("webhooks", "email"):
        current_app.control.add_consumer(queue, reply=True, timeout=3)
    wait_until(lambda: state_of(left.id) == state_of(granted.id) == "completed")
    assert_ledger_consistent()


def test_a_pool_that_grows_and_shrinks_takes_as_many_jobs(processes: Processes, tmp_path: Path) -> None:
    processes.worker("default", concurrency=1)
    first = running(tmp_path / "gate")
    current_app.control.pool_grow(2, reply=True, timeout=3)
    others = [running(tmp_path / "gate") for _ in range(2)]
    wait_until(lambda: Worker.objects.get().concurrency == 3, timeout=settings.JOBS_HEARTBEAT_SECONDS * 20)
    (tmp_path / "gate").touch()
    wait_until(lambda: {state_of(job_id) for job_id in (first, *others)} == {"completed"})
    current_app.control.pool_shrink(2, reply=True, timeout=3)
    again = [sample_tasks.add.delay(1, 2) for _ in range(5)]
    wait_until(lambda: {state_of(one.id) for one in again} == {"completed"})
    assert_ledger_consistent()


def test_a_pool_that_scales_by_itself(processes: Processes, tmp_path: Path) -> None:
    processes.start(
        "celery", "-A", "config", "worker", "--queues=default", "--autoscale=3,1", "--include=tests.sample_tasks"
    )
    jobs = [running(tmp_path / "gate") for _ in range(3)]
    (tmp_path / "gate").touch()
    wait_until(lambda: {state_of(job_id) for job_id in jobs} == {"completed"})
    assert_ledger_consistent()


@pytest.mark.parametrize(("at_first", "then"), [(4, 1), variant(1, 4)])
def test_a_pool_that_is_told_how_far_to_scale_takes_as_many_jobs_and_leaves_the_others(
    processes: Processes, tmp_path: Path, at_first: int, then: int
) -> None:
    worker = processes.start(
        "celery",
        "-A",
        "config",
        "worker",
        "--queues=default",
        f"--autoscale={at_first},1",
        "--include=tests.sample_tasks",
        "--hostname=scaled@test",
    )
    wait_until(lambda: "scaled@test ready." in worker.output, timeout=60)
    told = current_app.control.broadcast("autoscale", arguments={"max": then, "min": 1}, reply=True, timeout=5)
    assert f"max={then}" in str(told)
    jobs = [sample_tasks.wait_for_file.delay(str(tmp_path / "gate")).id for _ in range(6)]
    begun = Job.objects.filter(progress_percent=10)
    wait_until(lambda: begun.count() == then)
    wait_until(lambda: Worker.objects.get().concurrency == then, timeout=settings.JOBS_HEARTBEAT_SECONDS * 20)
    assert Job.objects.filter(state="active").count() == then
    if then == 1:
        # What this worker leaves, another one takes.
        processes.worker("default", pool="threads", concurrency=5)
        wait_until(lambda: begun.count() == 6)
    (tmp_path / "gate").touch()
    wait_until(lambda: {state_of(job_id) for job_id in jobs} == {"completed"})
    assert_ledger_consistent()


@pytest.mark.parametrize("option", ["--max-tasks-per-child=2", variant("--max-memory-per-child=1000")])
def test_pool_processes_that_are_replaced_lose_nothing(processes: Processes, option: str) -> None:
    processes.start(
        "celery",
        "-A",
        "config",
        "worker",
        "--queues=default",
        "--concurrency=2",
        option,
        "--include=tests.sample_tasks",
    )
    jobs = [sample_tasks.add.delay(number, 1) for number in range(15)]
    wait_until(lambda: Job.objects.filter(state="completed").count() == len(jobs), timeout=60)
    assert not Job.objects.exclude(attempt=1, stalled_count=0).exists()
    assert_ledger_consistent()
