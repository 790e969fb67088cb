"""`bin/up` from start to stop, with every process real."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator

import httpx
import psutil
import psycopg
import pytest

from devstack.home import BASE_DIR
from devstack.ports import free_port, is_free
from jobs.queues import WORKER_GROUPS
from tests.devstack.running import Stack
from tests.waiting import wait_until

# Seven processes import Django at once: on two busy cores half a minute.
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def shared_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    # 0700, as below root's home: the unprivileged PostgreSQL must get through all the same.
    folder = tmp_path_factory.mktemp("home")
    folder.chmod(0o700)
    stack = Stack(folder / ".handoff", port=free_port(20))
    yield stack
    stack.run("--stop")


@pytest.fixture
def stack(shared_stack: Stack) -> Stack:
    shared_stack.up()
    return shared_stack


def test_the_status_names_every_process_and_where_everything_is(stack: Stack) -> None:
    status = stack.status()
    assert set(status) == {"processes", "urls", "home"}
    assert status["home"] == str(stack.folder)
    assert set(status["urls"]) == {
        "web", "admin", "dashboard", "flower", "mail", "mail_api", "database", "redis", "smtp", "crm",
    }  # fmt: skip
    assert {process["name"] for process in status["processes"]} == {
        "web", "beat", "flower", "postgres", "redis", "mail", "crm", *(group.name for group in WORKER_GROUPS),
    }  # fmt: skip
    for process in status["processes"]:
        assert set(process) == {"name", "pid", "state"}
        assert process["state"] == "running"


def test_each_pid_leads_its_own_process_group(stack: Stack) -> None:
    for name, pid in stack.pids().items():
        assert pid is not None
        assert os.getpgid(pid) == pid, name
        assert psutil.Process(pid).name() not in ("sh", "bash"), name


def test_every_url_answers(stack: Stack) -> None:
    urls = stack.status()["urls"]
    for name in ("web", "admin", "dashboard", "flower", "mail", "mail_api", "crm"):
        assert httpx.get(urls[name]).status_code < 500, name
    assert "messages" in httpx.get(urls["mail_api"]).json()
    with psycopg.connect(urls["database"]) as connection:
        assert connection.execute("SELECT count(*) FROM accounts_user WHERE is_superuser").fetchone() == (1,)


def test_every_port_is_within_nineteen_of_the_web(stack: Stack) -> None:
    ports = {
        connection.laddr.port
        for pid in stack.pids().values()
        for connection in psutil.Process(pid).net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert stack.port in ports or is_free(stack.port) is False
    assert all(stack.port <= port < stack.port + 20 for port in ports)


@pytest.mark.parametrize("name", ["env", "admin-password", "secrets.json", "state.json"])
def test_files_with_secrets_are_for_their_owner_only(stack: Stack, name: str) -> None:
    assert stat.S_IMODE((stack.folder / name).stat().st_mode) == 0o600


def test_secrets_stay_out_of_command_lines(stack: Stack) -> None:
    urls = stack.status()["urls"]
    secrets = [httpx.URL(urls[name]).password for name in ("database", "redis")]
    for pid in stack.pids().values():
        line = " ".join(psutil.Process(pid).cmdline())
        assert not any(secret in line for secret in secrets)


def test_django_commands_find_the_running_stack(stack: Stack) -> None:
    done = subprocess.run(
        [sys.executable, "manage.py", "check", "--database", "default"],
        check=False, cwd=BASE_DIR, env=stack.env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_second_up_finds_the_first(stack: Stack) -> None:
    before = stack.pids()
    done = stack.run("--detach")
    assert done.returncode == 0
    assert "runs already" in done.stdout
    assert stack.pids() == before


def test_a_second_up_with_another_port_is_refused(stack: Stack) -> None:
    done = stack.run("--detach", f"--port={stack.port + 40}")
    assert done.returncode == 1
    assert f"on port {stack.port}" in done.stderr


def test_a_taken_port_is_named(stack: Stack, tmp_path: os.PathLike[str]) -> None:
    other = Stack(BASE_DIR.joinpath(tmp_path, "home"), port=stack.port)
    done = other.run("--detach", f"--port={stack.port}")
    assert done.returncode == 1
    assert f"Port {stack.port} (for web) is taken" in done.stdout + done.stderr
    assert other.run("--status").returncode == 3


def test_a_process_that_dies_is_started_again_and_reported(stack: Stack) -> None:
    dead = stack.pids()["mail"]
    assert dead
    os.killpg(dead, 9)
    wait_until(lambda: stack.run("--status").returncode == 0 and stack.pids()["mail"] not in (None, dead), timeout=60)
    assert "mail ended by SIGKILL" in (stack.folder / "logs" / "up.log").read_text()


def test_up_recovers_after_its_own_sigkill(stack: Stack) -> None:
    before = {name: psutil.Process(pid) for name, pid in stack.pids().items()}
    password = (stack.folder / "admin-password").read_text()
    supervisor = stack.supervisor()
    supervisor.kill()
    wait_until(lambda: stack.run("--status").returncode == 3)
    stack.up()
    assert not [name for name, process in before.items() if process.is_running()]
    assert stack.run("--status").returncode == 0
    assert (stack.folder / "admin-password").read_text() == password


def test_stop_leaves_nothing_running(stack: Stack) -> None:
    before = [psutil.Process(pid) for pid in stack.pids().values()]
    family = [*before, *(child for process in before for child in process.children(recursive=True))]
    assert stack.run("--stop").returncode == 0
    assert not [process for process in family if process.is_running()]
    assert all(is_free(stack.port + offset) for offset in range(6))
    done = stack.run("--status", "--json")
    assert done.returncode == 3
    assert {process["state"] for process in stack.status()["processes"]} == {"stopped"}
