"""When a process of the stack counts as ready."""

import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta

import pytest
from django.db.models.functions import Now

from devstack.readiness import beat_is_ready
from jobs.models import Duty
from tests.processes import database_url

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def pid() -> Iterator[int]:
    """A process that has just begun."""
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as process:
        yield process.pid
        process.kill()


def test_a_tick_of_the_beat_before_makes_no_beat_ready(pid: int) -> None:
    # Far enough back for the clock of processes, which counts from a boot time in whole seconds.
    Duty.objects.update_or_create(name="beat", defaults={"ticked_at": Now() - timedelta(seconds=5)})
    assert not beat_is_ready(database_url(), pid)
    Duty.objects.filter(name="beat").update(ticked_at=Now())
    assert beat_is_ready(database_url(), pid)


def test_a_process_that_is_gone_is_not_ready() -> None:
    Duty.objects.update_or_create(name="beat", defaults={"ticked_at": Now()})
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    assert not beat_is_ready(database_url(), gone.pid)
