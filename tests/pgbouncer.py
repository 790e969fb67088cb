"""PgBouncer in transaction mode, between the project and the PostgreSQL of the test run."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, connections

from devstack.launch import drop_root, give_away
from devstack.ports import LOOPBACK, free_port
from jobs import settle
from tests import processes
from tests.waiting import wait_until

# Fewer connections to the server than the processes of a test have to PgBouncer: each transaction gets another one.
SERVER_CONNECTIONS = 4
# As many as any test has transactions open at once.
_ROOMY_CONNECTIONS = 40
SETTINGS = """
[databases]
* = host={host} port={server_port}

[pgbouncer]
listen_addr = {host}
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {folder}/users.txt
pool_mode = transaction
default_pool_size = {server_connections}
max_client_conn = 300
# As docs/deployment.md says: what a task sets reaches no other client, and a PostgreSQL that is back is seen at once.
server_reset_query_always = 1
server_login_retry = 1
"""


def binary() -> str | None:
    """Debian keeps it where an ordinary user's PATH does not look."""
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


class PgBouncer:
    """One process of it; `port` is where the project connects to."""

    def __init__(self, folder: Path, server: dict[str, Any], server_connections: int) -> None:
        self.port = free_port()
        self.log = folder / "pgbouncer.log"
        users = folder / "users.txt"
        users.write_text(f'"{server["USER"]}" "{server["PASSWORD"]}"\n')
        users.chmod(0o600)
        settings = folder / "pgbouncer.ini"
        settings.write_text(
            SETTINGS.format(
                host=LOOPBACK,
                server_port=server["PORT"],
                port=self.port,
                folder=folder,
                server_connections=server_connections,
            )
        )
        for path in (folder, users, settings):
            give_away(path)
        command = [str(binary()), str(settings)]
        with self.log.open("ab") as output:
            # It refuses to run as root.
            self._process = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output, **drop_root()
            )

    def listens(self) -> bool:
        """Whether clients may connect; fails the test where it has ended."""
        if self._process.poll() is not None:
            pytest.fail(f"PgBouncer ended with status {self._process.returncode}:\n{self.log.read_text()}")
        try:
            socket.create_connection((LOOPBACK, self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def stop(self) -> None:
        """Ends it, with the connections that still are open."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)


@pytest.fixture
def pgbouncer(transactional_db: None) -> Iterator[PgBouncer]:
    """All connections of the test and of the processes that it starts go through it. Ask for it before `processes`."""
    with _running(SERVER_CONNECTIONS) as found, _leading_to(found.port):
        yield found


@pytest.fixture
def roomy_pgbouncer(transactional_db: None) -> Iterator[PgBouncer]:
    """The same, with a connection to the server for each transaction."""
    with _running(_ROOMY_CONNECTIONS) as found, _leading_to(found.port):
        yield found


@pytest.fixture
def pgbouncer_of_processes(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[PgBouncer]:
    """The same, for the processes alone: the test asks PostgreSQL itself."""
    with _running(_ROOMY_CONNECTIONS) as found:
        monkeypatch.setattr(processes, "pooler_port", found.port)
        yield found


@contextmanager
def _running(server_connections: int) -> Iterator[PgBouncer]:
    if binary() is None:
        pytest.skip("no PgBouncer here: apt-get install pgbouncer")
    # Not in tmp_path, which only root may enter.
    with tempfile.TemporaryDirectory(prefix="handoff-") as folder:
        found = PgBouncer(Path(folder), connection.settings_dict, server_connections)
        wait_until(found.listens, timeout=30)
        yield found
        found.stop()


@contextmanager
def _leading_to(port: int) -> Iterator[None]:
    """Whatever this process and its children connect to meanwhile."""
    before = connection.settings_dict["PORT"]
    _lead_to(port)
    yield
    _lead_to(before)


def _lead_to(port: Any) -> None:
    connections.close_all()
    settle.close_beside()
    connection.settings_dict["PORT"] = port
