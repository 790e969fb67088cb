"""Connections that keep old snapshots, so that vacuum removes no row that these still see; and, as a control, processes
that only keep the processors busy."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg

from bench.processes import running
from bench.sides import Side

_SCANNERS = 4
_LOWEST_PRIORITY = 19
# The mark by which the statements of bystanders are told from those of the ledger.
MARK = "bystander"
# Further processes of the server for one scan would not have its priority.
_ALONE = "SET max_parallel_workers_per_gather = 0"
_SPIN = ["nice", "-n", str(_LOWEST_PRIORITY), sys.executable, "-c", "while True: pass"]
_SCAN = f"SELECT count(*) AS {MARK}, sum(length(kwargs::text)) FROM jobs_job"


class Backend:
    """The server's process for a connection; its processor time can still be asked for when it has ended."""

    def __init__(self, connection: "psycopg.Connection[Any]") -> None:
        self._process = psutil.Process(connection.info.backend_pid)
        self._last = 0.0

    def give_way(self) -> None:
        """Lowers the priority of the process to the lowest."""
        self._process.nice(_LOWEST_PRIORITY)

    def cpu_seconds(self) -> float:
        """So far, or until shortly before its end."""
        with suppress(psutil.NoSuchProcess):
            times = self._process.cpu_times()
            self._last = times.user + times.system
        return self._last


@contextmanager
def held(side: Side) -> Iterator[list[Backend]]:
    """A transaction that has read once and then does nothing, as a forgotten session or a dump."""
    with side.connect() as connection:
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        connection.execute(f"SELECT count(*) AS {MARK} FROM jobs_job")
        yield [Backend(connection)]
        connection.execute("ROLLBACK")


@contextmanager
def scans(side: Side) -> Iterator[list[Backend]]:
    """Four connections that read the whole table in a loop, as reports do.

    They run at the lowest priority, so that the figures show the cost of their snapshots and reads, and not the lack of
    processor time on a small machine.
    """
    stopping = threading.Event()
    with ExitStack() as stack:
        connections = [stack.enter_context(side.connect()) for _ in range(_SCANNERS)]
        for connection in connections:
            connection.execute(_ALONE)
        backends = [Backend(connection) for connection in connections]
        for backend in backends:
            backend.give_way()
        threads = [threading.Thread(target=_scan, args=(connection, stopping)) for connection in connections]
        for thread in threads:
            thread.start()
        try:
            yield backends
        finally:
            stopping.set()
            for thread in threads:
                thread.join()
            for backend in backends:
                backend.cpu_seconds()


@contextmanager
def spinners(side: Side, folder: Path) -> Iterator[None]:
    """The control for scans: as many processes, at the same priority, that use processor time and no database."""
    with ExitStack() as stack:
        for number in range(_SCANNERS):
            stack.enter_context(running(side, folder, _SPIN, name=f"spinner-{number}"))
        yield


def _scan(connection: "psycopg.Connection[Any]", stopping: threading.Event) -> None:
    while not stopping.is_set():
        connection.execute(_SCAN).fetchall()


BYSTANDERS: dict[str, Callable[[Side], Any]] = {"held": held, "scans": scans}
