"""What runs, on disk: for `--status`, `--stop`, and for the next `bin/up` when the supervisor was killed."""

import fcntl
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Self, TypedDict

import psutil

from devstack.home import Home

# Every process of a stack carries these two variables: so that what a killed supervisor has left is found, even what it
# had no time to write down.
MARK_HOME = "HANDOFF_STACK"
MARK_NAME = "HANDOFF_PROCESS"


class ProcessState(TypedDict):
    """One process."""

    name: str
    pid: int | None
    created: float | None
    state: str


class State(TypedDict):
    """The whole file."""

    supervisor: ProcessState
    port: int
    phase: Literal["starting", "ready", "stopping", "stopped", "failed"]
    failure: str
    processes: list[ProcessState]
    urls: dict[str, str]


def read(home: Home) -> State | None:
    """The state as last written; None where nothing ever ran."""
    try:
        state: State = json.loads(home.state.read_text())
    except FileNotFoundError:
        return None
    return state


def write(home: Home, state: State) -> None:
    """Replaces the file in one step."""
    home.write_private(home.state, json.dumps(state, indent=2))


def created(pid: int) -> float | None:
    """When the process with this number began; None when there is none. Number and time together name a process."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None


def lives(process: ProcessState) -> bool:
    """Whether this very process is still there, and no other that got its number."""
    pid, began = process["pid"], process["created"]
    if pid is None or began is None:
        return False
    try:
        found = psutil.Process(pid)
        return abs(found.create_time() - began) < 2 and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Lock:
    """Held by the one supervisor of a data folder; the system lets go of it when the supervisor dies in any way."""

    def __init__(self, home: Home) -> None:
        self._path: Path = home.lock
        self._descriptor: int | None = None

    def take(self, *, patience_seconds: float = 1) -> bool:
        """Whether it is ours now. Somebody who only looks holds it for an instant, hence the patience."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + patience_seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(0.01)
                    continue
                os.close(descriptor)
                return False
            self._descriptor = descriptor
            return True

    def release(self) -> None:
        """Lets go of it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()


def is_supervised(home: Home) -> bool:
    """Whether a supervisor lives for this folder."""
    if not home.lock.exists():
        return False
    with Lock(home) as lock:
        return not lock.take(patience_seconds=0)


def leftovers(home: Home) -> dict[str, list[psutil.Process]]:
    """The processes of this folder's stack that still run, by name; meant for when no supervisor lives."""
    found: dict[str, list[psutil.Process]] = {}
    state = read(home)
    for process in state["processes"] if state else []:
        if process["pid"] is not None and lives(process):
            with suppress(psutil.NoSuchProcess):
                found.setdefault(process["name"], []).append(psutil.Process(process["pid"]))
    for running in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            marks = running.environ()
            if marks.get(MARK_HOME) == str(home.folder) and MARK_NAME in marks:
                group = found.setdefault(marks[MARK_NAME], [])
                if running not in group:
                    group.append(running)
    return found
