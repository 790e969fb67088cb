"""How late jobs start that were enqueued for a moment ahead, on an idle machine."""

from datetime import datetime
from statistics import quantiles

from bench.processes import worker
from bench.sides import Side
from devstack.throwaway import Servers


def lateness_seconds(side: Side, servers: Servers, *, count: int) -> tuple[float, float]:
    """The median and the 99th percentile of the time from the moment a job was for to its end."""
    side.empty()
    with side.connect() as connection, worker(side, servers.folder) as running:
        running.wait_until(running.is_ready, 1)
        # The first job warms both processes of the pool up, and is not counted.
        side.enqueue(4)
        moments = side.enqueue(count, "--due")
        running.wait_until(lambda: side.ended_count(connection), count + 4)
    ends = side.ends()
    late = [(ends[job_id] - datetime.fromisoformat(moment)).total_seconds() for job_id, moment in moments.items()]
    percentiles = quantiles(late, n=100, method="inclusive")
    return percentiles[49], percentiles[98]
