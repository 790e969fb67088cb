"""Every service of ours as a process with exactly its command and environment, through the image's entrypoint.

No engine is needed: only the hosts are replaced, by the servers of the test run.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from devstack.home import BASE_DIR
from devstack.ports import LOOPBACK, free_port
from devstack.postgres import DATABASE, Postgres
from devstack.redis import Redis
from devstack.throwaway import Server
from jobs.queues import WORKER_GROUPS
from tests.containers import compose
from tests.smtp import SmtpServer
from tests.waiting import wait_until

EMAIL = "ada@example.org"
SCALE = {"worker-email": 5}
# Eleven processes start at once; a busy machine takes its time.
START_SECONDS = 240
ENTRYPOINT = BASE_DIR / "bin" / "entrypoint"


class Container:
    """One service as a process on a machine with a name of its own, as in a container."""

    def __init__(self, name: str, *, command: list[str], env: Mapping[str, str], folder: Path) -> None:
        self.name, self.env = name, dict(env)
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                self._on_own_machine(*command),
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _on_own_machine(self, *command: str) -> list[str]:
        unshare = ["unshare", "--uts", *([] if os.geteuid() == 0 else ["--map-root-user"])]
        named = 'hostname "$1" && shift && exec "$@"'
        return [*unshare, "sh", "-c", named, "sh", self.name, str(ENTRYPOINT), *command]

    @property
    def output(self) -> str:
        """All it has written so far."""
        return self.log.read_text(errors="replace")

    def why_not_healthy(self) -> str:
        """What the image's health check, which looks from inside, says of it; empty when all is well."""
        assert self.process.poll() is None, f"{self.name} ended with status {self.process.returncode}:\n{self.output}"
        port = [f"--port={self.env['GRANIAN_PORT']}"] if self.name == "web" else []
        command = self._on_own_machine("healthy", str(self.process.pid), *port)
        done = subprocess.run(command, check=False, env=self.env, capture_output=True, text=True)
        return done.stderr if done.returncode else ""

    def kill(self) -> None:
        """Whatever is left of it."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Composed:
    """The project of the compose file on the servers of the test run."""

    def __init__(self, postgres: Postgres, redis: Redis, folder: Path) -> None:
        self.folder = folder
        self.web_port = free_port()
        self.database_url = postgres.url()
        self.services = compose.services(
            folder=folder,
            POSTGRES_PASSWORD=postgres.password,
            REDIS_PASSWORD=redis.password,
            EMAIL_HOST=os.environ["EMAIL_HOST"],
            EMAIL_PORT=os.environ["EMAIL_PORT"],
        )
        self._hosts = {
            ("DATABASE_URL", "@postgres:5432/"): f"@{LOOPBACK}:{postgres.port}/",
            ("REDIS_HOST", "redis"): LOOPBACK,
            ("REDIS_PORT", "6379"): str(redis.port),
            ("FLOWER_URL", "//flower:5555"): f"//{LOOPBACK}:{free_port()}",
        }
        # As the Dockerfile sets them; the port is another because all containers share one machine here.
        self._image = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONUNBUFFERED": "1",
            "HOME": str(folder),
            "HANDOFF_HOME": str(folder / "data"),
            "GRANIAN_PORT": str(self.web_port),
        }
        self.started: dict[str, Container] = {}

    def start(self, service: str, *, number: int = 1) -> Container:
        """Starts one container of a service."""
        found = self.services[service]
        name = service if number == 1 else f"{service}-{number}"
        container = Container(name, command=found["command"], env=self.environment(found), folder=self.folder)
        self.started[name] = container
        return container

    def environment(self, service: dict[str, Any]) -> dict[str, str]:
        """The variables of a service, with our servers for its hosts."""
        given = {name: value for name, value in service["environment"].items() if value is not None}
        for (name, host), ours in self._hosts.items():
            assert host in given[name], name
            given[name] = given[name].replace(host, ours)
        return {**self._image, **given}

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        """Rows of its database."""
        with psycopg.connect(self.database_url) as connection:
            return connection.execute(query.encode()).fetchall()

    def post(self, path: str, body: dict[str, str]) -> httpx.Response:
        """A request as the proxy in front passes it on."""
        headers = {"Host": "handoff.example", "X-Forwarded-Proto": "https"}
        url = f"http://{LOOPBACK}:{self.web_port}{path}"
        return httpx.post(url, json=body, headers=headers, timeout=60, trust_env=False)


@pytest.fixture
def composed(
    postgres_server: Server, redis_server: Server, empty_redis: None, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Composed]:
    assert isinstance(postgres_server.engine, Postgres)
    assert isinstance(redis_server.engine, Redis)
    postgres_server.engine.create_database()
    project = Composed(postgres_server.engine, redis_server.engine, tmp_path)
    yield project
    for container in project.started.values():
        container.kill()
        sys.stdout.write(f"--- {container.name}\n{container.output}\n")
    with psycopg.connect(postgres_server.engine.url("postgres"), autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{DATABASE}" WITH (FORCE)'.encode())


@pytest.mark.timeout(900)
def test_the_composed_services_welcome_a_user_and_end_in_good_order(
    composed: Composed, smtp_server: SmtpServer
) -> None:
    migrate = composed.start("migrate")
    assert migrate.process.wait(START_SECONDS) == 0, migrate.output
    ours = [name for name, service in composed.services.items() if compose.is_ours(service) and name != "migrate"]
    running = [composed.start(name, number=n + 1) for name in ours for n in range(SCALE.get(name, 1))]
    for container in running:
        wait_until(lambda it=container: it.why_not_healthy() == "", timeout=START_SECONDS, reason=container.name)  # type: ignore[misc]

    answer = composed.post("/signup", {"email": EMAIL, "name": "Ada", "password": "correct horse battery"})
    assert answer.status_code == 201, answer.text
    wait_until(lambda: smtp_server.mails_to(EMAIL), timeout=60)
    welcome = "SELECT state FROM jobs_job WHERE task = 'notifications.tasks.send_welcome'"
    wait_until(lambda: composed.ask(welcome) == [("completed",)], timeout=60)

    nodes = [node for (node,) in composed.ask("SELECT node FROM jobs_worker WHERE dead_at IS NULL")]
    assert len(set(nodes)) == len(nodes) == len(WORKER_GROUPS) + 4
    assert sum(node.startswith("worker-email@") for node in nodes) == 5

    for container in running:
        container.process.send_signal(signal.SIGTERM)
    ends = {container.name: container.process.wait(60) for container in running}
    assert set(ends.values()) == {0}, ends
    assert composed.ask("SELECT node FROM jobs_worker WHERE dead_at IS NULL") == []
    assert [mail.subject for mail in smtp_server.mails_to(EMAIL)] == [smtp_server.mails[0].subject]


def test_an_unknown_role_or_group_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    env = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    for arguments, told in ((["wokrer"], "worker NAME"), (["worker", "worker-mail"], "worker-email, worker-media")):
        done = subprocess.run([ENTRYPOINT, *arguments], check=False, env=env, capture_output=True, text=True)
        assert done.returncode != 0
        assert told in done.stderr
