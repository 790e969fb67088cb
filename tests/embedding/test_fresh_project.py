"""`docs/embedding.md`, followed from `django-admin startproject` to a worker that is killed."""

import ast
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from django.conf import settings
from django.db import connection

from devstack.home import BASE_DIR
from tests.processes import Process
from tests.waiting import wait_until

PAGE = (BASE_DIR / "docs" / "embedding.md").read_text()
DATABASE = "embedding"
TASKS = """
import logging
import time
from pathlib import Path

from celery import shared_task

from jobs import fenced


@shared_task(queue="mail")
def write_lines(path, seconds):
    logging.getLogger("shop").info("it begins")
    with Path(path).open("a") as file:
        file.write("begin\\n")
    time.sleep(seconds)
    with Path(path).open("a") as file:
        file.write("end\\n")
    return "written"
"""
ENQUEUE_TWICE = """
from django.contrib.auth.models import User
from django.db import transaction
from shop.tasks import write_lines
with transaction.atomic():
    write_lines.delay("/lost", 0)
    transaction.set_rollback(True)
with transaction.atomic():
    user = User.objects.create_superuser("ada", "ada@example.com", "correct horse battery")
    print(write_lines.apply_async(({path!r}, 2), owner_id=user.pk).id)
"""
LOOK_AT_THE_PAGES = """
from django.contrib.auth.models import User
from django.test import Client
client = Client(HTTP_HOST="localhost")
health = client.get("/health").json()
assert list(health["queues"]) == ["default", "mail"], health
client.force_login(User.objects.get())
for path in ("/admin/queues/", "/admin/statistics/", "/admin/jobs/job/", "/admin/jobs/job/{job}/change/",
             "/admin/jobs/worker/", "/admin/jobs/auditentry/", "/admin/django_celery_beat/periodictask/"):
    answer = client.get(path)
    assert answer.status_code == 200, (path, answer.status_code)
    assert path != "/admin/queues/" or "jobs/admin.css" in answer.text
    assert "X-Request-ID" in answer.headers
"""


def blocks(heading: str) -> dict[str, str]:
    """The Python of a chapter, by the file that it belongs into."""
    (chapter,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return dict(re.findall(r"^```python\n# (\S+)\n(.*?)^```", chapter, re.MULTILINE | re.DOTALL))


class Project:
    """A project of somebody else's, with a Python of its own that has the wheel and, beside it, what that needs."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.folder = folder / "project"
        self.folder.mkdir()
        environment = folder / "venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
        self.python = str(environment / "bin" / "python")
        (packages,) = environment.glob("lib/python*/site-packages")
        (packages / "beside.pth").write_text(sysconfig.get_path("purelib"))
        install = ["pip", "install", "--quiet", "--offline", "--no-deps", "--python", self.python, str(wheel)]
        subprocess.run([sys.executable, "-m", "uv", *install], check=True)
        # Nothing of the test's own settings.
        self.env = {"PATH": os.environ["PATH"], "HOME": str(folder)}
        self.logs = folder

    def run(self, *arguments: str) -> str:
        """`python …` in the project, which must succeed; returns what it printed."""
        done = subprocess.run(
            [self.python, *arguments], check=False, cwd=self.folder, env=self.env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def add(self, chapter: dict[str, str]) -> None:
        """Puts the blocks of a chapter where they belong, behind what is there."""
        for file, code in chapter.items():
            with (self.folder / file).open("a") as target:
                target.write(f"\n{code.replace('redis://127.0.0.1:6379/0', redis_url())}")

    def worker(self, number: int) -> Process:
        env = {"DJANGO_SETTINGS_MODULE": "mysite.settings"}
        arguments = ["celery", "-A", "mysite", "worker", "--loglevel=INFO", "--concurrency=1"]
        log = self.logs / f"worker-{number}.log"
        worker = Process(arguments, log=log, env=env, python=self.python, folder=self.folder)
        wait_until(lambda: " ready." in worker.output or worker.status is not None, timeout=60)
        assert worker.status is None, worker.output
        return worker


def redis_url() -> str:
    """Another database of the Redis of this test run."""
    return urlsplit(settings.REDIS_URL)._replace(path="/1").geturl()


def connected(facts: dict[str, Any], name: str) -> "psycopg.Connection[Any]":
    user = {"user": facts["USER"], "password": facts["PASSWORD"]}
    return psycopg.connect(host=facts["HOST"], port=facts["PORT"], dbname=name, autocommit=True, **user)


@pytest.fixture
def database() -> Iterator[dict[str, Any]]:
    """An empty database on the PostgreSQL of this test run: what Django's settings say of it."""
    own: dict[str, Any] = connection.settings_dict
    facts = {name: own[name] for name in ("ENGINE", "HOST", "PORT", "USER", "PASSWORD")}
    with connected(facts, "postgres") as server:
        server.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
        server.execute(f"CREATE DATABASE {DATABASE}")
        yield {**facts, "NAME": DATABASE}
        server.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)")


def test_it_is_five_lines_and_their_imports() -> None:
    lines = [node for code in blocks("Five lines").values() for node in ast.parse(code).body]
    assert len([node for node in lines if not isinstance(node, (ast.Import, ast.ImportFrom))]) == 5


@pytest.mark.timeout(300)
def test_in_a_fresh_project_the_job_of_a_killed_worker_is_completed_by_the_next(
    database: dict[str, Any], wheel: Path, tmp_path: Path
) -> None:
    project = Project(tmp_path, wheel)
    project.run("-m", "django", "startproject", "mysite", ".")
    with (project.folder / "mysite" / "settings.py").open("a") as target:
        target.write(f"\nDATABASES = {{'default': {database!r}}}\n")
    project.add(blocks("Five lines"))
    project.run("manage.py", "startapp", "shop")
    (project.folder / "shop" / "tasks.py").write_text(TASKS)
    with (project.folder / "mysite" / "settings.py").open("a") as target:
        target.write("\nINSTALLED_APPS += ['shop']\n")
    # The commands of the page, before and after what is optional.
    project.run("manage.py", "migrate")
    project.run("manage.py", "check", "--database", "default", "--fail-level", "WARNING")
    for chapter in ("Pages", "Queues"):
        project.add(blocks(chapter))
    project.run("manage.py", "check", "--database", "default", "--fail-level", "WARNING")
    assert str(tmp_path) in project.run("-c", "import jobs; print(jobs.__file__)")

    lines = tmp_path / "lines"
    victim = project.worker(1)
    job = project.run("manage.py", "shell", "-v0", "-c", ENQUEUE_TWICE.format(path=str(lines))).strip()
    wait_until(lambda: lines.exists(), timeout=60)
    victim.kill()
    survivor = project.worker(2)
    try:
        with connected(database, DATABASE) as ledger:
            state = "SELECT id::text, state, queue, stalled_count, result::text FROM jobs_job"
            ended = (job, "completed", "mail", 1, '"written"')
            wait_until(lambda: ledger.execute(state).fetchall() == [ended], timeout=60)
            kept = "SELECT message FROM jobs_logline WHERE logger = 'shop'"
            wait_until(lambda: ledger.execute(kept).fetchall() == [("it begins",)] * 2)
        project.run("manage.py", "shell", "-v0", "-c", LOOK_AT_THE_PAGES.format(job=job))
    finally:
        survivor.kill()
    assert lines.read_text().split() == ["begin", "begin", "end"]
