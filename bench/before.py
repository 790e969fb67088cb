"""No-op jobs beside an earlier commit of this project, alternately: what a change costs."""

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from bench.drain import Drain, drain
from bench.processes import Stuck
from bench.result import Result, Row, Table
from bench.sides import Side
from bench.stand import Stand
from devstack.home import BASE_DIR
from devstack.terminal import say


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured, and beside which commit, as git names it."""

    jobs: int
    alternations: int
    commit: str = "HEAD"


FULL = Sizes(jobs=1000, alternations=15)
QUICK = Sizes(jobs=700, alternations=5)
TINY = Sizes(jobs=200, alternations=1)

_FIGURES: Sequence[tuple[str, Callable[[Drain], float]]] = [
    ("drain: worker", lambda one: one.worker_ms),
    ("drain: PostgreSQL", lambda one: one.postgres_ms),
    ("drain: worker and PostgreSQL", lambda one: one.worker_ms + one.postgres_ms),
    ("enqueueing: caller", lambda one: one.caller_ms),
    ("enqueueing: PostgreSQL", lambda one: one.enqueue_postgres_ms),
    ("enqueueing: caller and PostgreSQL", lambda one: one.caller_ms + one.enqueue_postgres_ms),
]


def measure(stand: Stand, sizes: Sizes) -> Result:
    """Both commits in turn, each with its own code, database and Redis."""
    before = _checked_out(stand, sizes.commit)
    sides = before, stand.ours
    for side in sides:
        side.prepare()
    pairs: list[tuple[Drain, Drain]] = []
    for number in range(1, sizes.alternations + 1):
        # The first of a pair is now the one and now the other.
        order = sides if number % 2 else sides[::-1]
        done = {side.name: drain(stand, side, count=sizes.jobs) for side in order}
        pairs.append((done[before.name], done[stand.ours.name]))
        say(f"{number}/{sizes.alternations}: {_ratios(_FIGURES[2][1], pairs[-1:])[0]:.3f} of {before.name}")
    how = (
        f"{sizes.alternations} × {sizes.jobs:,} jobs that do nothing, one at a time enqueued and then drained by a "
        f"worker of two pool processes, by turns with the code of now and with that of {before.name}, on the same "
        "packages and servers. Milliseconds of processor time per job, medians; ratios are those of pairs, and the "
        "interval holds their median with 95 %."
    )
    return Result(
        how=how,
        tables=[
            Table(
                columns=("processor time per job, ms", before.name, "now", "ratio", "95 % interval of the ratio"),
                rows=[_row(what, figure, pairs) for what, figure in _FIGURES],
            )
        ],
        figures={"before": [asdict(one) for one, _ in pairs], "now": [asdict(one) for _, one in pairs]},
    )


def _checked_out(stand: Stand, commit: str) -> Side:
    """The project as it was at a commit. Raises Stuck where git knows none of that name."""
    folder = stand.servers.folder / "before"
    folder.mkdir()
    name = _git("rev-parse", "--short", f"{commit}^{{commit}}").decode().strip()
    archive = stand.servers.folder / "before.tar"
    archive.write_bytes(_git("archive", "--format=tar", name))
    subprocess.run(["tar", "-x", "-C", str(folder), "-f", str(archive)], check=True)
    archive.unlink()
    return _side_in(stand.ours, folder, name)


def _git(*arguments: str) -> bytes:
    done = subprocess.run(["git", *arguments], cwd=BASE_DIR, capture_output=True, check=False)
    if done.returncode:
        raise Stuck(f"git {' '.join(arguments)}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def _side_in(ours: Side, folder: Path, name: str) -> Side:
    environment = {
        **ours.environment,
        "DATABASE_URL": f"{ours.environment['DATABASE_URL'].rpartition('/')[0]}/before",
        "REDIS_URL": f"{ours.environment['REDIS_URL'].rpartition('/')[0]}/2",
    }
    return replace(ours, name=name, folder=folder, environment=environment)


def _ratios(figure: Callable[[Drain], float], pairs: Sequence[tuple[Drain, Drain]]) -> list[float]:
    return sorted(figure(now) / figure(before) for before, now in pairs if figure(before))


def _row(what: str, figure: Callable[[Drain], float], pairs: Sequence[tuple[Drain, Drain]]) -> Row:
    ratios = _ratios(figure, pairs)
    medians = [f"{median(figure(pair[place]) for pair in pairs):.3f}" for place in (0, 1)]
    if not ratios:
        # So few jobs that their processor time was none, to the hundredth of a second in which it is counted.
        return what, *medians, "–", "–"
    low, high = interval(ratios)
    return what, *medians, f"{median(ratios):.3f}", f"{low:.3f} to {high:.3f}"


def interval(ordered: Sequence[float]) -> tuple[float, float]:
    """The order statistics between which the median of all that could have been measured lies with at least 95 %; the
    first and the last one where there are too few for that. Nothing is assumed of their distribution."""
    count = len(ordered)
    below, chances = 0, 0.5**count
    outside = chances
    # The chance that no more than `below` values lie under the median.
    while 2 * outside <= 0.05 and below < count // 2:
        below += 1
        chances *= (count - below + 1) / below
        outside += chances
    below = max(0, below - 1)
    return ordered[below], ordered[count - 1 - below]
