"""What an old snapshot does to a ledger under load: a steady rate of jobs before, beside and after one."""

import json
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from statistics import median
from typing import Any

import psycopg

from bench.bystanders import BYSTANDERS, Backend, spinners
from bench.processes import Family, Running, running, worker
from bench.result import Panel, Result, Row, Table
from bench.stand import Stand
from bench.statements import Kind, begin_to_count, slowest
from devstack.terminal import say

PER_SECOND = 150
_WORKER = ("--pool=threads", "--concurrency=5", "--queues=default")
# None of them binds.
OPTIONS: dict[str, dict[str, Any]] = {
    "unpaced": {},
    "rate": {"rate_key": "bench", "rate_limit": f"{2 * PER_SECOND}/s"},
    "concurrency": {"concurrency_key": "bench", "concurrency_limit": 100},
}
_PHASES = ("before", "busy", "beside", "after")
TABLES = ("jobs_job", "jobs_jobevent", "jobs_limit", "jobs_stat")
# Starts are as quick as before once the slowest twentieth of a second's jobs is within this many times that.
_AS_BEFORE = 2.0
# The load is to outlast the last slice.
_LONGER_SECONDS = 10
# Of the rate, which is kept where so much of it ends.
_KEPT_SHARE = 0.95


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How long the phases are, in slices of so many seconds each."""

    slice_seconds: float
    before: int
    busy: int
    beside: int
    after: int

    def without_busy(self) -> "Sizes":
        """For bystanders that need no processor."""
        return replace(self, busy=0)

    @property
    def seconds(self) -> float:
        """The whole of it."""
        return self.slice_seconds * (self.before + self.busy + self.beside + self.after)


FULL = Sizes(slice_seconds=60, before=1, busy=1, beside=10, after=1)
QUICK = Sizes(slice_seconds=12, before=1, busy=1, beside=5, after=1)
TINY = Sizes(slice_seconds=1.5, before=1, busy=1, beside=1, after=1)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What is read at the end of a slice; all but the dead rows counts from the server's start."""

    at: datetime
    postgres_seconds: float
    wal_bytes: int
    dead_rows: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Slice:
    """A minute, or less of a quick run: jobs by the moment they were enqueued, ends by theirs."""

    phase: str
    enqueued_per_second: float
    ended_per_second: float
    start_p50_ms: float | None
    start_p95_ms: float | None
    postgres_ms_per_job: float | None
    wal_bytes_per_job: float | None
    waiting_count: int
    dead_rows: dict[str, int]


def measure(stand: Stand, sizes: Sizes, *, beside: str, limits: str) -> Result:
    """One run: the load, a worker, and for most of the time the snapshot beside them.

    Scans come after a slice beside as many processes that only compute, which tells the cost of a busy machine from
    that of the scans.
    """
    if beside == "held":
        sizes = sizes.without_busy()
    side = stand.ours
    side.prepare()
    side.empty()
    folder = stand.servers.folder
    load = [
        sys.executable,
        "-m",
        "bench.load",
        str(PER_SECOND),
        str(sizes.seconds + _LONGER_SECONDS),
        json.dumps(OPTIONS[limits]),
    ]
    with side.connect() as connection, worker(side, folder, *_WORKER) as ours:
        ours.wait_until(ours.is_ready, 1)
        with running(side, folder, load, name="load") as producer:
            producer.wait_until(lambda: side.ended_count(connection), 1)
            watch = _Watch(connection, stand.postgres, [ours, producer], sizes)
            for _ in range(sizes.before):
                watch.slice()
            with spinners(side, folder) if sizes.busy else nullcontext():
                for _ in range(sizes.busy):
                    watch.slice()
            begin_to_count(connection)
            with BYSTANDERS[beside](side) as backends:
                watch.bystanders = backends
                for _ in range(sizes.beside):
                    watch.slice()
                kinds = slowest(connection)
            for _ in range(sizes.after):
                watch.slice()
        slices = watch.slices()
        recovery = _recovery_seconds(connection, watch.readings[-1 - sizes.after].at, slices)
    return _result(sizes, beside, limits, slices, kinds, recovery)


class _Watch:
    """Reads the server's counters slice by slice."""

    def __init__(
        self, connection: "psycopg.Connection[Any]", postgres: Family, processes: Sequence[Running], sizes: Sizes
    ) -> None:
        self._connection, self._postgres, self._processes, self._sizes = connection, postgres, processes, sizes
        self.bystanders: list[Backend] = []
        self._begin = time.monotonic()
        self.readings = [self._read()]

    def slice(self) -> None:
        """Waits for the end of the next slice and reads."""
        end = self._begin + len(self.readings) * self._sizes.slice_seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(1.0, left))
            for process in self._processes:
                process.check()
        self.readings.append(self._read())
        phase = self._phases()[len(self.readings) - 2]
        say(f"{len(self.readings) - 1}: {phase}, dead rows {self.readings[-1].dead_rows}")

    def _phases(self) -> list[str]:
        counts = (self._sizes.before, self._sizes.busy, self._sizes.beside, self._sizes.after)
        return [phase for phase, count in zip(_PHASES, counts, strict=True) for _ in range(count)]

    def _read(self) -> Reading:
        now, wal = self._one("SELECT clock_timestamp(), pg_current_wal_insert_lsn() - '0/0'::pg_lsn")
        dead = self._connection.execute(
            "SELECT relname, n_dead_tup FROM pg_stat_user_tables WHERE relname = ANY (%s)", [list(TABLES)]
        ).fetchall()
        others = sum(backend.cpu_seconds() for backend in self.bystanders)
        return Reading(
            at=now,
            postgres_seconds=self._postgres.cpu_seconds() - others,
            wal_bytes=int(wal),
            dead_rows={name: dict(dead).get(name, 0) for name in TABLES},
        )

    def slices(self) -> list[Slice]:
        """All of them, by what the jobs' rows say now."""
        pairs = zip(self._phases(), self.readings, self.readings[1:], strict=False)
        return [self._slice(phase, begin, end) for phase, begin, end in pairs]

    def _slice(self, phase: str, begin: Reading, end: Reading) -> Slice:
        enqueued, ended, waiting = self._one(
            "SELECT count(*) FILTER (WHERE created_at >= %(begin)s AND created_at < %(end)s),"
            " count(*) FILTER (WHERE finished_at >= %(begin)s AND finished_at < %(end)s),"
            " count(*) FILTER (WHERE created_at < %(end)s AND (started_at IS NULL OR started_at >= %(end)s))"
            " FROM jobs_job",
            {"begin": begin.at, "end": end.at},
        )
        seconds = (end.at - begin.at).total_seconds()
        p50, p95 = self._one(_START_PERCENTILES, {"begin": begin.at, "end": end.at})
        return Slice(
            phase=phase,
            enqueued_per_second=enqueued / seconds,
            ended_per_second=ended / seconds,
            start_p50_ms=p50,
            start_p95_ms=p95,
            postgres_ms_per_job=1000 * (end.postgres_seconds - begin.postgres_seconds) / ended if ended else None,
            wal_bytes_per_job=(end.wal_bytes - begin.wal_bytes) / ended if ended else None,
            waiting_count=waiting,
            dead_rows=end.dead_rows,
        )

    def _one(self, query: str, parameters: dict[str, Any] | None = None) -> Any:
        row = self._connection.execute(query.encode(), parameters).fetchone()
        assert row is not None
        return row


_START_PERCENTILES = """
SELECT 1000 * percentile_cont(0.5) WITHIN GROUP (ORDER BY seconds),
    1000 * percentile_cont(0.95) WITHIN GROUP (ORDER BY seconds)
FROM (
    SELECT EXTRACT(EPOCH FROM started_at - created_at)::float8 AS seconds
    FROM jobs_job WHERE created_at >= %(begin)s AND created_at < %(end)s AND started_at IS NOT NULL) AS start
"""
_SECONDS_AFTER = """
SELECT second, 1000 * percentile_cont(0.95) WITHIN GROUP (ORDER BY wait)
FROM (
    SELECT floor(EXTRACT(EPOCH FROM created_at - %(end)s))::int AS second,
        EXTRACT(EPOCH FROM started_at - created_at)::float8 AS wait
    FROM jobs_job WHERE created_at >= %(end)s AND started_at IS NOT NULL) AS start
GROUP BY second ORDER BY second
"""


def _recovery_seconds(connection: "psycopg.Connection[Any]", end: datetime, slices: Sequence[Slice]) -> float | None:
    """How long after the snapshot's end starts are as quick as before it; None where they are not in the time."""
    usual = max(slices[0].start_p95_ms or 0, 1.0)
    for second, p95 in connection.execute(_SECONDS_AFTER, {"end": end}).fetchall():
        if p95 <= _AS_BEFORE * usual:
            return float(second)
    return None


def _result(
    sizes: Sizes, beside: str, limits: str, slices: Sequence[Slice], kinds: Sequence[Kind], recovery: float | None
) -> Result:
    what = {
        "held": "a transaction that holds its snapshot (REPEATABLE READ)",
        "scans": "four connections that read the whole table in a loop, at the lowest priority, after a while beside "
        "four processes of that priority that only compute (*busy*)",
    }[beside]
    options = f"with {json.dumps(OPTIONS[limits])}" if OPTIONS[limits] else "without limits"
    recovered = "not within the time" if recovery is None else f"after {recovery:.0f} s"
    if slices[0].ended_per_second < _KEPT_SHARE * PER_SECOND:
        recovered += ", though the rate was not kept before it either"
    how = (
        f"{PER_SECOND} jobs a second that do nothing, {options}, each committed by itself, for a worker of five "
        f"threads; for {sizes.beside * sizes.slice_seconds:g} s beside {what}. The bystanders' processor time is left "
        f"out. After the end of the snapshot, the slowest twentieth of starts is within {_AS_BEFORE:g} "
        f"times that of before: {recovered}."
    )
    seconds = f"{sizes.slice_seconds:g} s"
    return Result(
        how=how,
        tables=[
            Table(columns=_SUMMARY_COLUMNS, rows=_summary(slices)),
            Table(columns=_COLUMNS, rows=[_row(number, one) for number, one in enumerate(slices, 1)]),
            Table(
                columns=("statements beside it, the slowest in all", "calls", "mean, ms", "longest, ms", "share"),
                rows=[
                    (
                        f"`{kind.text}`",
                        f"{kind.calls:,}",
                        f"{kind.mean_ms:.3f}",
                        f"{kind.max_ms:.0f}",
                        f"{kind.share:.0%}",
                    )
                    for kind in kinds
                ],
            ),
        ],
        figures={
            "slice_seconds": sizes.slice_seconds,
            "slices": [asdict(one) for one in slices],
            "statements": [asdict(kind) for kind in kinds],
            "recovery_seconds": recovery,
        },
        panels=[
            _panel("Jobs ended a second", seconds, slices, "ended_per_second", "all"),
            _panel("Milliseconds from enqueueing to start, 95 %", seconds, slices, "start_p95_ms", "start"),
            _panel(
                "Milliseconds of PostgreSQL's processor time per job", seconds, slices, "postgres_ms_per_job", "all"
            ),
        ],
    )


_COMPARED = (
    ("jobs ended a second", "ended_per_second", "{:.1f}"),
    ("start p95, ms", "start_p95_ms", "{:.1f}"),
    ("PostgreSQL, ms per job", "postgres_ms_per_job", "{:.2f}"),
    ("WAL, bytes per job", "wal_bytes_per_job", "{:.0f}"),
)
_SUMMARY_COLUMNS = ("medians", *_PHASES, "beside / before", "last slice beside / before", "beside / busy")
_COLUMNS = (
    "slice",
    "enqueued/s",
    "ended/s",
    "start p50, ms",
    "start p95, ms",
    "PostgreSQL, ms per job",
    "WAL, kB per job",
    "waiting",
    *(f"dead rows: {table}" for table in TABLES),
)


def _row(number: int, one: Slice) -> Row:
    return (
        f"{number}, {one.phase}",
        f"{one.enqueued_per_second:.1f}",
        f"{one.ended_per_second:.1f}",
        _number(one.start_p50_ms, "{:.1f}"),
        _number(one.start_p95_ms, "{:.1f}"),
        _number(one.postgres_ms_per_job, "{:.2f}"),
        _number(one.wal_bytes_per_job and one.wal_bytes_per_job / 1000, "{:.1f}"),
        f"{one.waiting_count:,}",
        *(f"{one.dead_rows[table]:,}" for table in TABLES),
    )


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _summary(slices: Sequence[Slice]) -> list[Row]:
    """What the snapshot changes: medians of the slices before, beside and after it, and the last one beside it."""
    rows: list[Row] = []
    for what, name, form in _COMPARED:
        by_phase = {phase: _values(slices, phase, name) for phase in _PHASES}
        medians = {phase: median(values) if values else None for phase, values in by_phase.items()}
        last = by_phase["beside"][-1] if by_phase["beside"] else None
        ratios = (
            _ratio(medians["beside"], medians["before"]),
            _ratio(last, medians["before"]),
            _ratio(medians["beside"], medians["busy"]),
        )
        rows.append((what, *(_number(medians[phase], form) for phase in _PHASES), *ratios))
    return rows


def _values(slices: Sequence[Slice], phase: str, name: str) -> list[float]:
    return [value for one in slices if one.phase == phase and (value := getattr(one, name)) is not None]


def _ratio(value: float | None, other: float | None) -> str:
    return f"{value / other:.2f}" if value is not None and other else "–"


def _panel(title: str, seconds: str, slices: Sequence[Slice], name: str, curve: str) -> Panel:
    points = [
        (float(number), value) for number, one in enumerate(slices, 1) if (value := getattr(one, name)) is not None
    ]
    return Panel(title=title, x_label=f"slices of {seconds}", curves={curve: points})
