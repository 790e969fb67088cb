"""The services of the compose file as processes, each with exactly its command and environment.

No engine is needed: only the hosts are replaced, by throw-away servers. Redis is started with the configuration of the
compose file.
"""

import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg

from devstack import mail
from devstack.launch import Launch
from devstack.ports import LOOPBACK, free_port
from devstack.postgres import Postgres
from devstack.redis import Redis, binary
from tests.containers import compose
from tests.containers.image import Image


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


class Valkey(Redis):
    """The redis of the compose file: its own configuration, with the volume in a folder, and on a port of our own."""

    def __init__(self, content: str, *, folder: Path, password: str) -> None:
        super().__init__(folder=folder, port=free_port(), password=password)
        self._content = content

    def prepare(self) -> None:
        """Writes the configuration."""
        self.folder.mkdir(exist_ok=True)
        assert "\ndir /data\n" in f"\n{self._content}"
        (self.folder / "valkey.conf").write_text(self._content.replace("dir /data\n", f"dir {self.folder}\n"))

    def launch(self) -> Launch:
        """The command of the service."""
        options = [f"--port {self.port}", f"--bind {LOOPBACK}"]
        words = [word for option in options for word in option.split()]
        return Launch(argv=[str(binary()), str(self.folder / "valkey.conf"), *words], folder=self.folder)


class MailCatcher:
    """What catches mails in the place of the service `mail`."""

    def __init__(self, folder: Path) -> None:
        self.smtp_port, web_port = free_port(), free_port()
        self.api = f"http://{LOOPBACK}:{web_port}/messages/"
        launch = mail.launch(folder=folder, smtp_port=self.smtp_port, web_port=web_port)
        self.process = launch.start(output=subprocess.DEVNULL)

    def stop(self) -> None:
        """Ends it."""
        self.process.kill()
        self.process.wait()


class Composed:
    """The project of the compose file, with these variables in its `.env`."""

    def __init__(self, *, postgres: Postgres, redis: Redis, catcher: MailCatcher, web_port: int, folder: Path) -> None:
        self.folder = folder
        self.web_port = web_port
        self.database_url = postgres.url()
        self.image = Image.of(folder)
        self.services: dict[str, dict[str, Any]] = {}
        self.started: dict[str, Container] = {}
        self._hosts = {
            ("DATABASE_URL", "@postgres:5432/"): f"@{LOOPBACK}:{postgres.port}/",
            ("REDIS_HOST", "redis"): LOOPBACK,
            ("REDIS_PORT", "6379"): str(redis.port),
            ("FLOWER_URL", "//flower:5555"): f"//{LOOPBACK}:{free_port()}",
            ("EMAIL_HOST", "mail"): LOOPBACK,
            ("EMAIL_PORT", "1025"): str(catcher.smtp_port),
        }

    def configure(self, **variables: str) -> None:
        """Reads the compose file with these variables."""
        self.services = compose.services(folder=self.folder, **variables)

    def start(self, service: str, *, number: int = 1) -> Container:
        """Starts one container of a service."""
        found = self.services[service]
        name = service if number == 1 else f"{service}-{number}"
        return self._begin(name, command=found["command"], env=self.environment(found))

    def run(self, service: str, *command: str, **variables: str) -> None:
        """`docker compose run --rm SERVICE …`, with these variables; returns when it has ended well."""
        env = {**self.environment(self.services[service]), **variables}
        container = self._begin(f"{service}-run", command=[*command], env=env)
        assert container.process.wait(60) == 0, container.output

    def _begin(self, name: str, *, command: list[str], env: Mapping[str, str]) -> Container:
        container = Container(self.image, name, command=command, env=env, folder=self.folder)
        self.started[name] = container
        return container

    def environment(self, service: dict[str, Any]) -> dict[str, str]:
        """The variables of a service, with our servers for its hosts."""
        given = {name: value for name, value in service["environment"].items() if value is not None}
        for (name, host), ours in self._hosts.items():
            assert host in given[name], name
            given[name] = given[name].replace(host, ours)
        # All containers share one machine here, hence the port.
        return {**self.image.environment, "GRANIAN_PORT": str(self.web_port), **given}

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        """Rows of its database."""
        with psycopg.connect(self.database_url) as connection:
            return connection.execute(query.encode()).fetchall()
