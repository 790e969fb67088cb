"""How many connections to PostgreSQL a worker takes: the formula of `docs/operations.md`."""

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from jobs.models import Duty, Job
from tests import sample_tasks
from tests.processes import Processes
from tests.variants import POOLS, variant
from tests.waiting import wait_until

_SLOTS = 3
# Its lease, the dispatcher's duties, what the leader does promptly and what it does in its own time, and claims.
_DUTIES = 5
_LOOKS = 20


def connections_of(name: str) -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = %s", [name])
        return cursor.fetchone()[0]


@pytest.mark.django_db(transaction=True)
@POOLS
@pytest.mark.parametrize(
    ("task", "arguments", "per_slot"),
    [
        variant(sample_tasks.wait_for_file, (), 1, id="one per slot"),
        pytest.param(
            sample_tasks.write_atomically, ("counted",), 2, id="two where progress is told inside a transaction"
        ),
    ],
)
def test_a_worker_takes_its_slots_and_five_connections_for_its_duties(
    processes: Processes, tmp_path: Path, pool: str, task: Any, arguments: tuple[str, ...], per_slot: int
) -> None:
    gate = tmp_path / "gate"
    # libpq names the connections of a process after this variable.
    processes.worker("default", pool=pool, concurrency=_SLOTS, env={"PGAPPNAME": "counted"})
    assert connections_of("counted") <= _DUTIES
    for _ in range(_SLOTS):
        task.delay(*arguments, str(gate))
    wait_until(lambda: Job.objects.filter(state="active", progress_percent__gt=0).count() == _SLOTS)
    seen: set[int] = set()
    ticks: set[datetime | None] = set()
    while len(ticks) < _LOOKS:
        ticks.add(Duty.objects.get(name="dispatcher").ticked_at)
        seen.add(connections_of("counted"))
    assert max(seen) == _SLOTS * per_slot + _DUTIES, seen
    gate.touch()
    wait_until(lambda: Job.objects.filter(state="completed").count() == _SLOTS)
    for _ in range(10 * _SLOTS):
        sample_tasks.add.delay(1, 2)
    wait_until(lambda: Job.objects.filter(state="completed").count() == 11 * _SLOTS)
    assert connections_of("counted") <= _SLOTS * per_slot + _DUTIES
