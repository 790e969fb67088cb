"""Whether the ledger's size slows it down: claims, drains and `/health` with more and more rows in its table."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import psycopg

from bench.processes import worker
from bench.result import Panel, Result, Row, Table, percentile, spread
from bench.rows import insert_ended, insert_waiting
from bench.stand import Stand
from devstack.terminal import say

_SLOTS = 5
_WORKER = ("--pool=threads", f"--concurrency={_SLOTS}", "--queues=default")
# For what is measured to have something to claim.
_SPARE = 20_000
_TASK = "bench.tasks.noop"
INSERTS: dict[str, Callable[["psycopg.Connection[Any]", int], None]] = {
    "ended": insert_ended,
    "waiting": lambda connection, count: insert_waiting(connection, count, task=_TASK),
}

_STATES = {"ended": "completed", "waiting": "waiting"}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured at each size; a drain lasts so long."""

    rows: tuple[int, ...]
    rounds: int
    steps: int
    drain_seconds: float
    spare: int = _SPARE


FULL = Sizes(rows=(10_000, 1_000_000, 5_000_000), rounds=3, steps=200, drain_seconds=10)
QUICK = Sizes(rows=(10_000, 500_000), rounds=1, steps=100, drain_seconds=6)
TINY = Sizes(rows=(100, 300), rounds=1, steps=4, drain_seconds=1, spare=500)


@dataclass
class Seen:
    """What was measured at one size: the rate of each drain, the milliseconds of each step, and the table's bytes."""

    drains: list[float] = field(default_factory=list)
    steps_ms: dict[str, list[float]] = field(default_factory=dict)
    table_bytes: int = 0
    fill_seconds: float = 0


def measure(stand: Stand, sizes: Sizes, *, state: str) -> Result:
    """The sizes in turn, each of them `rounds` times."""
    side = stand.ours
    side.prepare()
    side.empty()
    found: dict[int, Seen] = {}
    with side.connect() as connection:
        for count in sizes.rows:
            seen = found[count] = Seen()
            # What a round takes comes on top.
            wanted = count + sizes.spare if state == "waiting" else count
            begin = time.monotonic()
            _fill(connection, state, wanted)
            # As autovacuum leaves a table that has grown at its ease.
            connection.execute("VACUUM (ANALYZE) jobs_job")
            connection.execute("CHECKPOINT")
            seen.fill_seconds = time.monotonic() - begin
            say(f"{count:,} {state} rows after {seen.fill_seconds:.0f} s")
            for _ in range(sizes.rounds):
                # The round before has drained some.
                _fill(connection, state, wanted)
                _round(stand, connection, sizes, seen, state)
            seen.table_bytes = _scalar(connection, "SELECT pg_total_relation_size('jobs_job')")
    return _result(sizes, state, found)


def _fill(connection: "psycopg.Connection[Any]", state: str, count: int) -> None:
    """Inserts rows of a state until there are `count` of them."""
    there = _scalar(connection, f"SELECT count(*) FROM jobs_job WHERE state = '{_STATES[state]}'")
    if there < count:
        INSERTS[state](connection, count - there)


def _round(stand: Stand, connection: "psycopg.Connection[Any]", sizes: Sizes, seen: Seen, state: str) -> None:
    if state == "ended":
        insert_waiting(connection, sizes.spare, task=_TASK)
    begin = _scalar(connection, "SELECT clock_timestamp()")
    with worker(stand.ours, stand.servers.folder, *_WORKER) as running:
        running.wait_until(running.is_ready, 1)
        running.wait_until(lambda: int(_drained(connection, begin)[0] > 0), 1)
        time.sleep(sizes.drain_seconds)
        running.check()
    count, seconds = _drained(connection, begin)
    seen.drains.append(count / max(seconds, 0.001))
    for step, times in json.loads(stand.ours.run("-m", "bench.probe", str(sizes.steps))).items():
        seen.steps_ms.setdefault(step, []).extend(times)
    if state == "ended":
        connection.execute("DELETE FROM jobs_job WHERE state = 'waiting'")
    texts = [f"{step} {median(times):.2f} ms" for step, times in seen.steps_ms.items() if times]
    say(f"  {seen.drains[-1]:.0f} jobs a second; {', '.join(texts)}")


def _drained(connection: "psycopg.Connection[Any]", begin: Any) -> tuple[int, float]:
    """How many jobs have started and ended since then, and in how many seconds."""
    row = connection.execute(
        "SELECT count(*), COALESCE(EXTRACT(EPOCH FROM max(finished_at) - min(started_at)), 0)::float8 FROM jobs_job"
        " WHERE state = 'completed' AND queue = 'default' AND finished_at > %s",
        [begin],
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def _scalar(connection: "psycopg.Connection[Any]", query: str) -> Any:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def _result(sizes: Sizes, state: str, found: dict[int, Seen]) -> Result:
    steps = list(next(iter(found.values())).steps_ms)
    rows: list[Row] = [
        ("jobs drained a second", *(spread(seen.drains) for seen in found.values())),
        *(
            (f"{step}, p{percent}, ms", *(f"{percentile(seen.steps_ms[step], percent):.2f}" for seen in found.values()))
            for step in steps
            for percent in (50, 99)
        ),
        ("the table with its indexes, MB", *(f"{seen.table_bytes / 1e6:,.0f}" for seen in found.values())),
    ]
    smallest = found[sizes.rows[0]]
    rows += [
        (
            f"{step}, ratio to {sizes.rows[0]:,} rows",
            *(f"{median(seen.steps_ms[step]) / median(smallest.steps_ms[step]):.2f}" for seen in found.values()),
        )
        for step in steps
    ]
    how = (
        f"A table with so many {state} rows, vacuumed and analysed. Drains are of jobs that do nothing, by a worker of "
        f"{_SLOTS} threads, for {sizes.drain_seconds:g} s: minimum / median / maximum of {sizes.rounds}. The other "
        f"steps are taken one at a time, {sizes.steps} times each, `/health` a tenth as often."
    )
    medians = {step: [(count, median(seen.steps_ms[step])) for count, seen in found.items()] for step in steps}
    drains = [(count, median(seen.drains)) for count, seen in found.items()]
    label = f"{state} rows"
    health = {"/health": medians.pop("/health")}
    return Result(
        how=how,
        tables=[Table(columns=("", *(f"{count:,} {state} rows" for count in found)), rows=rows)],
        figures={"sizes": {str(count): vars(seen) for count, seen in found.items()}},
        panels=[
            Panel(title="Jobs a second", x_label=label, curves={"drained": drains}, is_x_logarithmic=True),
            Panel(title="Milliseconds, median", x_label=label, curves=medians, is_x_logarithmic=True),
            Panel(title="Milliseconds of /health, median", x_label=label, curves=health, is_x_logarithmic=True),
        ],
    )
