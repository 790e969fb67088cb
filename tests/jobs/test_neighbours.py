"""Workers of the same host: whose process is gone is given up, and nobody else."""

import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import psutil
import pytest
from django.db import connections

from jobs.dispatcher import neighbours
from jobs.models import Attempt, Duty, Worker
from jobs.worker import identity, process
from tests.jobs.factories import claim_job, make_job, make_worker, state_of
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(not process.pid_space(), reason="only Linux tells which processes live")


@pytest.fixture(autouse=True)
def _as_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "_incarnation", uuid4())


@pytest.fixture
def child() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that does nothing."""
    with subprocess.Popen(["sleep", "600"]) as running:
        yield running
        running.kill()


def make_neighbour(pid: int, **fields: Any) -> Worker:
    known = {"pid_space": process.pid_space(), "pid_started_ticks": process.started_ticks(pid)}
    return make_worker(pid=pid, **{**known, **fields})


def is_given_up(worker: Worker) -> bool:
    neighbours.run_once()
    return Worker.objects.get(pk=worker.pk).dead_at is not None


@pytest.mark.django_db
def test_a_process_that_lives_or_is_frozen_is_left_alone(child: "subprocess.Popen[bytes]") -> None:
    worker = make_neighbour(child.pid)
    assert not is_given_up(worker)
    child.send_signal(signal.SIGSTOP)
    wait_until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_STOPPED)
    assert not is_given_up(worker)


@pytest.mark.django_db
@pytest.mark.parametrize("reaped", [False, True], ids=["zombie", "reaped"])
def test_a_process_that_was_killed_is_given_up_with_its_jobs_and_its_leadership(
    child: "subprocess.Popen[bytes]", reaped: bool
) -> None:
    worker = make_neighbour(child.pid)
    Duty.objects.create(name="dispatcher", holder_id=worker.pk, lease_expires_at=worker.lease_expires_at)
    job = make_job()
    claim_job(job, worker)
    child.kill()
    if reaped:
        child.wait()
    else:
        wait_until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)
    assert is_given_up(worker)
    assert state_of(job.pk) == "waiting"
    assert Duty.objects.get().holder_id is None


@pytest.mark.django_db
def test_another_process_that_got_the_pid_does_not_count(child: "subprocess.Popen[bytes]") -> None:
    assert is_given_up(make_neighbour(child.pid, pid_started_ticks=1))


@pytest.mark.django_db
def test_who_this_process_was_before_it_replaced_itself_is_given_up() -> None:
    assert is_given_up(make_neighbour(os.getpid()))


@pytest.mark.django_db
@pytest.mark.parametrize("space", ["", "another boot/pid:[1]"], ids=["unknown", "another"])
def test_pids_of_another_host_mean_nothing(child: "subprocess.Popen[bytes]", space: str) -> None:
    worker = make_neighbour(child.pid, pid_space=space)
    child.kill()
    child.wait()
    assert not is_given_up(worker)


@pytest.mark.django_db
def test_a_process_of_another_user_that_shows_nothing_of_itself_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def belongs_to_another(pid: int, sign: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", belongs_to_another)
    monkeypatch.setattr(process, "_stat", lambda pid: None)
    assert not is_given_up(make_neighbour(4_000_000))


@pytest.mark.django_db(transaction=True)
def test_two_that_look_at_once_give_it_up_once(child: "subprocess.Popen[bytes]") -> None:
    worker = make_neighbour(child.pid, concurrency=20)
    jobs = [make_job() for _ in range(20)]
    for job in jobs:
        claim_job(job, worker, name=str(job.pk))
    child.kill()
    child.wait()

    def look(_: int) -> None:
        neighbours.run_once()
        connections.close_all()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(look, range(4)))
    assert {state_of(job.pk) for job in jobs} == {"waiting"}
    assert Attempt.objects.filter(outcome="stalled").count() == len(jobs)
