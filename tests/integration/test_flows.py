"""Flows on real workers that are killed: whoever dies at whatever point, what follows comes once."""

import re
from pathlib import Path
from uuid import uuid4

import pytest
from celery import chord
from django.contrib.auth.models import Group
from django.db import connection

from jobs import settle
from jobs.doorbell import Doorbell
from jobs.models import Flow, Job
from tests import crash_points, sample_tasks
from tests.guarantees.ledger import assert_ledger_consistent
from tests.jobs.connections import another_connection, over
from tests.jobs.factories import claim_job, make_worker
from tests.processes import Processes
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

OF_A_PART = ["claim: committed", "begin: before", "run: in the middle", "end: before", "end: written"]
OF_A_PARTS_END = ["answer: committed"]
OF_THE_FLOW = ["close: before", "release: before", "release: written", "close: committed"]
OF_THE_PARENT = ["hold: before", "hold: written", "hold: committed"]


def a_chord(name: str, points: Path, point: str) -> str:
    """A chord whose run dies at a point; returns the id of its body."""
    part, flow = str(uuid4()), str(uuid4())
    (points / (flow if point in OF_THE_FLOW else part)).write_text(point)
    parts = [crash_points.write_atomically.s(f"part {number} of {name}") for number in range(3)]
    parts[0].set(task_id=part)
    body = crash_points.write.si(name).set(task_id=str(uuid4()))
    return str(chord(parts, body, task_id=flow).apply_async().id)


def a_parent(name: str, points: Path, point: str) -> str:
    job_id = str(uuid4())
    (points / job_id).write_text(point)
    crash_points.split.apply_async((name,), task_id=job_id)
    return job_id


@pytest.mark.parametrize("victim", ["process", "worker"])
def test_what_follows_comes_once_wherever_a_run_dies(processes: Processes, tmp_path: Path, victim: str) -> None:
    points = tmp_path / "points"
    points.mkdir()
    bodies = {point: a_chord(point, points, point) for point in OF_A_PART + OF_A_PARTS_END + OF_THE_FLOW}
    bodies.update({point: a_parent(point, points, point) for point in OF_THE_PARENT})
    env = {"CRASH_POINTS": str(points), "CRASH_VICTIM": victim, "JOBS_LEASE_SECONDS": "2"}

    def all_completed() -> bool:
        if not processes.started or processes.started[-1].status is not None:
            # As a supervisor does.
            processes.worker("default", include=["tests.crash_points"], env=env, waits=False)
        return not Job.objects.exclude(state="completed").exists()

    wait_until(all_completed, timeout=100)
    assert list(points.iterdir()) == []
    output = "".join(process.output for process in processes.started)
    for point, job_id in bodies.items():
        assert (point, Group.objects.filter(name__startswith=f"{point} ").count()) == (point, 1)
        parts = [
            name[:6] for name in Group.objects.filter(name__contains=f" of {point}").values_list("name", flat=True)
        ]
        assert (point, sorted(parts)) == (point, ["part 0", "part 1", "part 2"])
        assert (point, len(re.findall(f"completed id={job_id}", output))) == (point, 1)
    assert not Flow.objects.filter(closed_at=None).exists()
    assert_ledger_consistent()


def test_parts_that_are_granted_several_times_count_once(processes: Processes, tmp_path: Path) -> None:
    file = tmp_path / "lines"
    parts = [sample_tasks.append_line.s(str(file), f"part {number}") for number in range(20)]
    result = chord(parts, sample_tasks.append_line.si(str(file), "body")).apply_async()
    for _ in range(2):
        processes.worker("default", concurrency=2)
    doorbell = Doorbell.patient()
    for _ in range(3):
        doorbell.grant(
            "default", dict(Job.objects.filter(state__in=["waiting", "active"]).values_list("pk", "priority")), most=50
        )
    doorbell.close()
    wait_until(lambda: Job.objects.get(pk=result.id).state == "completed", timeout=60)
    lines = file.read_text().splitlines()
    assert len([line for line in lines if line.startswith("begin")]) == 21
    assert lines[-2].startswith("begin body")
    assert_ledger_consistent()


def test_the_ends_of_two_members_do_not_wait_for_each_other() -> None:
    chord([sample_tasks.add.s(1, 1), sample_tasks.add.s(2, 2)], sample_tasks.add.s(3)).apply_async()
    worker = make_worker()
    runs = [claim_job(job, worker, str(job.pk)) for job in Job.objects.filter(state="waiting")]
    with another_connection() as other:
        with over(other):
            assert settle.fail(runs[0], error="still uncommitted")
        with settle.atomic():
            with connection.cursor() as cursor:
                cursor.execute("SET LOCAL lock_timeout = '1s'")
            assert settle.fail(runs[1], error="does not wait")
