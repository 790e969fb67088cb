"""The pages of the ledger in a project that keeps Django's own admin, as `docs/embedding.md` says."""

from pathlib import Path
from typing import Any

import pytest

from tests.embedding.project import Project, blocks

LOOK_AND_ACT = """
from celery import shared_task
from django.contrib.admin import site
from django.contrib.auth.models import User
from django.test import Client
from django_celery_beat.models import IntervalSchedule, PeriodicTask
from jobs.models import Job, QueueControl
from unfold.sites import UnfoldAdminSite

@shared_task(queue="default")
def nothing():
    pass

assert not isinstance(site, UnfoldAdminSite)
waiting, failed = (nothing.delay().id for _ in range(2))
Job.objects.filter(pk=failed).update(state="failed", error="There is a paper jam.", finished_at="2026-01-02T03:04Z")
hourly = IntervalSchedule.objects.create(every=1, period="hours")
schedule = PeriodicTask.objects.create(name="hourly", task=nothing.name, interval=hourly)
client = Client(HTTP_HOST="localhost")
client.force_login(User.objects.create_superuser("ada", "ada@example.com", "correct horse battery"))
for path in (
    "", "queues/", "statistics/", "jobs/job/", "jobs/job/?state=failed", f"jobs/job/{waiting}/change/",
    f"jobs/job/{failed}/change/", f"jobs/job/{waiting}/edit/", "jobs/job/many/?kind=cancel", "jobs/worker/",
    "jobs/auditentry/", "jobs/queuecontrol/", "jobs/queuecontrol/add/", "django_celery_beat/periodictask/",
    "django_celery_beat/periodictask/add/", f"django_celery_beat/periodictask/{schedule.pk}/change/",
):
    answer = client.get(f"/admin/{path}")
    assert answer.status_code == 200, (path, answer.status_code)
    assert "unfold" not in answer.text, path
assert "There is a paper jam." in client.get(f"/admin/jobs/job/{failed}/change/").text
assert client.post("/admin/queues/default/pause/").status_code == 302
assert QueueControl.objects.get(name="default").paused_at is not None
assert client.post("/admin/queues/default/resume/").status_code == 302
assert QueueControl.objects.get(name="default").paused_at is None
choice = {"action": "cancel", "_selected_action": [waiting]}
assert client.post("/admin/jobs/job/", choice, follow=True).status_code == 200
assert Job.objects.get(pk=waiting).state == "cancelled"
choice = {"action": "run_again", "_selected_action": [failed]}
assert client.post("/admin/jobs/job/", choice, follow=True).status_code == 200
assert Job.objects.get(pk=failed).state == "waiting"
"""


@pytest.mark.variant
@pytest.mark.timeout(300)
def test_every_page_is_shown_and_every_action_done(database: dict[str, Any], wheel: Path, tmp_path: Path) -> None:
    project = Project(tmp_path, wheel)
    project.begin(database)
    for chapter in ("Pages", "Django's own admin"):
        project.add(blocks(chapter))
    project.run("manage.py", "migrate")
    project.run("manage.py", "check", "--database", "default", "--fail-level", "WARNING")
    project.run("manage.py", "shell", "-v0", "-c", LOOK_AND_ACT)
