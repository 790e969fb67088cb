"""The smaller rooms of the stack."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import watchfiles

from devstack.demo.report import percentile
from devstack.home import BASE_DIR, Home
from devstack.ports import LOOPBACK, Ports, PortTaken, free_port, require_free
from devstack.reload import SourceFilter, watch
from devstack.stack import Stack
from devstack.state import Lock, is_supervised
from jobs.queues import QUEUES, WORKER_GROUPS
from tests.waiting import wait_until


def test_a_taken_port_is_named_with_its_holder() -> None:
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortTaken, match=rf"Port {port} \(for web\) is taken by .* \(pid {os.getpid()}\)"):
            require_free({"web": port})


def test_a_secret_is_made_once_and_kept(tmp_path: Path) -> None:
    home = Home(tmp_path)
    first = home.secret("one")
    assert home.secret("two") != first
    assert Home(tmp_path).secret("one") == first


def test_a_lock_is_free_again_when_its_holder_is_gone(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with Lock(home) as lock:
        assert lock.take()
        assert is_supervised(home)
        assert not Lock(home).take(patience_seconds=0)
    assert not is_supervised(home)


def test_servers_that_the_environment_names_are_used_instead_of_embedded_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgres://me@db.internal:5432/mine")
    monkeypatch.setenv("DATABASE_PASSWORD", "s@cret")
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setenv("REDIS_HOST", "redis.internal")
    monkeypatch.setenv("REDIS_PASSWORD", "p@ss")
    stack = Stack.of(Home(tmp_path), Ports(8000))
    assert not {"postgres", "redis"} & {program.name for program in stack.servers()}
    assert stack.urls()["database"] == "postgres://me:s%40cret@db.internal:5432/mine"
    assert stack.urls()["redis"] == "redis://:p%40ss@redis.internal:6379/0"
    stack.write_environment()
    assert not [name for name in ("DATABASE_URL", "REDIS_URL") if name in (tmp_path / "env").read_text()]


def test_every_declared_queue_has_a_worker_and_only_one() -> None:
    consumed = [queue for group in WORKER_GROUPS for queue in group.queues]
    assert sorted(consumed) == sorted(QUEUES)


def test_only_what_the_processes_run_makes_them_start_again(tmp_path: Path) -> None:
    wanted = SourceFilter(tmp_path)
    seen = [
        name
        for name in ("jobs/task.py", "jobs/templates/jobs/page.html", "tests/test_a.py", ".handoff/a.py", "README.md")
        if wanted(watchfiles.Change.modified, str(tmp_path / name))
    ]
    assert seen == ["jobs/task.py", "jobs/templates/jobs/page.html"]


def test_a_changed_source_file_is_noticed(tmp_path: Path) -> None:
    changed: list[str] = []
    source = tmp_path / "jobs" / "task.py"
    source.parent.mkdir()
    watch(changed.append, root=tmp_path)

    def noticed() -> bool:
        # Written again at each look: the watcher may not be there yet when it is written first.
        source.write_text(f"# {len(changed)}")
        return "jobs/task.py" in changed

    wait_until(noticed)


def test_servers_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys; from devstack.throwaway import Servers; servers = Servers(); servers.start();"
        "print(servers.postgres.pid, servers.redis.pid, flush=True); sys.stdin.read()"
    )
    env = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "REDIS_URL")}
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=BASE_DIR, env={**env, "TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as owner:  # fmt: skip
        assert owner.stdout
        servers = [psutil.Process(int(pid)) for pid in owner.stdout.readline().split()]
        assert len(servers) == 2
        owner.kill()
    wait_until(lambda: not any(server.is_running() for server in servers))


def test_the_next_run_removes_what_a_killed_one_has_left(tmp_path: Path) -> None:
    left = tmp_path / "handoff-throwaway-left"
    left.mkdir()
    (left / "owner.json").write_text(json.dumps({"pid": os.getpid(), "created": 1.0}))
    code = "from devstack.throwaway import Servers; Servers().stop()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=BASE_DIR, env={**os.environ, "TMPDIR": str(tmp_path)})
    assert not left.exists()


def test_neighbouring_ports_are_below_those_that_linux_hands_out() -> None:
    assert free_port(20) + 20 < 32768


@pytest.mark.parametrize(("percent", "value"), [(50, 2), (99, 4), (1, 1)])
def test_percentiles_are_values_that_were_measured(percent: float, value: float) -> None:
    assert percentile([4, 1, 3, 2], percent) == value
