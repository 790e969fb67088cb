"""What an operator does with mouse, keyboard and telephone."""

import re
from datetime import timedelta

import pytest
from django.utils import timezone
from playwright.sync_api import Page, expect

from accounts.models import User
from jobs.models import BulkAction, Duty, QueueControl
from tests.browser.conftest import PASSWORD
from tests.jobs.factories import make_events, make_job, make_worker, state_of
from tests.processes import Processes
from tests.variants import variant
from tests.waiting import wait_until

# The first page compiles all templates, on a machine that may be busy.
pytestmark = pytest.mark.timeout(180)


def test_who_logs_in_through_the_form_comes_to_the_page_that_was_asked_for(page: Page, admin: User) -> None:
    page.goto("/admin/queues/")
    page.get_by_label("Email").fill(admin.email)
    page.get_by_label("Password").fill(PASSWORD)
    page.keyboard.press("Enter")
    # A pattern with stars would be content with the login page, whose address ends the same.
    page.wait_for_url(re.compile(r"^[^?]+/admin/queues/$"))
    expect(page.get_by_role("heading", name="Queues")).to_be_visible()


def test_the_dashboard_follows_the_queues_without_reloading(admin_page: Page) -> None:
    expect(admin_page.get_by_role("heading", name="Queues")).to_be_visible()
    row = admin_page.get_by_role("row", name=re.compile("^email"))
    expect(row).not_to_contain_text("No living worker")
    make_job(queue="email")
    expect(admin_page.locator("#email-waiting")).to_have_text("1")
    expect(row).to_contain_text("celery -A config worker -Q email")
    make_worker(queues=["email"])
    Duty.objects.bulk_create(
        [Duty(name=name, ticked_at=timezone.now() + timedelta(hours=1)) for name in ("dispatcher", "beat")]
    )
    expect(row).not_to_contain_text("No living worker")
    expect(admin_page.get_by_text("All queues are within their limits")).to_be_visible()


def test_a_queue_is_paused_and_resumed_by_keyboard(admin_page: Page) -> None:
    button = admin_page.get_by_role("button", name="Pause queue email")
    button.focus()
    # A refresh of the table must not take the focus away from who is about to press the button.
    with admin_page.expect_response("**/admin/queues/"):
        pass
    expect(button).to_be_focused()
    admin_page.keyboard.press("Enter")
    expect(admin_page.get_by_text("Queue email is paused: running jobs end, no new one starts.")).to_be_visible()
    assert QueueControl.objects.get(name="email").paused_at is not None
    admin_page.get_by_role("button", name="Resume queue email").press("Enter")
    expect(admin_page.get_by_text("Queue email runs again.")).to_be_visible()
    assert QueueControl.objects.get(name="email").paused_at is None


def test_a_failed_job_is_found_understood_and_run_again(admin_page: Page, processes: Processes) -> None:
    job = make_job(task="tests.sample_tasks.add", args=[2, 3], state="failed", attempt=3, error="The disk was full.")
    make_job(queue="images", state="failed")
    make_events(kind="failed")
    admin_page.reload()
    admin_page.locator("#default-failed").click()
    rows = admin_page.locator("#result_list tbody tr")
    expect(rows).to_have_count(1)
    admin_page.get_by_role("link", name="tests.sample_tasks.add").click()
    expect(admin_page.get_by_text("The disk was full.")).to_be_visible()
    processes.worker("default")
    admin_page.get_by_role("button", name="Run again").click()
    expect(admin_page.get_by_text(f"Job {job.pk} was run again.")).to_be_visible()
    wait_until(lambda: state_of(job.pk) == "completed", timeout=30)
    admin_page.reload()
    expect(admin_page.get_by_text("The disk was full.")).to_have_count(0)
    expect(admin_page.locator("pre").first).to_have_text("5")


def test_a_waiting_job_is_cancelled_from_the_list(admin_page: Page) -> None:
    job = make_job()
    admin_page.goto("/admin/jobs/job/")
    admin_page.locator("input[name=_selected_action]").check()
    admin_page.locator("select[name=action]").select_option("cancel")
    admin_page.get_by_role("button", name="Run", exact=True).click()
    expect(admin_page.get_by_text(f"Job {job.pk} was cancelled.")).to_be_visible()
    assert state_of(job.pk) == "cancelled"


def test_all_failed_jobs_of_a_list_are_run_again_by_keyboard_after_a_dry_run(
    admin_page: Page, processes: Processes
) -> None:
    before = timezone.now() - timedelta(minutes=1)
    fields = {"task": "tests.sample_tasks.add", "args": [2, 3], "created_at": before, "finished_at": before}
    jobs = [make_job(state="failed", error="SMTP: no route", **fields) for _ in range(3)]
    other = make_job(state="failed", error="another", **fields)
    admin_page.goto("/admin/jobs/job/?state=failed&q=no+route")
    admin_page.get_by_role("link", name="Run again …").press("Enter")
    expect(admin_page.get_by_text("3 jobs match: failed, error holds 'no route'.")).to_be_visible()
    expect(admin_page.locator(".jobs-sample tbody tr")).to_have_count(3)
    assert {state_of(job.pk) for job in jobs} == {"failed"}
    processes.worker("default")
    admin_page.get_by_role("button", name="Run 3 jobs again").press("Enter")
    expect(admin_page.get_by_text("of 3 that matched").or_(admin_page.get_by_text("Finished."))).to_be_visible()
    wait_until(lambda: {state_of(job.pk) for job in jobs} == {"completed"}, timeout=30)
    admin_page.reload()
    expect(admin_page.get_by_text("3 done, 0 refused. Finished.")).to_be_visible()
    assert state_of(other.pk) == "failed"


def test_an_empty_filter_is_confirmed_by_a_box_that_must_be_ticked(admin_page: Page) -> None:
    make_job()
    admin_page.goto("/admin/jobs/job/many/?kind=cancel")
    admin_page.get_by_role("button", name="Cancel 1 job").click()
    assert not BulkAction.objects.exists()
    admin_page.get_by_label("I mean all jobs").check()
    admin_page.get_by_role("button", name="Cancel 1 job").click()
    expect(admin_page.get_by_text("of 1 that matched")).to_be_visible()


@pytest.mark.parametrize(
    "path",
    [
        "/admin/queues/",
        "/admin/statistics/",
        "/admin/jobs/job/",
        "/admin/jobs/job/{}/change/",
        variant("/admin/jobs/job/{}/edit/"),
        variant("/admin/jobs/job/many/?kind=run+again&error=x"),
        variant("/admin/jobs/auditentry/"),
        variant("/admin/jobs/worker/"),
    ],
)
def test_the_pages_fit_a_telephone(signed_in: Page, path: str) -> None:
    job = make_job(state="failed", error="x" * 300, traceback="y" * 300, kwargs={"z" * 60: "z" * 300})
    make_events(task=f"a.tasks.{'very_long' * 8}")
    make_worker(node="a-very-long-name@with-a-very-long-host.example.com", queues=["email", "images", "video"])
    signed_in.set_viewport_size({"width": 390, "height": 844})
    signed_in.goto(path.format(job.pk))
    assert signed_in.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("path", ["/admin/queues/", "/admin/statistics/"])
def test_no_column_of_a_table_is_cut_off_on_a_desktop(signed_in: Page, path: str) -> None:
    make_events(12_345, task=f"a.tasks.{'very_long' * 8}", wait_seconds=200, run_seconds=200)
    signed_in.goto(path)
    frame = signed_in.locator(".jobs-frame")
    assert frame.evaluate("frame => frame.scrollWidth - frame.clientWidth") == 0
