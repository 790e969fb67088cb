"""How late jobs begin on an idle machine: those that are enqueued now, and those that were for a moment ahead."""

from dataclasses import dataclass
from itertools import product
from statistics import median

from bench.processes import worker
from bench.result import Result, Row, Table, percentile
from bench.sides import Side
from bench.stand import Stand
from devstack.terminal import say

_WAYS = {"enqueued → begun": (), "due → begun": ("--due",)}
_WARM_JOBS = 4


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many jobs of each way per round and side; a job takes 0.2 s to enqueue."""

    jobs: int
    rounds: int


FULL = Sizes(jobs=150, rounds=3)
QUICK = Sizes(jobs=60, rounds=1)
TINY = Sizes(jobs=5, rounds=1)


def measure(stand: Stand, sizes: Sizes) -> Result:
    """Both sides in turn, each with a worker of its own per round."""
    sides = stand.ours, stand.peer
    late: dict[tuple[str, str], list[list[float]]] = {(side.name, way): [] for side in sides for way in _WAYS}
    for side in sides:
        side.prepare()
    for number, side in product(range(1, sizes.rounds + 1), sides):
        for way, seconds in _round(stand, side, sizes.jobs).items():
            late[side.name, way].append(seconds)
            text = f"{1000 * median(seconds):.1f} ms, 99 % {1000 * percentile(seconds, 99):.1f} ms"
            say(f"{number}/{sizes.rounds} {side.name}: {way} {text}")
    rows = [row for way in _WAYS for row in _rows(way, [late[side.name, way] for side in sides])]
    return Result(
        how=f"{sizes.rounds} × {sizes.jobs} jobs of each kind, one at a time with random pauses, for a worker of two "
        "pool processes that has nothing else to do; the sides take turns. A job is begun when its task's body runs.",
        tables=[Table(columns=("milliseconds", stand.ours.name, stand.peer.name, "ratio"), rows=rows)],
        figures={"late_seconds": {f"{name}: {way}": rounds for (name, way), rounds in late.items()}},
    )


def _rows(way: str, sides: list[list[list[float]]]) -> list[Row]:
    """The percentiles of all rounds together."""
    found: list[Row] = []
    for percent in (50, 99):
        ours, peer = (1000 * percentile([one for part in rounds for one in part], percent) for rounds in sides)
        found.append((f"{way}, p{percent}", f"{ours:.1f}", f"{peer:.1f}", f"{ours / peer:.2f}"))
    return found


def _round(stand: Stand, side: Side, count: int) -> dict[str, list[float]]:
    side.empty()
    found = {}
    with side.connect() as connection, worker(side, stand.servers.folder) as running:
        running.wait_until(running.is_ready, 1)
        # The first jobs warm both processes of the pool up, and are not counted.
        side.enqueue(_WARM_JOBS)
        running.wait_until(lambda: side.ended_count(connection), _WARM_JOBS)
        wanted = _WARM_JOBS
        for way, flags in _WAYS.items():
            moments = side.enqueue(count, "--moments", *flags)
            # One more is enqueued each time, to open the connections.
            wanted += count + 1
            running.wait_until(lambda: side.ended_count(connection), wanted)
            begun = side.results(connection)
            found[way] = [begun[job_id] - moment for job_id, moment in moments.items()]
    return found
