"""No-op jobs: how quickly they are enqueued and drained, and what each costs."""

from dataclasses import dataclass

from bench.processes import Family, Stuck, worker
from bench.sides import Side
from devstack.throwaway import Servers

# Costs are counted from here on: before, processes warm up.
_WARM_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class Drain:
    """One drain of one side. Milliseconds are processor time per job."""

    enqueued_per_second: float
    drained_per_second: float
    worker_ms: float
    postgres_ms: float
    redis_ms: float
    rss_bytes: int


def drain(side: Side, servers: Servers, *, count: int) -> Drain:
    """Enqueues `count` jobs, then starts a worker and lets it drain them; the rate is from the first end to the last,
    by the database."""
    assert servers.postgres
    assert servers.redis
    side.empty()
    enqueued = side.enqueue(count)
    with side.connect() as connection, worker(side, servers.folder) as running:

        def ended() -> int:
            return side.ended_count(connection)

        families = [running, Family(servers.postgres.pid), Family(servers.redis.pid)]
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
        drained_per_second=(count - 1) / (max(ends) - min(ends)).total_seconds(),
        worker_ms=worker_ms,
        postgres_ms=postgres_ms,
        redis_ms=redis_ms,
        rss_bytes=rss_bytes,
    )
