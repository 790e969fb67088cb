"""Large canvases: how long their caller takes, and how long it is until their result is there."""

import json
from dataclasses import dataclass, replace
from itertools import product
from statistics import median

from bench.processes import worker
from bench.result import Result, Table, spread
from bench.sides import Side
from bench.stand import Stand
from devstack.home import BASE_DIR
from devstack.terminal import say

_CALL = BASE_DIR / "bench" / "call_canvas.py"
KINDS = ("group", "chord", "chain")
# Of both figures of a round.
_WORDS = ("until it is called", "until its result is there")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many jobs a canvas has, and how often each side calls one of each kind."""

    members: int
    rounds: int
    alternations: int


FULL = Sizes(members=1000, rounds=3, alternations=3)
QUICK = Sizes(members=1000, rounds=1, alternations=2)
TINY = Sizes(members=20, rounds=1, alternations=1)


def measure(stand: Stand, sizes: Sizes) -> Result:
    """Both sides in turn, each with a worker of its own."""
    # What Celery's guide says of chords: results in Redis. In Django's database, each member would be polled for.
    peer = replace(
        stand.peer,
        name="Django + Celery, results in Redis",
        environment={**stand.peer.environment, "PEER_RESULTS": stand.peer.environment["REDIS_URL"]},
    )
    sides = stand.ours, peer
    found: dict[tuple[str, str], list[list[float]]] = {(side.name, kind): [] for side in sides for kind in KINDS}
    for side in sides:
        side.prepare()
    for number, side in product(range(1, sizes.alternations + 1), sides):
        side.empty()
        with worker(side, stand.servers.folder) as running:
            running.wait_until(running.is_ready, 1)
            for kind in KINDS:
                rounds = _rounds(side, kind, sizes)
                found[side.name, kind] += rounds
                seconds = median(ended for _, ended in rounds)
                say(f"{number}/{sizes.alternations} {side.name}: {kind} {seconds:.2f} s")
    rows = []
    for kind, (place, words) in product(KINDS, enumerate(_WORDS)):
        ours, theirs = ([one[place] for one in found[side.name, kind]] for side in sides)
        ratio = median(ours) / median(theirs)
        rows.append((f"{kind}, {words}", spread(ours, "{:.2f}"), spread(theirs, "{:.2f}"), f"{ratio:.2f}"))
    return Result(
        how=f"{sizes.alternations} × {sizes.rounds} canvases of {sizes.members:,} jobs that do next to nothing, for a "
        "worker of two pool processes; the sides take turns. Seconds, minimum / median / maximum.",
        tables=[Table(columns=("seconds", stand.ours.name, peer.name, "ratio of the medians"), rows=rows)],
        figures={"seconds": {f"{name}: {kind}": rounds for (name, kind), rounds in found.items()}},
    )


def _rounds(side: Side, kind: str, sizes: Sizes) -> list[list[float]]:
    said: list[list[float]] = json.loads(
        side.run("-P", str(_CALL), side.app, kind, str(sizes.members), str(sizes.rounds))
    )
    return said
