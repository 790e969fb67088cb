"""`bin/bench` as a person calls it."""

import os
import subprocess
import sys

from devstack.home import BASE_DIR


def bench(*words: str) -> "subprocess.CompletedProcess[str]":
    """The command with the least of everything, and what it printed."""
    # Names that lead nowhere: whoever uses them instead of servers of its own fails.
    environment = {**os.environ, "DATABASE_URL": "postgres://127.0.0.1:1/none", "REDIS_URL": "redis://127.0.0.1:1/0"}
    return subprocess.run(
        [sys.executable, "-m", "bench", *words, "--size=tiny"],
        cwd=BASE_DIR,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
