"""A job that is about to become a flow, when its connection to PostgreSQL breaks."""

from collections.abc import Iterator
from typing import Any

import pytest
from celery import shared_task
from celery.canvas import Signature
from django.contrib.auth.models import Group
from django.db import OperationalError, connection

from jobs.flows import fan_out
from jobs.models import Flow, Job
from jobs.testing import run_due_jobs
from tests.jobs.test_flows import listed, same

pytestmark = pytest.mark.django_db(transaction=True)

breaks: list[str] = []


def children(count: int) -> Iterator[Signature]:
    for number in range(count):
        if number == count // 2 and breaks:
            if breaks.pop() == "in its own query":
                kill_mine()
            else:
                with pytest.raises(OperationalError):
                    kill_mine()
        yield same.s(number)


def kill_mine() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")


@shared_task(bind=True)
def split(self: Any, count: int) -> Any:
    return fan_out(self, children(count), then=listed.s())


@shared_task(bind=True, atomic=True)
def split_atomically(self: Any, count: int) -> Any:
    Group.objects.create(name="effect")
    return fan_out(self, children(count), then=listed.s())


@pytest.mark.parametrize("where", ["in its own query", "between two children"])
@pytest.mark.parametrize("task", [split, split_atomically])
def test_children_from_a_generator_are_all_there_after_the_connection_broke(task: Any, where: str) -> None:
    breaks[:] = [where]
    result = task.delay(6)
    run_due_jobs()
    assert not breaks
    assert Job.objects.get(pk=result.id).result == [0, 1, 2, 3, 4, 5]
    assert Group.objects.count() == (1 if task is split_atomically else 0)
    assert Flow.objects.count() == 1
