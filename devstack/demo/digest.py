"""A chapter of the demo: an operator has the daily digest sent now, and it is watched."""

from contextlib import closing

import httpx

from devstack.demo.report import Report, patiently
from devstack.demo.site import Site, form_token
from devstack.demo.watching import watched

TASK = "notifications.tasks.send_digest"
PERIODIC_TASKS = "/admin/django_celery_beat/periodictask/"


def show(site: Site, report: Report, *, address: str) -> None:
    """Runs the periodic task from the admin, and looks for the mail to the user with this address.

    Whoever has got today's digest already gets no second one.
    """
    browser = site.admin()
    if browser is None:
        report.step("no admin password in the data folder: the digest is left to its time of day")
        return
    before = site.mail_counts([address]).total()
    with closing(browser):
        pressed_at = site.value("SELECT now()::text")
        _run(browser, site.value("SELECT id::text FROM django_celery_beat_periodictask WHERE task = %s", TASK))
    newest = "SELECT id::text FROM jobs_job WHERE task = %s AND created_at > %s::timestamptz"
    job_id = patiently(lambda: site.value(newest, TASK, pressed_at), seconds=10)
    report.step(f"an operator has pressed Run at the digest: job {job_id}")
    if job_id:
        job = watched(report, lambda: site.job_of_ledger(job_id), what="the digest")
        report.check("the digest's job is completed", job["state"] == "completed", job["error"] or job["result"])
    patiently(lambda: site.mail_counts([address]).total() > before, seconds=10)
    arrived = site.mail_counts([address]).total() - before
    report.check("the user has got one digest", arrived == 1, f"{arrived} mail")


def _run(browser: httpx.Client, periodic_task_id: str) -> None:
    fields = {"action": "run_tasks", "_selected_action": periodic_task_id}
    browser.post(
        PERIODIC_TASKS,
        data={**fields, "csrfmiddlewaretoken": form_token(browser, PERIODIC_TASKS)},
        headers={"Referer": str(browser.base_url.join(PERIODIC_TASKS))},
    )
