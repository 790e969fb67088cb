"""`docs/embedding.md`, followed from `django-admin startproject` to a worker that is killed."""

import ast
from pathlib import Path
from typing import Any

import pytest

from tests.embedding.project import DATABASE, Project, blocks, connected
from tests.waiting import wait_until

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


def test_it_is_five_lines_and_their_imports() -> None:
    lines = [node for code in blocks("Five lines").values() for node in ast.parse(code).body]
    assert len([node for node in lines if not isinstance(node, (ast.Import, ast.ImportFrom))]) == 5


@pytest.mark.timeout(300)
def test_in_a_fresh_project_the_job_of_a_killed_worker_is_completed_by_the_next(
    database: dict[str, Any], wheel: Path, tmp_path: Path
) -> None:
    project = Project(tmp_path, wheel)
    project.begin(database)
    project.run("manage.py", "startapp", "shop")
    (project.folder / "shop" / "tasks.py").write_text(TASKS)
    project.add({"mysite/settings.py": "INSTALLED_APPS += ['shop']\n"})
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
