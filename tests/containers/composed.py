"""The services of the compose file as processes, each with exactly its command and environment.

No engine is needed: only the hosts are replaced, and the places of mounted files.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg

from devstack.ports import LOOPBACK, free_port
from devstack.postgres import Postgres
from devstack.redis import Redis
from tests.containers import compose
from tests.containers.image import Image
from tests.containers.servers_of_compose import MailCatcher

# An address that only who listens on all of them listens on.
NEIGHBOUR = "127.0.0.2"


class Container:
    """One service as a process."""

    def __init__(self, image: Image, name: str, *, command: list[str], env: Mapping[str, str], folder: Path) -> None:
        self.image, self.name, self.env = image, name, dict(env)
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                image.on_machine(name, *command),
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """All it has written so far."""
        return self.log.read_text(errors="replace")

    def why_not_healthy(self) -> str:
        """What the image's health check, which looks from inside, says of it; empty when all is well."""
        assert self.process.poll() is None, f"{self.name} ended with status {self.process.returncode}:\n{self.output}"
        port = [f"--port={self.env['GRANIAN_PORT']}"] if self.name == "web" else []
        command = self.image.on_machine(self.name, "healthy", str(self.process.pid), *port)
        done = subprocess.run(command, check=False, env=self.env, capture_output=True, text=True)
        return done.stderr if done.returncode else ""

    def kill(self) -> None:
        """Whatever is left of it."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Composed:
    """The project of the compose file, with these variables in its `.env`."""

    def __init__(self, *, postgres: Postgres, redis: Redis, catcher: MailCatcher, web_port: int, folder: Path) -> None:
        self.folder = folder
        self.web_port = web_port
        self.database_url = postgres.url()
        self.image = Image.of(folder)
        self.services: dict[str, dict[str, Any]] = {}
        self._secrets: dict[str, dict[str, str]] = {}
        self.started: dict[str, Container] = {}
        self._hosts = {
            ("DATABASE_URL", "@postgres:5432/"): f"@{LOOPBACK}:{postgres.port}/",
            ("REDIS_HOST", "redis"): LOOPBACK,
            ("REDIS_PORT", "6379"): str(redis.port),
            ("FLOWER_URL", "//flower:5555"): f"//{NEIGHBOUR}:{free_port()}",
            ("EMAIL_HOST", "mail"): LOOPBACK,
            ("EMAIL_PORT", "1025"): str(catcher.smtp_port),
        }

    def configure(self, **variables: str) -> None:
        """Reads the compose file with these variables."""
        project = compose.project(folder=self.folder, **variables)
        self.services, self._secrets = project["services"], project["secrets"]

    def start(self, service: str, *, number: int = 1) -> Container:
        """Starts one container of a service."""
        found = self.services[service]
        name = service if number == 1 else f"{service}-{number}"
        return self._begin(name, command=found["command"], env=self.environment(found))

    def run(self, service: str, *command: str, **variables: str) -> str:
        """`docker compose run --rm SERVICE …`, with these variables; returns what it told, once it has ended well."""
        env = {**self.environment(self.services[service]), **variables}
        container = self._begin(f"{service}-run", command=[*command], env=env)
        assert container.process.wait(60) == 0, container.output
        return container.output

    def _begin(self, name: str, *, command: list[str], env: Mapping[str, str]) -> Container:
        container = Container(self.image, name, command=command, env=env, folder=self.folder)
        self.started[name] = container
        return container

    def environment(self, service: dict[str, Any]) -> dict[str, str]:
        """The variables of a service, with our servers for its hosts, and its mounted files where it finds them."""
        given = {name: value for name, value in service["environment"].items() if value is not None}
        for mounted in service["secrets"]:
            for name, value in given.items():
                if value == mounted["target"]:
                    given[name] = self._mount(mounted["source"])
        for (name, host), ours in self._hosts.items():
            assert host in given[name], name
            given[name] = given[name].replace(host, ours)
        # All containers share one machine here, hence the port.
        return {**self.image.environment, "GRANIAN_PORT": str(self.web_port), **given}

    def _mount(self, secret: str) -> str:
        ours = self.image.data / secret
        shutil.copy(self._secrets[secret]["file"], ours)
        shutil.chown(ours, self.image.data.stat().st_uid, self.image.data.stat().st_gid)
        return f"{self.image.environment['HANDOFF_HOME']}/{secret}"

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        """Rows of its database."""
        with psycopg.connect(self.database_url) as connection:
            return connection.execute(query.encode()).fetchall()
