"""Whether the length of a queue slows its workers down: backlogs of jobs of 20 ms, for a worker of five slots."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from statistics import median
from typing import Any

import psycopg

from bench.broker import BrokerPeak
from bench.processes import Running, worker
from bench.result import Panel, Result, Row, Table, spread
from bench.rows import NAP_SECONDS, UNPACED, Limited, insert_waiting
from bench.stand import Stand
from devstack.terminal import say

SLOTS = 5
IDEAL_PER_SECOND = SLOTS / NAP_SECONDS
# None of them binds: twice the ideal rate, and room for every slot.
LIMITS = {
    "unpaced": UNPACED,
    "rate": Limited(name="one rate key", rate=f"{2 * IDEAL_PER_SECOND:.0f}/s"),
    "concurrency": Limited(name="one concurrency key", concurrency=100),
    "keys": Limited(name="1,000 concurrency keys", key_count=1000, concurrency=100),
}
# All have no limits of their own, as they are declared.
_QUEUES = {1: ("default",), 4: ("default", "images", "video", "webhooks")}
_LOOK_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured. Of the longest backlog two windows, the second of which begins so late; it is measured
    once. The others are drained, `rounds` times, but for no longer than `box_seconds`."""

    lengths: tuple[int, ...]
    rounds: int
    box_seconds: float
    longest: int
    window_seconds: float
    later_seconds: float


FULL = Sizes(
    lengths=(100, 1_000, 10_000), rounds=3, box_seconds=45, longest=100_000, window_seconds=60, later_seconds=120
)
QUICK = Sizes(
    lengths=(100, 1_000, 10_000), rounds=1, box_seconds=12, longest=100_000, window_seconds=8, later_seconds=16
)
TINY = Sizes(lengths=(20, 50), rounds=1, box_seconds=10, longest=400, window_seconds=0.5, later_seconds=0.7)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A row of the table."""

    queue_count: int
    length: int
    window: str = ""


@dataclass
class Seen:
    """What was measured of a case: a rate per round, and the most that lay in Redis."""

    rates: list[float] = field(default_factory=list)
    messages: int = 0
    data_bytes: int = 0


Found = dict[Case, Seen]


def measure(stand: Stand, sizes: Sizes, *, pool: str, limits: str) -> Result:
    """One queue and four in turn, each round with a worker of its own."""
    stand.ours.prepare()
    found: Found = {}
    for number in range(1, sizes.rounds + 1):
        for queue_count in _QUEUES:
            stand.ours.empty()
            _Round(stand, sizes, found, pool, LIMITS[limits], queue_count).run(is_last=number == sizes.rounds)
    ordered = dict(sorted(found.items(), key=lambda item: (item[0].queue_count, item[0].length)))
    how = (
        f"Jobs of {1000 * NAP_SECONDS:.0f} ms, {LIMITS[limits].name}, for one worker of {SLOTS} slots ({pool}), which "
        f"consumes one queue or four; at best {IDEAL_PER_SECOND:.0f} a second. Of {sizes.longest:,} jobs only two "
        f"windows of {sizes.window_seconds:g} s are measured. A rate is from the first start to the last end, by the "
        "database: minimum / median / maximum. A message is a ring or a grant."
    )
    columns = ("waiting jobs", "queues", "jobs a second", "of the best", "most messages in Redis", "Redis's data, kB")
    return Result(
        how=how,
        tables=[Table(columns=columns, rows=[_row(case, seen) for case, seen in ordered.items()])],
        figures={"cases": [{**asdict(case), **asdict(seen)} for case, seen in ordered.items()]},
        panels=[_panel(ordered)],
    )


class _Round:
    """The lengths one after the other, beside one worker."""

    def __init__(self, stand: Stand, sizes: Sizes, found: Found, pool: str, limited: Limited, queue_count: int) -> None:
        self._stand, self._sizes, self._found = stand, sizes, found
        self._pool, self._limited, self._queues = pool, limited, _QUEUES[queue_count]

    def run(self, *, is_last: bool) -> None:
        flags = (f"--pool={self._pool}", f"--concurrency={SLOTS}", f"--queues={','.join(self._queues)}")
        side = self._stand.ours
        with (
            side.connect() as connection,
            self._stand.redis_client() as client,
            worker(side, self._stand.servers.folder, *flags) as running,
        ):
            running.wait_until(running.is_ready, 1)
            for length in self._sizes.lengths:
                peak = BrokerPeak(client)
                rate = self._drained(connection, running, peak, length)
                self._note(Case(queue_count=len(self._queues), length=length), rate, peak)
            if is_last:
                self._windows(connection, running, BrokerPeak(client))

    def _drained(self, connection: "psycopg.Connection[Any]", running: Running, peak: BrokerPeak, length: int) -> float:
        """The rate at which a backlog is drained, or as much of it as the box allows."""
        self._insert(connection, length)

        def ended() -> int:
            peak.look()
            return self._stand.ours.ended_count(connection)

        running.wait_until(ended, length, look_seconds=_LOOK_SECONDS, box=self._sizes.box_seconds)
        connection.execute("DELETE FROM jobs_job WHERE state = 'waiting'")
        running.wait_until(lambda: int(not _active_count(connection)), 1)
        row = connection.execute(
            "SELECT count(*) / EXTRACT(EPOCH FROM max(finished_at) - min(started_at))::float8"
            " FROM jobs_job WHERE state = 'completed'"
        ).fetchone()
        assert row is not None
        return float(row[0] or 0)

    def _windows(self, connection: "psycopg.Connection[Any]", running: Running, peak: BrokerPeak) -> None:
        """The rates of two windows of the longest backlog; what is left of it then is the next round's to remove."""
        sizes = self._sizes
        self._insert(connection, sizes.longest)
        running.wait_until(lambda: _started_count(connection), 1)
        end = time.monotonic() + sizes.later_seconds + sizes.window_seconds
        while time.monotonic() < end:
            running.check()
            peak.look()
            time.sleep(min(_LOOK_SECONDS, sizes.window_seconds))
        for name, begin in (("first", 0.0), ("later", sizes.later_seconds)):
            rate = _rate(connection, begin, sizes.window_seconds)
            self._note(Case(queue_count=len(self._queues), length=sizes.longest, window=name), rate, peak)

    def _insert(self, connection: "psycopg.Connection[Any]", length: int) -> None:
        self._stand.ours.forget_jobs(connection)
        insert_waiting(connection, length, queues=self._queues, limited=self._limited)

    def _note(self, case: Case, rate: float, peak: BrokerPeak) -> None:
        seen = self._found.setdefault(case, Seen())
        seen.rates.append(rate)
        seen.messages, seen.data_bytes = max(seen.messages, peak.messages), max(seen.data_bytes, peak.data_bytes)
        say(f"{case.queue_count} queues, {case.length:,} jobs {case.window}: {rate:.1f} a second")


def _active_count(connection: "psycopg.Connection[Any]") -> int:
    row = connection.execute("SELECT count(*) FROM jobs_job WHERE state = 'active'").fetchone()
    assert row is not None
    return int(row[0])


def _started_count(connection: "psycopg.Connection[Any]") -> int:
    row = connection.execute("SELECT count(*) FROM jobs_job WHERE state = 'completed' LIMIT 1").fetchone()
    assert row is not None
    return int(row[0])


def _rate(connection: "psycopg.Connection[Any]", begin: float, seconds: float) -> float:
    """Ends a second in a window that begins so long after the first start."""
    row = connection.execute("SELECT min(started_at) FROM jobs_job").fetchone()
    first: datetime | None = row[0] if row else None
    row = connection.execute(
        "SELECT count(*) FROM jobs_job WHERE state = 'completed'"
        " AND finished_at >= %(first)s + make_interval(secs => %(begin)s)"
        " AND finished_at < %(first)s + make_interval(secs => %(end)s)",
        {"first": first, "begin": begin, "end": begin + seconds},
    ).fetchone()
    assert row is not None
    return float(row[0] / seconds)


def _row(case: Case, seen: Seen) -> Row:
    return (
        f"{case.length:,}{f', {case.window} window' if case.window else ''}",
        str(case.queue_count),
        spread(seen.rates, "{:.1f}"),
        f"{median(seen.rates) / IDEAL_PER_SECOND:.3f}",
        str(seen.messages),
        f"{seen.data_bytes / 1000:,.0f}",
    )


def _panel(found: Found) -> Panel:
    def curve(queue_count: int) -> Sequence[tuple[float, float]]:
        return [
            (case.length, median(seen.rates))
            for case, seen in found.items()
            if case.queue_count == queue_count and case.window != "first"
        ]

    lengths = sorted({case.length for case in found})
    return Panel(
        title="Jobs a second, by waiting jobs",
        x_label="waiting jobs",
        curves={
            "one queue": curve(1),
            "four queues": curve(4),
            "at best": [(length, IDEAL_PER_SECOND) for length in lengths],
        },
        is_x_logarithmic=True,
    )
