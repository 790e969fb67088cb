import os
import subprocess
import sys

from devstack.home import BASE_DIR


def test_the_benchmark_runs_on_servers_of_its_own_and_says_when_it_is_not_enough() -> None:
    # Names that lead nowhere: whoever uses them instead of servers of its own fails.
    environment = {**os.environ, "DATABASE_URL": "postgres://127.0.0.1:1/none", "REDIS_URL": "redis://127.0.0.1:1/0"}
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--drain-only", "--jobs=200", "--alternations=1", "--at-least=1000"],
        cwd=BASE_DIR,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert "expected at least 1000" in done.stderr
    rows = [line for line in done.stdout.splitlines() if "jobs drained a second" in line]
    assert len(rows) == 1, done.stdout
