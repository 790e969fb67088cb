"""What the demo has found: lines while it goes on, a table at the end."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from devstack.terminal import say, table

T = TypeVar("T")


@dataclass(frozen=True)
class Check:
    """One thing that must be so, and what was seen."""

    claim: str
    holds: bool
    seen: str


class Report:
    """Collects checks and times."""

    def __init__(self) -> None:
        self.checks: list[Check] = []
        self.times: list[tuple[str, str]] = []
        self.begin()

    def begin(self) -> None:
        """The clock of the steps starts."""
        self._began = time.monotonic()

    def step(self, text: str) -> None:
        """A line of progress, with the seconds since the start."""
        say(f"{time.monotonic() - self._began:6.1f} s  {text}")

    def check(self, claim: str, holds: bool, seen: object = "") -> None:
        """Notes whether a claim holds."""
        self.checks.append(Check(claim, holds, str(seen)))

    def measured(self, what: str, seconds: Sequence[float]) -> None:
        """Notes how long something took: once in seconds, many times as percentiles in milliseconds."""
        if len(seconds) == 1:
            self.times.append((what, f"{seconds[0]:.1f} s"))
        elif seconds:
            middle, high = (percentile(seconds, percent) * 1000 for percent in (50, 99))
            self.times.append((what, f"p50 {middle:.0f} ms, p99 {high:.0f} ms ({len(seconds)} requests)"))

    def conclude(self) -> int:
        """Shows the table; returns the exit status: 0 only if every check held."""
        failed = [check for check in self.checks if not check.holds]
        say()
        say(table([["ok" if check.holds else "FAILED", check.claim, check.seen] for check in self.checks]))
        if self.times:
            say()
            say(table([list(row) for row in self.times]))
        say()
        say(f"{len(failed)} of {len(self.checks)} checks failed." if failed else f"All {len(self.checks)} checks held.")
        return 1 if failed else 0


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of the values that `percent` of them do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def patiently(look: Callable[[], T], *, seconds: float) -> T:
    """Looks again and again until it sees something true, or for so long; returns what it saw last."""
    deadline = time.monotonic() + seconds
    while not (seen := look()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return seen
