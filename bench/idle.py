"""What the whole stack costs while nothing happens: processor time and memory of what bin/up starts."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.processes import Family, Stuck
from bench.result import Result, Row, Table, spread
from bench.stand import Stand
from devstack.environment import REDIS_NAMES, given
from devstack.home import BASE_DIR
from devstack.ports import free_port
from devstack.terminal import say
from jobs.queues import WORKER_GROUPS

# Of the project itself; the others are servers, of which the mail catcher and the CRM are for development alone.
PROJECT = ["web", *[group.name for group in WORKER_GROUPS], "beat", "flower"]
_SERVERS = ["postgres", "redis"]
_PORTS = 20
_PATIENCE_SECONDS = 240
_STOP_TRIES = 30


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How long it is watched, after it has come to rest."""

    rest_seconds: float
    windows: int
    window_seconds: float


FULL = Sizes(rest_seconds=60, windows=5, window_seconds=60)
QUICK = Sizes(rest_seconds=10, windows=3, window_seconds=15)
TINY = Sizes(rest_seconds=0, windows=2, window_seconds=1)


def measure(stand: Stand, sizes: Sizes) -> Result:
    """Watches a stack of its own, on servers of its own. Raises Stuck where it does not start."""
    if given("DATABASE_URL", *REDIS_NAMES):
        raise Stuck("The stack would use the servers that .env names: take DATABASE_URL and REDIS_URL out of it first.")
    with _stack(stand.servers.folder / "idle") as pids:
        families = {name: Family(pid) for name, pid in pids.items() if name in {*PROJECT, *_SERVERS}}
        say(f"{len(pids)} processes run; waiting for them to rest …")
        time.sleep(sizes.rest_seconds)
        shares = [_shares(families, sizes.window_seconds) for _ in range(sizes.windows)]
        pss = {name: family.pss_bytes() for name, family in families.items()}
        counts = {name: family.count() for name, family in families.items()}
    rows = [
        *(_row(name, [name], shares, pss, counts) for name in PROJECT),
        _row("the project", PROJECT, shares, pss, counts),
        *(_row(name, [name], shares, pss, counts) for name in _SERVERS),
        _row("all of it", [*PROJECT, *_SERVERS], shares, pss, counts),
    ]
    how = (
        f"What bin/up starts, with nothing to do, {sizes.rest_seconds:g} s after its start: {sizes.windows} windows of "
        f"{sizes.window_seconds:g} s. Processor time is in thousandths of one core, minimum / median / maximum; memory "
        "is proportional (PSS): what several processes share is divided among them."
    )
    return Result(
        how=how,
        tables=[Table(columns=("", "processes", "processor time, ‰ of a core", "memory, MB"), rows=rows)],
        figures={"processor_shares": shares, "pss_bytes": pss, "processes": counts},
    )


def _row(
    name: str,
    parts: Sequence[str],
    shares: Sequence[dict[str, float]],
    pss: dict[str, int],
    counts: dict[str, int],
) -> Row:
    return (
        name,
        str(sum(counts[part] for part in parts)),
        spread([1000 * sum(window[part] for part in parts) for window in shares], "{:.1f}"),
        f"{sum(pss[part] for part in parts) / 1e6:.0f}",
    )


def _shares(families: dict[str, Family], seconds: float) -> dict[str, float]:
    """Each one's share of a core in the next seconds."""
    before, begin = {name: family.cpu_seconds() for name, family in families.items()}, time.monotonic()
    time.sleep(seconds)
    spent = {name: family.cpu_seconds() - before[name] for name, family in families.items()}
    took = time.monotonic() - begin
    return {name: used / took for name, used in spent.items()}


@contextmanager
def _stack(home: Path) -> Iterator[dict[str, int]]:
    """A stack while the block runs; yields its processes by name."""
    port = free_port(_PORTS)
    try:
        done = _up(home, "--detach", "--no-reload", f"--port={port}")
        if done.returncode:
            raise Stuck(f"bin/up did not start:\n{done.stdout}{done.stderr}")
        status = json.loads(_up(home, "--status", "--json").stdout)
        yield {process["name"]: process["pid"] for process in status["processes"]}
    finally:
        # One that is just starting refuses to be stopped.
        for _ in range(_STOP_TRIES):
            if not _up(home, "--stop").returncode:
                break
            time.sleep(1)


def _up(home: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    # Nothing that somebody named for a server of his own.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DATABASE", "REDIS", "JOBS_"))}
    return subprocess.run(
        [sys.executable, "-m", "devstack", "up", *arguments],
        check=False,
        cwd=BASE_DIR,
        env={**kept, "HANDOFF_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=_PATIENCE_SECONDS,
    )
