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
from devstack.launch import Launch
from devstack.terminal import last_lines

_LOOK_SECONDS = 0.1
_PATIENCE_SECONDS = 60
_STOP_SECONDS = 30


class Stuck(Exception):
    """A process ended, or nothing happened for a minute; the message holds the end of its log."""


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
        return sum(process.memory_info().rss for process in self._living())

    def pss_bytes(self) -> int:
        """Proportional memory: what several processes share is divided among them."""
        return sum(int(process.memory_full_info().pss) for process in self._living())

    def count(self) -> int:
        """How many processes there are."""
        return len(self._living())

    def _living(self) -> list[psutil.Process]:
        return [self._leader, *self._leader.children(recursive=True)]


class Running(Family):
    """A process that the benchmark has started, with its log."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        super().__init__(process.pid)
        self._process = process
        self._log = log

    def wait_until(
        self, progress: Callable[[], int], wanted: int, *, look_seconds: float = _LOOK_SECONDS, box: float | None = None
    ) -> int:
        """Waits until `progress()` is at least `wanted`, or `box` seconds have gone by; returns it.

        Raises Stuck where the process has ended, or there is no progress for a minute.
        """
        begin = since = time.monotonic()
        last = -1
        while (now := progress()) < wanted:
            if now != last:
                last, since = now, time.monotonic()
            self.check(f"{now} of {wanted}")
            if box is not None and time.monotonic() - begin > box:
                break
            if time.monotonic() - since > _PATIENCE_SECONDS:
                raise Stuck(f"{now} of {wanted} for a minute:\n{last_lines(self._log)}")
            time.sleep(look_seconds)
        return now

    def check(self, what: str = "it was to run on") -> None:
        """Raises Stuck where the process has ended."""
        status = self._process.poll()
        if status is not None:
            raise Stuck(f"{self._log.stem} ended with status {status} ({what}):\n{last_lines(self._log)}")

    def is_ready(self) -> int:
        """1 once a worker consumes."""
        return int(" ready." in self._log.read_text(errors="replace"))


@contextmanager
def running(side: Side, folder: Path, argv: list[str], *, name: str) -> Iterator[Running]:
    """A process of this side while the block runs."""
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = Launch(argv=argv, folder=side.folder, env=side.environment).start(output=output)
    try:
        yield Running(process, log)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            # It leads a group of its own.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def worker(side: Side, folder: Path, *flags: str, name: str = "worker") -> Iterator[Running]:
    """A worker of this side while the block runs; of flags that are given twice, the last one counts."""
    with running(side, folder, side.worker_command(*flags), name=name) as started:
        yield started
