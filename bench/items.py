"""Every item that can be measured by itself: its name, what it is, and how much of it in which size."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench import backlog, before, canvas, drain, due, growth, idle, paced, snapshots
from bench.result import Result
from bench.stand import Stand
from bench.statements import load_extension
from devstack.throwaway import Servers

DEFAULT = "drain"
SIZES = ("full", "quick", "tiny")
_POOLS = ("prefork", "threads")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One item. `sizes` are what `measure` takes, by the names of SIZES; `prepare` comes before the servers start."""

    title: str
    measure: Callable[[Stand, Any], Result]
    sizes: Mapping[str, Any]
    prepare: Callable[[Servers], None] | None = None


class UnknownItem(ValueError):
    """There is nothing of that name to measure."""

    def __init__(self, name: str) -> None:
        super().__init__(f"There is no item {name!r}. Items: {', '.join(ITEMS)}.")


def _sizes(module: Any) -> dict[str, Any]:
    return {"full": module.FULL, "quick": module.QUICK, "tiny": module.TINY}


ITEMS = {
    "drain": Item(title="no-op jobs beside the peer", measure=drain.measure, sizes=_sizes(drain)),
    "before": Item(title="no-op jobs beside an earlier commit", measure=before.measure, sizes=_sizes(before)),
    "paced": Item(title="how much of a rate is used", measure=paced.measure, sizes=_sizes(paced)),
    "due": Item(title="how soon jobs begin on an idle machine", measure=due.measure, sizes=_sizes(due)),
    "canvas": Item(title="canvases of a thousand jobs", measure=canvas.measure, sizes=_sizes(canvas)),
    "idle": Item(title="the whole stack with nothing to do", measure=idle.measure, sizes=_sizes(idle)),
    **{
        f"backlog-{pool}-{limits}": Item(
            title=f"backlogs of jobs of 20 ms, {limited.name}, {pool}",
            measure=partial(backlog.measure, pool=pool, limits=limits),
            sizes=_sizes(backlog),
        )
        for limits, limited in backlog.LIMITS.items()
        for pool in _POOLS
    },
    **{
        f"growth-{state}": Item(
            title=f"more and more {state} rows", measure=partial(growth.measure, state=state), sizes=_sizes(growth)
        )
        for state in growth.INSERTS
    },
    **{
        f"{beside}-{limits}": Item(
            title=f"{words}, {limits if limits == 'unpaced' else f'a {limits} key'}",
            measure=partial(snapshots.measure, beside=beside, limits=limits),
            sizes=_sizes(snapshots),
            prepare=load_extension,
        )
        for beside, words in (("held", "a held snapshot"), ("scans", "scans in a loop"))
        for limits in snapshots.OPTIONS
    },
}


def item_named(name: str) -> Item:
    """The item; raises UnknownItem, which lists all."""
    if name not in ITEMS:
        raise UnknownItem(name)
    return ITEMS[name]
