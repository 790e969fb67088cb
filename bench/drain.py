"""No-op jobs: how quickly they are enqueued, one at a time and in bulk, how quickly drained, and what each costs."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median

from bench.processes import Stuck, worker
from bench.result import Result, Row, Table, spread
from bench.sides import Side
from bench.stand import Stand
from devstack.terminal import say

# Costs are counted from here on: before, processes warm up.
_WARM_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured; `bulk_jobs` may be 0 for none."""

    jobs: int
    alternations: int
    bulk_jobs: int


FULL = Sizes(jobs=1500, alternations=3, bulk_jobs=20_000)
QUICK = Sizes(jobs=1000, alternations=2, bulk_jobs=20_000)
TINY = Sizes(jobs=200, alternations=1, bulk_jobs=100)


@dataclass(frozen=True, kw_only=True)
class Drain:
    """One drain of one side. Milliseconds are processor time per job."""

    enqueued_per_second: float
    caller_ms: float
    enqueue_postgres_ms: float
    drained_per_second: float
    worker_ms: float
    postgres_ms: float
    redis_ms: float
    rss_bytes: int


_FIGURES: Sequence[tuple[str, Callable[[Drain], float], str]] = [
    ("jobs drained a second", lambda drain: drain.drained_per_second, "{:.0f}"),
    ("jobs enqueued a second, one at a time", lambda drain: drain.enqueued_per_second, "{:.0f}"),
    ("processor time per enqueued job: caller, ms", lambda drain: drain.caller_ms, "{:.2f}"),
    ("processor time per job: worker, ms", lambda drain: drain.worker_ms, "{:.2f}"),
    ("processor time per job: PostgreSQL, ms", lambda drain: drain.postgres_ms, "{:.2f}"),
    ("processor time per job: Redis, ms", lambda drain: drain.redis_ms, "{:.2f}"),
    ("memory of the worker and its two processes, MB", lambda drain: drain.rss_bytes / 1e6, "{:.0f}"),
]


def measure(stand: Stand, sizes: Sizes) -> Result:
    """Both sides in turn. The figures hold `ratio` and, with jobs in bulk, `bulk_ratio`."""
    sides = stand.ours, stand.peer
    drains: tuple[list[Drain], list[Drain]] = ([], [])
    for side in sides:
        side.prepare()
    for number in range(1, sizes.alternations + 1):
        for side, own in zip(sides, drains, strict=True):
            own.append(drain(stand, side, count=sizes.jobs))
            say(f"{number}/{sizes.alternations} {side.name}: {own[-1].drained_per_second:.0f} jobs a second")
    bulk = [_bulk_per_second(stand.ours, sizes.bulk_jobs) for _ in range(sizes.alternations) if sizes.bulk_jobs]
    rows = [_row(what, figure, form, drains) for what, figure, form in _FIGURES]
    ours, peer = drains
    ratio = median(one.drained_per_second for one in ours) / median(one.drained_per_second for one in peer)
    figures = {"ours": [asdict(one) for one in ours], "peer": [asdict(one) for one in peer], "ratio": ratio}
    if bulk:
        bulk_ratio = median(bulk) / median(one.enqueued_per_second for one in ours)
        rows.append(("jobs enqueued a second, in bulk", spread(bulk), "", f"{bulk_ratio:.1f} times one at a time"))
        figures |= {"bulk_per_second": bulk, "bulk_ratio": bulk_ratio}
    how = (
        f"{sizes.alternations} × {sizes.jobs:,} jobs that do nothing, enqueued first and then drained by a worker of "
        "two pool processes; the sides take turns. The rate is from the first end to the last, by the database. "
        "Minimum / median / maximum."
    )
    return Result(
        how=how,
        tables=[Table(columns=("", stand.ours.name, stand.peer.name, "ratio of the medians"), rows=rows)],
        figures=figures,
    )


def drain(stand: Stand, side: Side, *, count: int) -> Drain:
    """Enqueues `count` jobs, then starts a worker and lets it drain them."""
    side.empty()
    postgres_seconds = stand.postgres.cpu_seconds()
    enqueued = side.enqueue(count)
    postgres_seconds = stand.postgres.cpu_seconds() - postgres_seconds
    with side.connect() as connection, worker(side, stand.servers.folder) as running:

        def ended() -> int:
            return side.ended_count(connection)

        families = [running, stand.postgres, stand.valkey]
        warm = running.wait_until(ended, int(count * _WARM_SHARE))
        if warm == count:
            raise Stuck(f"{count} jobs were done before the first look: measure with more of them, by --jobs.")
        before = [family.cpu_seconds() for family in families]
        running.wait_until(ended, count)
        spent = [family.cpu_seconds() - seconds for family, seconds in zip(families, before, strict=True)]
        rss_bytes = running.rss_bytes()
    ends = side.ends().values()
    worker_ms, postgres_ms, redis_ms = (1000 * seconds / (count - warm) for seconds in spent)
    return Drain(
        enqueued_per_second=(count - 1) / enqueued["seconds"],
        caller_ms=1000 * enqueued["cpu_seconds"] / (count - 1),
        # With the connection and the statements of its beginning.
        enqueue_postgres_ms=1000 * postgres_seconds / count,
        drained_per_second=(count - 1) / (max(ends) - min(ends)).total_seconds(),
        worker_ms=worker_ms,
        postgres_ms=postgres_ms,
        redis_ms=redis_ms,
        rss_bytes=rss_bytes,
    )


def _bulk_per_second(side: Side, count: int) -> float:
    side.empty()
    return float((count - 1) / side.enqueue(count, "--bulk")["seconds"])


def _row(what: str, figure: Callable[[Drain], float], form: str, drains: tuple[list[Drain], list[Drain]]) -> Row:
    ours, peer = ([figure(one) for one in side] for side in drains)
    ratio = f"{median(ours) / median(peer):.2f}" if median(peer) else ""
    return what, spread(ours, form), spread(peer, form), ratio
