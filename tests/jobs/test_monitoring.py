import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
from celery import current_app
from django.db.models.functions import Now

from devstack.throwaway import Server
from jobs.models import Job
from tests.processes import Processes
from tests.sample_tasks import add, count_for_ever, fail_for_good, go_on_at_first, retry_in, wait_for_file
from tests.waiting import wait_until


def ask_for_events() -> None:
    """As Flower does, again and again. Not by the pool's connection, which may be one to a Redis that was restarted."""
    with current_app.connection_for_write() as connection:
        assert current_app.control.enable_events(reply=True, timeout=20, limit=1, connection=connection)


@contextmanager
def monitor() -> Iterator[list[dict[str, Any]]]:
    """What a monitor such as Flower hears while the block runs."""
    heard: list[dict[str, Any]] = []
    with current_app.connection_for_read() as connection:
        receiver = current_app.events.Receiver(connection, handlers={"*": heard.append})
        thread = threading.Thread(target=receiver.capture, kwargs={"limit": None, "timeout": None})
        thread.start()
        try:
            yield heard
        finally:
            receiver.should_stop = True
            thread.join()


def test_monitors_that_ask_for_it_hear_of_each_step_of_a_job_also_after_redis_was_away(
    processes: Processes, redis_server: Server
) -> None:
    worker = processes.worker("default")
    ask_for_events()
    redis_server.restart()
    wait_until(lambda: worker.output.count("Connected to redis") == 2, timeout=30)
    with monitor() as heard:
        job = add.delay(1, 2)
        wanted = {"task-received", "task-started", "task-succeeded"}
        wait_until(lambda: wanted <= {event["type"] for event in heard if event.get("uuid") == job.id}, timeout=20)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_monitors_hear_how_far_a_job_is_and_then_its_result(processes: Processes, tmp_path: Path, pool: str) -> None:
    gate = tmp_path / "gate"
    processes.worker("default", pool=pool)
    ask_for_events()
    seen = current_app.events.State()
    with monitor() as heard:
        job = wait_for_file.delay(str(gate))
        wait_until(lambda: [event["result"] for event in heard if event["type"] == "task-progress"] == ["10 % waiting"])
        gate.touch()
        wait_until(lambda: "task-succeeded" in {event["type"] for event in heard if event.get("uuid") == job.id})
    for event in heard:
        seen.event(event)
        if event["type"] == "task-progress":
            # What Flower shows.
            assert (seen.tasks[job.id].state, seen.tasks[job.id].result) == ("PROGRESS", event["result"])
    assert (seen.tasks[job.id].state, seen.tasks[job.id].result) == ("SUCCESS", str(Job.objects.get().result))


def lines_of(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.mark.parametrize("pool", ["prefork", "threads", pytest.param("solo", marks=pytest.mark.variant)])
def test_events_and_signals_of_every_end_carry_the_jobs_own_id(processes: Processes, tmp_path: Path, pool: str) -> None:
    file = tmp_path / "signals"
    include = ("tests.sample_tasks", "tests.record_celery_signals")
    processes.worker("default", pool=pool, concurrency=2, include=include, env={"SIGNALS_FILE": str(file)})
    ask_for_events()
    begun = ["task-received", "task-started"]
    with monitor() as heard:
        jobs = {add.delay(1, 2).id: [*begun, "task-succeeded"] for _ in range(3)}
        jobs[fail_for_good.delay().id] = [*begun, "task-failed"]
        jobs[retry_in.delay(0).id] = [*begun, "task-retried", *begun, "task-succeeded"]
        wanted = sum(len(events) for events in jobs.values())
        wait_until(lambda: sum(event.get("uuid") in jobs for event in heard) >= wanted)
        wait_until(lambda: not Job.objects.filter(state__in=["waiting", "delayed", "active"]).exists())
    for job_id, events in jobs.items():
        # On a slow machine, a job may run for long enough to tell its progress.
        of_job = sorted(
            (event for event in heard if event.get("uuid") == job_id and event["type"] != "task-progress"),
            key=itemgetter("timestamp"),
        )
        assert Counter(event["type"] for event in of_job) == Counter(events)
    told = lines_of(file)
    assert {line["id"] for line in told} == set(jobs)
    # The id that a receiver is given, where the signal has one, and that of the task's request.
    assert all(line["told_id"] in (None, line["id"]) for line in told)
    ends = {"task-succeeded": "task_success", "task-failed": "task_failure", "task-retried": "task_retry"}
    for job_id, events in jobs.items():
        wanted_signals = [
            name for event in events if event in ends for name in ("task_prerun", ends[event], "task_postrun")
        ]
        assert [line["signal"] for line in told if line["id"] == job_id] == wanted_signals


def test_monitors_see_a_run_that_was_told_of_its_revocation_as_failed_and_one_that_was_ended_as_revoked(
    processes: Processes, tmp_path: Path
) -> None:
    processes.worker("default", concurrency=2, env={"JOBS_CANCEL_GRACE_SECONDS": "2"})
    ask_for_events()
    files = {"told": tmp_path / "told", "ended": tmp_path / "ended"}
    with monitor() as heard:
        told = count_for_ever.delay(str(files["told"]), "progress")
        ended = go_on_at_first.delay(str(files["ended"]), str(tmp_path / "never"))
        wait_until(lambda: all(file.exists() for file in files.values()))
        for result in (told, ended):
            result.revoke(terminate=True, signal="KILL")
        wanted = {(told.id, "task-failed"), (ended.id, "task-revoked")}
        wait_until(lambda: wanted <= {(event.get("uuid"), event["type"]) for event in heard})
    # It had the time to hear of it.
    assert [line.split()[0] for line in files["told"].read_text().splitlines()] == ["begin", "JobCancelled"]
    [failure] = [event for event in heard if event["type"] == "task-failed"]
    assert failure["exception"].startswith("JobCancelled(")
    assert [told.state, ended.state] == ["REVOKED", "REVOKED"]
    assert not any(event["type"] == "task-revoked" for event in heard if event.get("uuid") == told.id)


def active() -> list[dict[str, Any]]:
    """What `inspect active` says of the runs of all workers."""
    with current_app.connection_for_write() as connection:
        asked = current_app.control.inspect(timeout=3, connection=connection).active() or {}
    return [request for requests in asked.values() for request in requests]


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_job_that_has_run_for_half_a_second_is_among_the_active(
    processes: Processes, tmp_path: Path, pool: str
) -> None:
    processes.worker("default", pool=pool, concurrency=2)
    jobs = [wait_for_file.delay(str(tmp_path / "gate")).id for _ in range(2)]
    wait_until(lambda: Job.objects.filter(started_at__lt=Now() - timedelta(seconds=0.5)).count() == 2)
    assert {request["id"] for request in active()} == set(jobs)


def test_monitors_are_told_of_arguments_what_the_call_has_said(processes: Processes, tmp_path: Path) -> None:
    processes.worker("default")
    wait_for_file.apply_async((str(tmp_path / "gate"),), argsrepr="(a path)", kwargsrepr="{nothing}")
    wait_until(lambda: Job.objects.filter(started_at__lt=Now() - timedelta(seconds=0.5)).exists())
    assert [(request["args"], request["kwargs"]) for request in active()] == [("(a path)", "{nothing}")]
