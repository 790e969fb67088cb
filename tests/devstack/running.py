"""`bin/up` as a person calls it, with a data folder of the test's own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from devstack.home import BASE_DIR

# What the test run has put into the environment would keep the stack from starting servers of its own.
OF_THE_TESTS = ("DATABASE_URL", "REDIS_URL", "SECRET_KEY", "EMAIL_HOST", "EMAIL_PORT", "ALLOWED_HOSTS")


class Stack:
    """One data folder and the calls of `bin/up` on it."""

    def __init__(self, folder: Path, *, port: int) -> None:
        self.folder = folder
        self.port = port
        kept = {name: value for name, value in os.environ.items() if name not in OF_THE_TESTS}
        self.env = {**kept, "HANDOFF_HOME": str(folder)}

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """`bin/up …`, with what it printed."""
        return subprocess.run(
            [sys.executable, "-m", "devstack", "up", *arguments],
            check=False,
            cwd=BASE_DIR,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=240,
        )

    def up(self) -> None:
        """Has it running, whether it ran before or not."""
        done = self.run("--detach", "--no-reload", f"--port={self.port}")
        assert done.returncode == 0, done.stdout + done.stderr

    def status(self) -> dict[str, Any]:
        """What `--status --json` prints."""
        status: dict[str, Any] = json.loads(self.run("--status", "--json").stdout)
        return status

    def pids(self) -> dict[str, int | None]:
        """The processes by name."""
        return {process["name"]: process["pid"] for process in self.status()["processes"]}

    def supervisor(self) -> psutil.Process:
        """The process that looks after the others."""
        return psutil.Process(json.loads((self.folder / "state.json").read_text())["supervisor"]["pid"])
