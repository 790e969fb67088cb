"""Every task of ours, run twice with the same arguments, leaves the world as one run leaves it."""

import json
import os
from collections.abc import Callable
from datetime import date, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery import current_app
from django.apps import apps
from django.conf import settings
from django.contrib.contenttypes.models import ContentType
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.utils import timezone

from accounts.models import User
from crm.models import CrmContact
from devstack.home import BASE_DIR
from jobs.models import AuditEntry, BulkAction, Job
from media_jobs.models import Picture, Video
from reports.models import Report
from tests import sample_tasks
from tests.crm_stand_in import CrmStandIn
from tests.http_server import HttpServer
from tests.jobs.factories import make_job
from tests.media_jobs import samples
from tests.processes import Processes
from tests.smtp import SmtpServer
from tests.waiting import wait_until
from webhooks import services as webhooks
from webhooks.models import Delivery, Endpoint, IncomingEvent, OutgoingEvent, Source

# How to prepare the world for a task, and the arguments for it. A new task needs a line here.
ARGUMENTS: dict[str, Callable[[], dict[str, Any]]] = {
    "jobs.tasks.act_on_many": lambda: {"bulk_action_id": a_bulk_action().pk},
    "notifications.tasks.send_welcome": lambda: {"user_id": somebody().pk},
    "notifications.tasks.send_digest": lambda: (somebody(), {})[1],
    "media_jobs.tasks.make_renditions": lambda: {"picture_id": a_picture().pk},
    "media_jobs.tasks.remove_orphans": lambda: an_orphan(),
    "media_jobs.tasks.make_poster": lambda: {"video_id": a_video().pk},
    "reports.tasks.render_report": lambda: {"report_id": str(a_report().pk)},
    "reports.tasks.send_report_ready": lambda: {"report_id": str(a_report(**READY).pk)},
    "webhooks.tasks.deliver": lambda: {"delivery_id": str(a_delivery().pk)},
    "webhooks.tasks.handle": lambda: {"event_id": str(an_event().pk)},
    "crm.tasks.sync_contact": lambda: {"contact_id": CrmContact.objects.create(user=somebody()).pk},
}
READY: dict[str, Any] = {"ready_at": timezone.now(), "file": "reports/x.pdf", "page_count": 1, "size_bytes": 1}
# Runs functions that others have written.
OF_OTHERS = {"jobs.tasks.run_django_task"}
# The ledger counts runs; that is its work.
LEDGER = {"jobs"}
OF_OPERATORS = (AuditEntry, BulkAction)


def somebody() -> User:
    return User.objects.create(email="ann@example.com", name="Ann")


def a_bulk_action() -> BulkAction:
    make_job(task=sample_tasks.add.name, args=[1, 2], state="delayed", run_at=timezone.now() + timedelta(days=1))
    return BulkAction.objects.create(kind=BulkAction.Kind.PROMOTE, actor_name="ann", job_id=uuid4(), target_count=1)


def a_picture() -> Picture:
    name = default_storage.save("pictures/key/original", ContentFile(samples.saved(samples.corners())))
    return Picture.objects.create(owner=somebody(), key="key", original=name, byte_count=1, format="JPEG")


def a_video() -> Video:
    name = default_storage.save("videos/key/original", ContentFile(samples.video(seconds=1)))
    return Video.objects.create(owner=somebody(), key="key", original=name, byte_count=1, format="mov")


def an_orphan() -> dict[str, Any]:
    name = default_storage.save("videos/orphan/original", ContentFile(b"x"))
    os.utime(default_storage.path(name), (0, 0))
    return {}


def a_report(**fields: Any) -> Report:
    days = {"from_date": date(2026, 3, 1), "to_date": date(2026, 3, 7)}
    return Report.objects.create(owner=somebody(), kind="activity", job_id=uuid4(), **days, **fields)


def a_delivery() -> Delivery:
    endpoint, _ = webhooks.create_endpoint(owner=somebody(), url="https://example.com/", event_types=["media.ready"])
    event = OutgoingEvent.objects.create(type="media.ready", subject="picture-7", body="{}")
    return Delivery.objects.create(endpoint=endpoint, event=event)


def an_event() -> IncomingEvent:
    source = Source.objects.create(name="shop", sealed_secret="-")
    data = {"email": somebody().email, "name": "Anne"}
    body = json.dumps({"type": "contact.updated", "data": data})
    return IncomingEvent.objects.create(source=source, type="contact.updated", body=body, job_id=uuid4())


def our_tasks() -> set[str]:
    current_app.loader.import_default_modules()
    ours = {app.name for app in apps.get_app_configs() if Path(app.path).parent == BASE_DIR}
    return {name for name in current_app.tasks if name.partition(".")[0] in ours}


def world(smtp_server: SmtpServer, http_server: HttpServer, crm: CrmStandIn) -> dict[str, Any]:
    """All rows of all tables but the ledger's, all mails, all files, what endpoints got and the CRM has."""
    rows = {
        model._meta.label: sorted(map(repr, model._default_manager.values_list()))
        for model in apps.get_models()
        if (model._meta.app_label not in LEDGER or model in OF_OPERATORS) and model is not ContentType
    }
    mails = [(mail.recipients, mail.message["Message-ID"]) for mail in smtp_server.mails]
    root = Path(settings.MEDIA_ROOT)
    files = {str(path): sha256(path.read_bytes()).hexdigest() for path in root.rglob("*") if path.is_file()}
    outside = {"mails": mails, "requests": list(http_server.requests), "contacts": crm.contacts.all()}
    return {**rows, **outside, "files": files}


def test_every_task_is_run_twice_here() -> None:
    assert our_tasks() == set(ARGUMENTS) | OF_OTHERS


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_second_run_changes_nothing(
    name: str, processes: Processes, smtp_server: SmtpServer, http_server: HttpServer, crm: CrmStandIn
) -> None:
    current_app.loader.import_default_modules()
    kwargs = ARGUMENTS[name]()
    Endpoint.objects.update(url=http_server.url)
    untouched = world(smtp_server, http_server, crm)
    processes.worker(pool="threads", concurrency=2, env=crm.env)
    worlds = []
    for _ in range(2):
        current_app.send_task(name, kwargs=kwargs)
        # What it has enqueued is part of what it does.
        wait_until(lambda: not Job.objects.exclude(state="completed").exists(), timeout=60)
        worlds.append(world(smtp_server, http_server, crm))
    assert untouched != worlds[0]
    assert worlds[0] == worlds[1]
    first, second = Job.objects.filter(task=name).order_by("created_at").values_list("result", flat=True)
    assert first == second
