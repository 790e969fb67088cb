"""The servers of the compose file, started as it says with the binaries of the local stack, each on a free port."""

import os
import subprocess
from pathlib import Path
from typing import Any

from devstack import mail
from devstack.launch import Launch
from devstack.ports import LOOPBACK, free_port
from devstack.postgres import Postgres
from devstack.redis import Redis, binary


class ComposedPostgres(Postgres):
    """The postgres of the compose file: the cluster that its image makes, and its command."""

    def __init__(self, project: dict[str, Any], *, folder: Path) -> None:
        service = project["services"]["postgres"]
        variables = service["environment"]
        super().__init__(folder=folder, port=free_port(), password=variables["POSTGRES_PASSWORD"])
        assert (variables["POSTGRES_USER"], variables["POSTGRES_DB"]) == ("handoff", "handoff")
        self.initdb_options = variables["POSTGRES_INITDB_ARGS"].split()
        program, *options = service["command"]
        assert program == "postgres"
        assert set(options[::2]) == {"-c"}
        self._told = dict(option.split("=", 1) for option in options[1::2])

    def launch(self) -> Launch:
        """The command of the service."""
        # Who is in the container reaches it without the network: the socket is beside the data here.
        self.settings = {**self._told, "listen_addresses": LOOPBACK, "unix_socket_directories": self._reach("data")}
        return super().launch()

    @property
    def inside(self) -> dict[str, str]:
        """The variables by which a program is in its container."""
        return {"PGHOST": str(self.data), "PGPORT": str(self.port)}


class Valkey(Redis):
    """The redis of the compose file, by its own command, with the volume in a folder and on a port of our own."""

    def __init__(self, project: dict[str, Any], *, folder: Path, password: str) -> None:
        super().__init__(folder=folder, port=free_port(), password=password)
        self._service = project["services"]["redis"]
        self._secret = project["secrets"]["redis_password"]["file"]

    def prepare(self) -> None:
        """What its image has: the server, and an entrypoint that takes further options from a variable."""
        self.folder.mkdir(exist_ok=True)
        programs = self.folder / "bin"
        programs.mkdir(exist_ok=True)
        if not (programs / "valkey-server").exists():
            (programs / "valkey-server").symlink_to(binary())
        entrypoint = programs / "docker-entrypoint.sh"
        entrypoint.write_text('#!/bin/sh\nexec "$@" $VALKEY_EXTRA_FLAGS\n')
        entrypoint.chmod(0o755)

    def launch(self) -> Launch:
        """The command of the service."""
        *shell, script = self._service["command"]
        for place, ours in (("dir /data\n", f"dir {self.folder}\n"), ("/run/secrets/redis_password", self._secret)):
            assert place in script
            script = script.replace(place, ours)
        env = {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "VALKEY_EXTRA_FLAGS": f"--port {self.port} --bind {LOOPBACK}",
            **self._service["environment"],
        }
        return Launch(argv=[*shell, script], folder=self.folder, env=env)


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
