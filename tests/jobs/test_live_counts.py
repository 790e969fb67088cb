"""How many jobs are alive, where there are too many to count them at each question."""

import re
from datetime import timedelta

import pytest
from django.core.management import call_command
from django.db import connection
from django.db.models.functions import Now
from django.test import Client
from django.test.utils import CaptureQueriesContext

from jobs import doctor, health, live_counts, selectors
from jobs.dispatcher import counting
from jobs.dispatcher.counting import Walk
from jobs.live_counts import LiveCount
from jobs.models import Job, QueueControl
from jobs.queues import QUEUES
from tests.jobs.factories import make_job

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_counts, "COUNTED_AT_ONCE", 10)
    monkeypatch.setattr(counting, "_WALKED_AT_ONCE", 7)


def make(count: int, **fields: object) -> None:
    values = {"task": "t", "queue": "default", "state": "waiting", **fields}
    Job.objects.bulk_create(Job(**values) for _ in range(count))


def walk_through() -> None:
    walk = Walk()
    for _ in range(50):
        walk.run_once()


def counts() -> dict[tuple[str, str], tuple[int, bool]]:
    return {(one.queue, one.state): (one.count, one.counted_at is not None) for one in live_counts.live(QUEUES)}


def test_a_few_are_counted_at_each_question() -> None:
    make(10)
    make(3, queue="webhooks", state="delayed")
    make(2, queue="nobody's")
    assert counts() == {
        ("default", "waiting"): (10, False),
        ("webhooks", "delayed"): (3, False),
        ("nobody's", "waiting"): (2, False),
    }


def test_before_the_first_walk_there_are_at_least_so_many() -> None:
    make(25)
    assert counts() == {("default", "waiting"): (11, False)}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("is_paused", [False, True])
def test_what_nobody_has_counted_yet_is_told_as_more_than_what_was_seen(
    admin_client: Client, is_paused: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    make(25, run_at=Now() - timedelta(hours=1))
    make(25, queue="nobody's", run_at=Now() - timedelta(hours=1))
    make(25, queue="webhooks", state="delayed", run_at=Now() + timedelta(hours=1))
    if is_paused:
        QueueControl.objects.create(name="default", paused_at=Now())
    found = health.check()
    told = found.warnings if is_paused else found.reasons
    assert any(line.startswith("default: ") and "more than 10 jobs" in line for line in told)
    assert "nobody's: more than 10 jobs wait in a queue that nobody declares." in found.reasons
    counts_told = found.as_json()["queues"]
    state = "paused" if is_paused else "waiting"
    assert (counts_told["default"][state], counts_told["default"]["at_least"]) == (11, [state])
    assert counts_told["webhooks"]["at_least"] == ["delayed"]
    assert ">more than 10<" in admin_client.get("/admin/queues/").content.decode()
    call_command("jobs", "stats")
    assert "more than 10" in capsys.readouterr().out
    assert any("more than 10 jobs" in finding.text for finding in doctor.workers_and_queues())
    walk_through()
    assert all(not status.at_least for status in selectors.queue_statuses().values())


def test_many_are_those_of_the_last_walk_with_its_age() -> None:
    make(25)
    make(30, queue="webhooks", priority=3)
    make(12, lane='["k",null,null,null,null]', rate_key="k")
    make(40, state="delayed", run_at=Now())
    make(5, queue="crm", state="delayed", run_at=Now())
    make(4, queue="crm")
    walk_through()
    assert counts() == {
        ("default", "waiting"): (37, True),
        ("webhooks", "waiting"): (30, True),
        ("default", "delayed"): (40, True),
        ("crm", "delayed"): (5, True),
        ("crm", "waiting"): (4, False),
    }
    status = selectors.queue_statuses()["default"]
    assert (status.waiting, status.delayed) == (37, 40)
    assert status.counted_seconds_ago.keys() == {"waiting", "delayed"}
    assert health.check().statuses


@pytest.mark.django_db(transaction=True)
def test_the_page_tells_a_number_and_how_old_it_is_apart(admin_client: Client) -> None:
    make(25)
    walk_through()
    LiveCount.objects.update(counted_at=Now() - timedelta(seconds=25))
    page = admin_client.get("/admin/queues/").content.decode()
    assert re.search(r'>25</a> <small class="jobs-age">2\d s ago</small>', page)


def test_where_many_are_delayed_each_queue_has_its_own_number() -> None:
    make(9, state="delayed", run_at=Now())
    make(50, queue="crm", state="delayed", run_at=Now() + timedelta(hours=1))
    walk_through()
    assert counts() == {("default", "delayed"): (9, True), ("crm", "delayed"): (50, True)}
    Job.objects.filter(queue="default").delete()
    walk_through()
    assert counts() == {("crm", "delayed"): (50, True)}
    Job.objects.exclude(pk__in=Job.objects.values("pk")[:3]).delete()
    assert counts() == {("crm", "delayed"): (3, False)}


def test_a_backlog_that_is_gone_is_counted_again() -> None:
    make(25)
    walk_through()
    Job.objects.all().delete()
    make_job(queue="default")
    walk_through()
    assert counts() == {("default", "waiting"): (1, False)}
    assert not LiveCount.objects.exists()


def test_the_oldest_is_told_whatever_its_priority() -> None:
    make(15, priority=1)
    old = make_job(queue="default", priority=9, run_at="2026-01-01T00:00:00Z")
    [found] = [one for one in live_counts.live(QUEUES) if one.state == "waiting"]
    assert found.oldest_at is not None
    assert found.oldest_at <= Job.objects.get(pk=old.pk).run_at


def test_a_look_reads_no_more_than_it_counts() -> None:
    make(200)
    with CaptureQueriesContext(connection) as queries:
        live_counts.live(QUEUES)
    assert len(queries) == 3
