"""Processes under measure: a worker with its pool, and what it and the servers cost."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from bench.sides import Side
from devstack.home import BASE_DIR
from devstack.launch import Launch
from devstack.terminal import last_lines

_LOOK_SECONDS = 0.1
_PATIENCE_SECONDS = 60
_STOP_SECONDS = 30


class Stuck(Exception):
    """A worker ended, or nothing happened for a minute; the message holds the end of its log."""


class Family:
    """A process and all that descend from it."""

    def __init__(self, pid: int) -> None:
        self._leader = psutil.Process(pid)

    def cpu_seconds(self) -> float:
        """User and system time so far, also of children that have ended and were waited for."""
        times = self._leader.cpu_times()
        total = times.user + times.system + times.children_user + times.children_system
        for process in self._leader.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                own = process.cpu_times()
                total += own.user + own.system
        return total

    def rss_bytes(self) -> int:
        """Resident memory, what is shared counted in each."""
        return sum(process.memory_info().rss for process in [self._leader, *self._leader.children(recursive=True)])


class Worker(Family):
    """A running worker."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        super().__init__(process.pid)
        self._process = process
        self._log = log

    def wait_until(self, progress: Callable[[], int], wanted: int) -> int:
        """Waits until `progress()` is at least `wanted`; returns it. Raises Stuck where it stands still."""
        last, since = -1, time.monotonic()
        while (now := progress()) < wanted:
            if now != last:
                last, since = now, time.monotonic()
            if self._process.poll() is not None or time.monotonic() - since > _PATIENCE_SECONDS:
                raise Stuck(f"{now} of {wanted}:\n{last_lines(self._log)}")
            time.sleep(_LOOK_SECONDS)
        return now

    def is_ready(self) -> int:
        """1 once it consumes."""
        return int(" ready." in self._log.read_text(errors="replace"))


@contextmanager
def worker(side: Side, folder: Path, *flags: str, name: str = "worker") -> Iterator[Worker]:
    """A worker of this side while the block runs."""
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        launch = Launch(argv=side.worker_command(*flags), folder=BASE_DIR, env=side.environment)
        process = launch.start(output=output)
    try:
        yield Worker(process, log)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            # It leads a group of its own.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
