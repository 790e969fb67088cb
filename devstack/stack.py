"""The processes of the stack, declared: what `docker compose` runs in containers runs here as plain processes."""

import signal
import sys
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from devstack import crm, environment, mail, readiness
from devstack.environment import REDIS_NAMES, given
from devstack.home import BASE_DIR, Home
from devstack.launch import Launch
from devstack.ports import LOOPBACK, Ports
from devstack.postgres import Postgres
from devstack.program import Program, Stage
from devstack.redis import Redis
from jobs.queues import WORKER_GROUPS, WorkerGroup

# Beyond a worker's own grace for its running jobs, after which it hands them back and ends by itself.
HAND_BACK_SECONDS = 10
WEB_THREADS = 8


@dataclass(frozen=True)
class Stack:
    """Everything that one data folder runs."""

    home: Home
    ports: Ports
    postgres: Postgres | None
    redis: Redis | None
    database_url: str
    redis_url: str

    @classmethod
    def of(cls, home: Home, ports: Ports) -> "Stack":
        """The stack as the environment wants it: a server that it names is used instead of an embedded one."""
        database_url, redis_url = given("DATABASE_URL"), given(*REDIS_NAMES)
        postgres = redis = None
        if database_url is None:
            postgres = Postgres(folder=home.folder / "postgres", port=ports.postgres, password=home.secret("postgres"))
            database_url = postgres.url()
        elif (parts := urlsplit(database_url)).password is None and (password := given("DATABASE_PASSWORD")):
            user, _, host = parts.netloc.rpartition("@")
            database_url = parts._replace(netloc=f"{user}:{quote(password, safe='')}@{host}").geturl()
        if redis_url is None:
            redis = Redis(folder=home.folder / "redis", port=ports.redis, password=home.secret("redis"))
            redis_url = redis.url
        elif "://" not in redis_url:
            password = quote(given("REDIS_PASSWORD") or "", safe="")
            redis_url = f"redis://:{password}@{redis_url}:{given('REDIS_PORT') or 6379}/0"
        return cls(home, ports, postgres, redis, database_url, redis_url)

    def write_environment(self) -> None:
        """Writes `.handoff/env`."""
        environment.write(
            self.home,
            self.ports,
            database_url=self.postgres.url() if self.postgres else None,
            redis_url=self.redis.url if self.redis else None,
        )

    def wanted_ports(self) -> dict[str, int]:
        """The ports that must be free before the start."""
        wanted = {"web": self.ports.web}
        if self.postgres:
            wanted["postgres"] = self.ports.postgres
        if self.redis:
            wanted["redis"] = self.ports.redis
        wanted |= {"smtp": self.ports.smtp, "mail": self.ports.mail, "flower": self.ports.flower}
        return {**wanted, "crm": self.ports.crm}

    def urls(self) -> dict[str, str]:
        """Where everything is."""
        web = environment.site_url(self.ports)
        mails = f"http://{LOOPBACK}:{self.ports.mail}"
        return {
            "web": web,
            "admin": f"{web}/admin/",
            "dashboard": f"{web}/admin/queues/",
            "flower": f"{web}/admin/flower/",
            "mail": f"{mails}/",
            "mail_api": f"{mails}/messages/",
            "database": self.database_url,
            "redis": self.redis_url,
            "smtp": f"smtp://{LOOPBACK}:{self.ports.smtp}",
            "crm": f"{environment.crm_url(self.ports)}{crm.CONTACTS}",
        }

    def servers(self) -> list[Program]:
        """What must run before the migrations."""
        servers = []
        if postgres := self.postgres:

            def prepared() -> Launch:
                postgres.prepare()  # once more at each restart: a postmaster that was killed leaves its pid file
                return postgres.launch()

            servers.append(
                Program(
                    name="postgres",
                    launch=prepared,
                    is_ready=lambda _: postgres.answers(),
                    stage=Stage.DATABASE,
                    # Fast shutdown: ends sessions, keeps everything; SIGTERM would wait for every client to leave.
                    stop_signal=signal.SIGINT,
                    grace_seconds=30,
                    where=f"{LOOPBACK}:{postgres.port}",
                )
            )
        if redis := self.redis:
            servers.append(
                Program(
                    name="redis",
                    launch=redis.launch,
                    is_ready=lambda _: redis.answers(),
                    stage=Stage.REDIS,
                    where=f"{LOOPBACK}:{redis.port}",
                )
            )
        servers.append(
            Program(
                name="mail",
                launch=lambda: mail.launch(
                    folder=self.home.folder / "mail", smtp_port=self.ports.smtp, web_port=self.ports.mail
                ),
                is_ready=lambda _: readiness.listens(self.ports.smtp) and readiness.serves(self.urls()["mail_api"]),
                stage=Stage.MAIL,
                where=self.urls()["mail"],
            )
        )
        servers.append(
            Program(
                name="crm",
                launch=lambda: crm.launch(
                    folder=self.home.folder / "crm", port=self.ports.crm, token=self.home.secret("crm")
                ),
                is_ready=lambda _: readiness.serves(self.urls()["crm"]),
                stage=Stage.MAIL,
                where=self.urls()["crm"],
            )
        )
        return servers

    def processes(self) -> list[Program]:
        """What runs the project."""
        return [
            Program(
                name="web",
                launch=lambda: self._python("granian", *self._web_arguments()),
                is_ready=lambda _: readiness.serves(f"{self.urls()['web']}/livez"),
                stage=Stage.INTAKE,
                where=self.urls()["web"],
                reloads=True,
            ),
            *[self._worker(group) for group in WORKER_GROUPS],
            Program(
                name="beat",
                launch=lambda: self._celery("beat"),
                is_ready=lambda pid: readiness.beat_is_ready(self.database_url, pid),
                stage=Stage.INTAKE,
                where="daily digest and other recurring jobs",
                reloads=True,
            ),
            Program(
                name="flower",
                launch=lambda: self._celery(
                    "flower", "--url_prefix=admin/flower", f"--address={LOOPBACK}", f"--port={self.ports.flower}"
                ),
                is_ready=lambda _: readiness.serves(f"http://{LOOPBACK}:{self.ports.flower}/admin/flower/"),
                stage=Stage.INTAKE,
                where=self.urls()["flower"],
            ),
        ]

    def _worker(self, group: WorkerGroup) -> Program:
        kind = "thread" if group.pool == "threads" else "process"
        return Program(
            name=group.name,
            launch=lambda: self._python("celery", *group.arguments),
            is_ready=lambda pid: readiness.worker_is_ready(self.database_url, pid),
            stage=Stage.WORK,
            grace_seconds=worker_grace_seconds(),
            where=f"{', '.join(group.queues)} ({group.concurrency} × {kind})",
            reloads=True,
        )

    def _web_arguments(self) -> list[str]:
        return [
            "--interface=wsgi",
            f"--host={LOOPBACK}",
            f"--port={self.ports.web}",
            f"--blocking-threads={WEB_THREADS}",
            "--no-ws",
            "--workers-kill-timeout=5",
            "config.wsgi:application",
        ]

    def _celery(self, *arguments: str) -> Launch:
        return self._python("celery", "-A", "config", *arguments)

    def _python(self, module: str, *arguments: str) -> Launch:
        env = {"HANDOFF_HOME": str(self.home.folder), "PYTHONUNBUFFERED": "1"}
        return Launch(argv=[sys.executable, "-m", module, *arguments], folder=BASE_DIR, env=env)

    def manage(self, *arguments: str, env: dict[str, str] | None = None) -> Launch:
        """A command of Django, on this stack."""
        return Launch(
            argv=[sys.executable, str(BASE_DIR / "manage.py"), *arguments],
            folder=BASE_DIR,
            env={"HANDOFF_HOME": str(self.home.folder), **(env or {})},
        )


def worker_grace_seconds() -> float:
    """How long a worker may take to end before it is killed."""
    return float(given("JOBS_GRACE_SECONDS") or 30) + HAND_BACK_SECONDS
