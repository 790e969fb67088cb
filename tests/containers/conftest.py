"""The project of the compose file, with its own servers."""

import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from devstack import readiness
from devstack.ports import free_port
from devstack.throwaway import Server
from tests.containers import compose
from tests.containers.composed import Composed
from tests.containers.servers_of_compose import ComposedPostgres, MailCatcher, Valkey
from tests.containers.tls_proxy import TlsProxy
from tests.waiting import wait_until


@pytest.fixture
def redis_password(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """The variables by which the password of Redis is given: by itself, or in a file, or not at all."""
    way = getattr(request, "param", "by itself")
    password = compose.ENV_FILE["REDIS_PASSWORD"]
    (tmp_path / "redis-password").write_text("" if way == "not at all" else f"{password}\n")
    in_file = {"REDIS_PASSWORD": "", "REDIS_PASSWORD_FILE": str(tmp_path / "redis-password")}
    return {} if way == "by itself" else in_file


@pytest.fixture
def stopped_valkey(redis_password: dict[str, str], tmp_path: Path) -> Server:
    """The redis of the compose file, not yet started."""
    engine = Valkey(
        compose.project(folder=tmp_path, **redis_password),
        folder=tmp_path / "redis",
        password=compose.ENV_FILE["REDIS_PASSWORD"],
    )
    engine.prepare()
    return Server(engine, stop_signal=signal.SIGTERM)


@pytest.fixture
def valkey(stopped_valkey: Server) -> Iterator[Server]:
    """The redis of the compose file."""
    stopped_valkey.start()
    yield stopped_valkey
    stopped_valkey.stop()


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[ComposedPostgres]:
    """The postgres of the compose file."""
    # Not in tmp_path: the path of a socket may have a hundred letters.
    with tempfile.TemporaryDirectory(prefix="handoff-") as folder:
        engine = ComposedPostgres(compose.project(folder=tmp_path), folder=Path(folder))
        engine.prepare()
        server = Server(engine, stop_signal=signal.SIGINT)
        server.start()
        engine.create_database()
        yield engine
        server.kill()


@pytest.fixture
def catcher(tmp_path: Path) -> Iterator[MailCatcher]:
    """What catches mails in the place of the service `mail`."""
    found = MailCatcher(tmp_path / "mail")
    wait_until(lambda: readiness.listens(found.smtp_port) and readiness.serves(found.api), timeout=60)
    yield found
    found.stop()


@pytest.fixture
def composed(postgres: ComposedPostgres, valkey: Server, catcher: MailCatcher, tmp_path: Path) -> Iterator[Composed]:
    """The project with its servers, and none of its own services started."""
    assert isinstance(valkey.engine, Valkey)
    project = Composed(postgres=postgres, redis=valkey.engine, catcher=catcher, web_port=free_port(), folder=tmp_path)
    yield project
    for container in project.started.values():
        container.kill()
        sys.stdout.write(f"--- {container.name}\n{container.output}\n")


@pytest.fixture
def proxy(composed: Composed, tmp_path: Path) -> Iterator[TlsProxy]:
    """The proxy in front of its web."""
    found = TlsProxy(to_port=composed.web_port, folder=tmp_path)
    yield found
    found.stop()
