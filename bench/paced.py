"""How much of a rate is used: jobs of a queue that starts ten a second, on two workers."""

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from bench.processes import worker
from bench.result import Result, Table, spread
from bench.rows import insert_waiting
from bench.stand import Stand
from devstack.terminal import say
from jobs.queues import QUEUES
from jobs.rates import Rate

_QUEUE = "email"
_WORKERS = 2


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured."""

    jobs: int
    rounds: int


FULL = Sizes(jobs=200, rounds=3)
QUICK = Sizes(jobs=200, rounds=2)
TINY = Sizes(jobs=15, rounds=1)


@dataclass(frozen=True, kw_only=True)
class Paced:
    """One round: from the first start to the last by the database, and the most starts in any time of the period."""

    seconds: float
    most_in_a_period: int


def measure(stand: Stand, sizes: Sizes) -> Result:
    """Several rounds, each with workers of its own."""
    rate = QUEUES[_QUEUE].rate
    assert rate is not None
    stand.ours.prepare()
    rounds = []
    for _ in range(sizes.rounds):
        rounds.append(_round(stand, rate, sizes.jobs))
        say(f"{sizes.jobs} starts in {rounds[-1].seconds:.2f} s, {rounds[-1].most_in_a_period} at most in a period")
    best = seconds_at_best(sizes.jobs, rate)
    seconds = [one.seconds for one in rounds]
    rows = [
        ("seconds from the first start to the last", spread(seconds, "{:.2f}"), f"{best:.0f} at best"),
        ("the most starts in any second", str(max(one.most_in_a_period for one in rounds)), f"{rate.count} allowed"),
    ]
    return Result(
        how=f"{sizes.rounds} × {sizes.jobs} jobs of a queue with a rate of {rate}, on {_WORKERS} workers. "
        "Minimum / median / maximum.",
        tables=[Table(columns=("", "Handoff", "limit"), rows=rows)],
        figures={"rounds": [asdict(one) for one in rounds], "seconds_at_best": best},
    )


def seconds_at_best(count: int, rate: Rate) -> float:
    """How long so many starts take where the rate is used to the full: whole windows, but for the first one."""
    return (-(-count // rate.count) - 1) * rate.period.total_seconds()


def _round(stand: Stand, rate: Rate, count: int) -> Paced:
    side = stand.ours
    side.empty()
    with side.connect() as connection, ExitStack() as stack:
        insert_waiting(connection, count, queues=(_QUEUE,), task="bench.tasks.noop")
        for number in range(_WORKERS):
            flags = (f"--queues={_QUEUE}", f"--hostname=paced{number}@%h")
            running = stack.enter_context(worker(side, stand.servers.folder, *flags, name=f"paced{number}"))
        running.wait_until(lambda: side.ended_count(connection), count)
        rows = connection.execute("SELECT started_at FROM jobs_job ORDER BY started_at").fetchall()
    starts = [row[0] for row in rows]
    return Paced(seconds=(starts[-1] - starts[0]).total_seconds(), most_in_a_period=_most_within(rate.period, starts))


def _most_within(period: timedelta, moments: list[datetime]) -> int:
    return max(sum(begin <= moment < begin + period for moment in moments) for begin in moments)
