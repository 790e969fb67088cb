"""How much of a rate is used: jobs of a queue that starts ten a second, on two workers."""

from contextlib import ExitStack
from datetime import datetime, timedelta

from bench.processes import worker
from bench.sides import Side
from bench.window import insert_backlog
from devstack.throwaway import Servers
from jobs.queues import QUEUES

PACED = 200
_QUEUE = "email"
_WORKERS = 2


def seconds_at_best(count: int) -> float:
    """How long so many starts take where the rate is used to the full: whole windows, but for the first one."""
    rate = QUEUES[_QUEUE].rate
    assert rate is not None
    return (-(-count // rate.count) - 1) * rate.period.total_seconds()


def paced_seconds(side: Side, servers: Servers) -> tuple[float, int]:
    """From the first start to the last, by the database, and the most starts in any time of the rate's period."""
    rate = QUEUES[_QUEUE].rate
    assert rate is not None
    side.empty()
    with side.connect() as connection, ExitStack() as stack:
        insert_backlog(connection, _QUEUE, PACED)
        for number in range(_WORKERS):
            flags = (f"--queues={_QUEUE}", f"--hostname=paced{number}@%h")
            running = stack.enter_context(worker(side, servers.folder, *flags, name=f"paced{number}"))
        running.wait_until(lambda: side.ended_count(connection), PACED)
        rows = connection.execute(f"SELECT started_at FROM {side.jobs} ORDER BY started_at").fetchall()
    starts = [row[0] for row in rows]
    return (starts[-1] - starts[0]).total_seconds(), _most_within(rate.period, starts)


def _most_within(period: timedelta, moments: list[datetime]) -> int:
    return max(sum(begin <= moment < begin + period for moment in moments) for begin in moments)
