"""How a report is made: once, whole, and told of."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from django.core.files.storage import default_storage
from django.db import IntegrityError, transaction

from accounts.models import User
from jobs.errors import LeaseLost, Permanent
from jobs.models import Job
from reports.making import make_report
from reports.models import Report
from reports.signals import report_ready
from reports.tasks import render_report, send_report_ready
from tests.reports.conftest import FIRST, LAST, asked, ended_job, made
from tests.smtp import SmtpServer


def files() -> list[Path]:
    root = Path(default_storage.path(""))
    return sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())


def test_progress_goes_up_by_stage_and_page(user: User) -> None:
    for number in range(80):
        ended_job(user, f"tasks.number_{number}")
    told: list[tuple[int, int, str]] = []
    report = make_report(report_id=asked(user).pk, progress=lambda *step: told.append(step))
    percents = [done for done, _, _ in told]
    assert percents == sorted(percents)
    assert {total for _, total, _ in told} == {100}
    messages = [message for _, _, message in told]
    assert messages[:4] == ["Reading jobs", "Reading pictures", "Reading videos", "Reading mails"]
    assert "Laying out page 2" in messages
    assert messages[-3:-1] == [f"Drawing {report.page_count} pages", "Storing the file"]
    assert messages[-1] == f"Ready: {report.page_count} pages"
    assert percents[-1] == 100


@pytest.mark.parametrize("stage", ["Reading jobs", "Laying out page 1", "Drawing", "Storing"])
def test_a_run_that_loses_its_job_leaves_the_report_as_it_was_and_tells_nobody(user: User, stage: str) -> None:
    report = asked(user)

    def lose(done: int, total: int, message: str) -> None:
        if message.startswith(stage):
            raise LeaseLost

    with pytest.raises(LeaseLost):
        make_report(report_id=report.pk, progress=lose)
    assert not Report.objects.filter(ready_at__isnull=False).exists()
    assert not Job.objects.exists()

    made(report)
    assert Report.objects.filter(ready_at__isnull=False).exists()
    assert files() == [Path(f"reports/{report.pk}.pdf")]
    assert Job.objects.filter(task=send_report_ready.name).count() == 1


def test_making_a_ready_report_again_changes_nothing_and_says_the_same(user: User) -> None:
    report = asked(user)
    first = render_report(report_id=str(report.pk))
    before = Report.objects.values().get()
    ended_job(user)
    assert render_report(report_id=str(report.pk)) == first
    assert Report.objects.values().get() == before
    assert Job.objects.filter(task=send_report_ready.name).count() == 1


def test_a_ready_report_whose_file_is_lost_gets_it_again_and_nobody_a_second_mail(user: User) -> None:
    report = asked(user)
    made(report)
    report.refresh_from_db()
    first_ready_at = report.ready_at
    default_storage.delete(report.file.name or "")
    ended_job(user)
    made(report)
    report.refresh_from_db()
    assert default_storage.size(report.file.name or "") == report.size_bytes
    assert report.ready_at == first_ready_at
    assert Job.objects.filter(task=send_report_ready.name).count() == 1


def test_ready_and_the_mail_stand_or_fall_together(user: User, connected: Callable[[Any], None]) -> None:
    def fail(**_: object) -> None:
        raise RuntimeError("a receiver")

    connected(fail)
    report = asked(user)
    with pytest.raises(RuntimeError, match="a receiver"):
        made(report)
    report.refresh_from_db()
    assert report.ready_at is None
    assert not Job.objects.exists()


def test_the_event_is_sent_inside_the_transaction_with_the_ready_report(
    user: User, connected: Callable[[Any], None]
) -> None:
    heard = []

    def hear(report: Report, **_: object) -> None:
        heard.append(
            (report.pk, report.ready_at is not None, report.page_count, transaction.get_connection().in_atomic_block)
        )

    connected(hear)
    report = asked(user)
    made(report)
    assert heard == [(report.pk, True, 1, True)]


@pytest.fixture
def connected() -> Any:
    receivers: list[Any] = []

    def connect(receiver: Any) -> None:
        receivers.append(receiver)
        report_ready.connect(receiver)

    yield connect
    for receiver in receivers:
        report_ready.disconnect(receiver)


def test_a_report_that_takes_too_long_fails_with_a_sentence(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(**_: object) -> None:
        raise SoftTimeLimitExceeded

    monkeypatch.setattr("reports.tasks.make_report", slow)
    with pytest.raises(Permanent, match="took longer than 10 minutes"):
        render_report(report_id=str(asked(user).pk))


def test_a_report_that_nobody_waits_for_any_more_is_not_made(user: User) -> None:
    with pytest.raises(Permanent, match="gone"):
        render_report(report_id=str(uuid4()))
    report = asked(user)
    user.is_active = False
    user.save()
    with pytest.raises(Permanent, match="gone"):
        render_report(report_id=str(report.pk))
    assert files() == []


@pytest.mark.django_db(transaction=True)
def test_the_file_goes_with_the_report() -> None:
    user = User.objects.create(email="ann@example.com", name="Ann")
    made(asked(user))
    assert len(files()) == 1
    with transaction.atomic():
        user.delete()
        assert len(files()) == 1
    assert files() == []


@pytest.mark.django_db(transaction=True)
def test_the_owner_gets_one_mail_with_the_address_of_the_file(smtp_server: SmtpServer) -> None:
    user = User.objects.create(email="ann@example.com", name="Ann & <b>Sons</b>")
    report = asked(user)
    made(report)
    assert send_report_ready(report_id=str(report.pk)) == {"sent": True, "recipient": user.email}
    assert send_report_ready(report_id=str(report.pk)) == {"sent": True, "recipient": user.email}
    (mail,) = smtp_server.mails
    assert mail.subject == "Your report is ready: 1 March 2026 to 7 March 2026"
    text, html = (mail.message.get_body([kind]).get_content() for kind in ("plain", "html"))
    assert "Hello Ann & <b>Sons</b>," in text
    assert "Ann &amp; &lt;b&gt;Sons&lt;/b&gt;" in html
    for body in (text, html):
        assert f"/api/reports/{report.pk}/download" in body
        assert "1 page, as a PDF" in body


@pytest.mark.django_db(transaction=True)
def test_no_mail_tells_of_a_report_that_is_not_ready_or_whose_owner_is_gone(smtp_server: SmtpServer) -> None:
    user = User.objects.create(email="ann@example.com", name="Ann")
    nothing = {"sent": False, "recipient": None}
    assert send_report_ready(report_id=str(uuid4())) == nothing
    report = asked(user)
    assert send_report_ready(report_id=str(report.pk)) == nothing
    made(report)
    User.objects.update(is_active=False)
    assert send_report_ready(report_id=str(report.pk)) == nothing
    assert smtp_server.mails == []


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("fields", "constraint"),
    [
        ({"from_date": LAST, "to_date": FIRST}, "report_period_in_order"),
        ({"file": "reports/x.pdf"}, "report_ready_iff_it_has_a_file"),
        ({"page_count": 1}, "report_ready_iff_it_has_a_file"),
    ],
)
def test_the_database_refuses_a_report_that_cannot_be(fields: dict[str, Any], constraint: str) -> None:
    user = User.objects.create(email="ann@example.com", name="Ann")
    values = {"owner": user, "kind": "activity", "from_date": FIRST, "to_date": LAST, "job_id": uuid4(), **fields}
    with pytest.raises(IntegrityError, match=constraint):
        Report.objects.create(**values)


@pytest.mark.django_db(transaction=True)
def test_the_database_refuses_two_reports_of_one_job() -> None:
    user = User.objects.create(email="ann@example.com", name="Ann")
    first = asked(user)
    with pytest.raises(IntegrityError, match="report_one_per_job"):
        Report.objects.create(owner=user, kind="activity", from_date=FIRST, to_date=LAST, job_id=first.job_id)
