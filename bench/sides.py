"""The two sides of the comparison: where each keeps its jobs, and how its worker is started."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from devstack.home import BASE_DIR
from devstack.throwaway import Servers

_ENQUEUE = BASE_DIR / "bench" / "enqueue.py"
PEER = "bench.peers.django_celery_results"
# Two processes on one queue; the project's own flags come on top.
_WORKER = ("--include=bench.tasks", "--pool=prefork", "--concurrency=2", "--loglevel=INFO")


@dataclass(frozen=True, kw_only=True)
class Side:
    """One system under measure. `jobs` is its table; the columns are those of an ended job."""

    name: str
    app: str
    environment: Mapping[str, str]
    worker_flags: tuple[str, ...] = ()
    # Where its code is.
    folder: Path = BASE_DIR
    jobs: str
    id_column: str
    ended: str
    ended_at_column: str
    result_column: str
    # The tables of jobs and of what they leave behind, and those of workers.
    job_tables: tuple[str, ...]
    worker_tables: tuple[str, ...] = ()

    def prepare(self) -> None:
        """Creates its database with all tables."""
        url, _, name = self.environment["DATABASE_URL"].rpartition("/")
        with psycopg.connect(f"{url}/postgres", autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        self.run("-m", "django", "migrate", "--verbosity=0")

    def run(self, *arguments: str) -> str:
        """Runs `python …` on this side; returns what it printed."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env={**os.environ, **self.environment, "PYTHONPATH": str(self.folder)},
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        return done.stdout

    def enqueue(self, count: int, *flags: str) -> dict[str, Any]:
        """Calls the task `count` times, from a process of its own; the flags are those of `bench.enqueue`."""
        # The script is this project's, the code that it calls that of the side.
        return json.loads(self.run("-P", str(_ENQUEUE), self.app, str(count), *flags))

    def worker_command(self, *flags: str) -> list[str]:
        """The command line of its worker."""
        return [sys.executable, "-m", "celery", "-A", self.app, "worker", *_WORKER, *self.worker_flags, *flags]

    def connect(self) -> "psycopg.Connection[Any]":
        """A connection to its database."""
        return psycopg.connect(self.environment["DATABASE_URL"], autocommit=True)

    def empty(self) -> None:
        """Removes all jobs, and lets the next measurement begin with nothing left to write."""
        with self.connect() as connection:
            self.truncate(connection, *self.job_tables, *self.worker_tables)
            connection.execute("CHECKPOINT")

    def forget_jobs(self, connection: "psycopg.Connection[Any]") -> None:
        """Removes all jobs, also beside a worker that idles."""
        self.truncate(connection, *self.job_tables)

    def truncate(self, connection: "psycopg.Connection[Any]", *tables: str) -> None:
        """Empties these tables, so far as they are there: a checkout of before has fewer."""
        rows = connection.execute("SELECT tablename FROM pg_tables WHERE tablename = ANY (%s)", [list(tables)])
        names = sql.SQL(", ").join(sql.Identifier(row[0]) for row in rows.fetchall())
        connection.execute(sql.SQL("TRUNCATE {} CASCADE").format(names))

    def ended_count(self, connection: "psycopg.Connection[Any]") -> int:
        """How many jobs have succeeded."""
        row = connection.execute(f"SELECT count(*) FROM {self.jobs} WHERE {self.ended}").fetchone()
        assert row is not None
        return row[0]

    def ends(self) -> dict[str, datetime]:
        """When each job succeeded, by its id."""
        with self.connect() as connection:
            rows = connection.execute(
                f"SELECT {self.id_column}::text, {self.ended_at_column} FROM {self.jobs} WHERE {self.ended}"
            )
            return dict(rows.fetchall())

    def results(self, connection: "psycopg.Connection[Any]") -> dict[str, Any]:
        """What each job returned that has succeeded and returned something, by its id."""
        rows = connection.execute(
            f"SELECT {self.id_column}::text, {self.result_column}::text FROM {self.jobs} WHERE {self.ended}"
        )
        return {job_id: json.loads(text) for job_id, text in rows.fetchall() if text is not None}


def both(servers: Servers) -> tuple[Side, Side]:
    """This project as it is, and the peer, on databases of their own on the same servers."""
    database, redis = servers.variables["DATABASE_URL"].rpartition("/")[0], servers.variables["REDIS_URL"]
    ours = Side(
        name="Handoff",
        app="config",
        environment={
            **servers.variables,
            "DJANGO_SETTINGS_MODULE": "config.settings",
            "DATABASE_URL": f"{database}/ours",
        },
        # As bin/up and the containers start it.
        worker_flags=("--queues=default", "--without-mingle", "--without-gossip"),
        jobs="jobs_job",
        id_column="id",
        ended="state = 'completed'",
        ended_at_column="finished_at",
        result_column="result",
        job_tables=("jobs_job", "jobs_limit", "jobs_jobevent", "jobs_stat", "jobs_ownerstat", "jobs_livecount"),
        worker_tables=("jobs_worker",),
    )
    peer = Side(
        name="Django + Celery + django-celery-results",
        app=PEER,
        environment={
            "DJANGO_SETTINGS_MODULE": f"{PEER}.settings",
            "DATABASE_URL": f"{database}/peer",
            "REDIS_URL": redis.removesuffix("/0") + "/1",
        },
        jobs="django_celery_results_taskresult",
        id_column="task_id",
        ended="status = 'SUCCESS'",
        ended_at_column="date_done",
        result_column="result",
        job_tables=("django_celery_results_taskresult",),
    )
    return ours, peer
