"""Reports in the admin."""

from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.test import Client

from accounts.models import User
from reports.models import Report
from tests.reports.conftest import asked, made


@pytest.fixture
def admin(db: None) -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("root@example.com", name="Root"))
    return client


def test_the_list_and_the_page_show_a_report_with_its_file_and_its_job(admin: Client, user: User) -> None:
    report = asked(user)
    made(report)
    file, job = f"/admin/reports/report/{report.pk}/file/", f"/admin/jobs/job/{report.job_id}/change/"
    for path in ("", f"{report.pk}/change/"):
        page = admin.get(f"/admin/reports/report/{path}")
        assert page.status_code == 200
        for told in (user.email, "ready", file, job):
            assert told in page.content.decode()
    assert "/admin/reports/report/" in admin.get("/admin/").content.decode()


def test_an_unfinished_report_has_no_file_to_download(admin: Client, user: User) -> None:
    report = asked(user)
    page = admin.get(f"/admin/reports/report/{report.pk}/change/").content.decode()
    assert "failed" in page
    assert "/file/" not in page
    assert admin.get(f"/admin/reports/report/{report.pk}/file/").status_code == 404


def test_a_report_is_found_by_its_owner_its_id_and_its_job(admin: Client, user: User, other: User) -> None:
    mine, others = asked(user), asked(other)
    for term in (user.email, str(mine.pk), str(mine.job_id)):
        page = admin.get("/admin/reports/report/", {"q": term}).content.decode()
        assert str(mine.pk) in page
        assert str(others.pk) not in page


def test_nobody_adds_edits_or_deletes_a_report_by_hand(admin: Client, user: User) -> None:
    report = asked(user)
    assert admin.get("/admin/reports/report/add/").status_code == 403
    assert admin.post(f"/admin/reports/report/{report.pk}/change/", {"kind": "x"}).status_code == 403
    assert admin.post(f"/admin/reports/report/{report.pk}/delete/", {"post": "yes"}).status_code == 403
    assert Report.objects.get().kind == "activity"


def test_the_file_is_for_staff_who_may_see_reports(admin: Client, user: User, other: User) -> None:
    report = asked(user)
    made(report)
    address = f"/admin/reports/report/{report.pk}/file/"
    answer: Any = admin.get(address)
    assert b"".join(answer.streaming_content).startswith(b"%PDF-")
    assert "no-store" in answer["Cache-Control"]

    client = Client()
    assert client.get(address).status_code == 302
    client.force_login(user)
    assert client.get(address).status_code == 302
    other.is_staff = True
    other.save()
    client.force_login(other)
    assert client.get(address).status_code == 403
    other.user_permissions.add(Permission.objects.get(codename="view_report"))
    allowed = client.get(address)
    allowed.close()
    assert allowed.status_code == 200
