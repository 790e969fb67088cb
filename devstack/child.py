"""One supervised process: starts it, notices its end, starts it again with growing pauses, stops it."""

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

from devstack.program import Program
from devstack.state import MARK_HOME, MARK_NAME, ProcessState, created

FIRST_PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 15.0
# A process that ran for so long is sound: its next end is a first one.
SOUND_AFTER_SECONDS = 30.0
READY_CHECK_SECONDS = 0.25
LOG_BYTES = 10 * 1024 * 1024


class Child:
    """The life of one program. Nothing here blocks: the supervisor calls `tick` a few times per second."""

    def __init__(self, program: Program, *, home: Path, log: Path) -> None:
        self.program = program
        self.name = program.name
        self.log = log
        self.state: Literal["starting", "running", "restarting", "stopping", "stopped"] = "stopped"
        self.pid: int | None = None
        self.exits = 0
        self.last_end = ""
        self._home = home
        self._created: float | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._failures = 0
        self._started = self._next_check = self._restart = self._kill = 0.0
        self._again = False

    def start(self) -> None:
        """Starts the process. Raises OSError where the system does not let us."""
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        with self.log.open("ab") as output:
            marks = {MARK_HOME: str(self._home), MARK_NAME: self.name}
            self._process = self.program.launch().start(output=output.fileno(), env=marks)
        self.pid = self._process.pid
        self._created = created(self.pid)
        self._started = self._next_check = time.monotonic()
        self.state = "starting"

    def stop(self, *, again: bool = False) -> None:
        """Asks the process to end; after its grace `tick` ends it. With `again` it is then started anew."""
        self._again = again
        if self._process is None:
            self.state = "restarting" if again else "stopped"
            self._restart = 0.0
            return
        if self.state != "stopping":
            self.state = "stopping"
            self._kill = time.monotonic() + self.program.grace_seconds
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, self.program.stop_signal)

    def kill(self) -> None:
        """Ends the process and all of its group at once."""
        self._kill = 0.0
        if self._process is not None:
            _kill_group(self._process.pid)

    def tick(self) -> str | None:
        """Looks after the process. Returns what a person should know, when something happened."""
        now = time.monotonic()
        if self._process is None:
            return self._start_again(now) if self.state == "restarting" and now >= self._restart else None
        if (status := self._ended()) is not None:
            return self._settle(status, now)
        if self.state == "starting" and now >= self._next_check:
            self._next_check = now + READY_CHECK_SECONDS
            if self.program.is_ready(self._process.pid):
                self.state = "running"
                if self.exits:
                    return f"{self.name} runs again (pid {self.pid})"
        if self.state == "stopping" and now >= self._kill:
            _kill_group(self._process.pid)
            self._kill = now + 5
            return f"{self.name} did not end within {self.program.grace_seconds:g} s: killed"
        return None

    def _start_again(self, now: float) -> str | None:
        try:
            self.start()
        except OSError as error:
            # No memory or no more processes: that may pass, and the others are still to be looked after.
            self._restart = now + LONGEST_PAUSE_SECONDS
            return f"{self.name} cannot start: {error}; the next try is in {LONGEST_PAUSE_SECONDS:g} s"
        return None

    def _ended(self) -> int | None:
        assert self._process is not None  # noqa: S101
        pid = self._process.pid
        # WNOWAIT keeps the number reserved while what is left of the group is swept: an orphan would keep ports and
        # queues, and a number given to somebody else must never be signalled.
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is None:
            return None
        _kill_group(pid)
        return self._process.wait()

    def _settle(self, status: int, now: float) -> str | None:
        self._process = self.pid = self._created = None
        if self.state == "stopping":
            self.state = "restarting" if self._again else "stopped"
            self._restart = now
            return None
        ran_seconds = now - self._started
        self._failures = 1 if ran_seconds > SOUND_AFTER_SECONDS else self._failures + 1
        self.exits += 1
        pause = min(FIRST_PAUSE_SECONDS * 2 ** (self._failures - 1), LONGEST_PAUSE_SECONDS)
        self._restart = now + pause
        self.state = "restarting"
        self.last_end = f"{self.name} ended {how(status)} after {ran_seconds:.1f} s"
        return f"{self.last_end}; it starts again in {pause:g} s"

    def described(self) -> ProcessState:
        """For the state file."""
        return {"name": self.name, "pid": self.pid, "created": self._created, "state": self.state}


def how(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"with status {status}"
    return f"by {signal.Signals(-status).name}"


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
