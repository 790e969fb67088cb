"""`bin/demo --break`: a worker is killed in the middle of a job, and the job is done all the same."""

import os
import signal
import time
from collections.abc import Callable

import psutil

from devstack.demo.report import Report, patiently
from devstack.demo.site import Site, Status

WORKER = "worker-email"
# The lease of the killed worker runs out (20 s), then another one takes the job.
RESCUE_SECONDS = 90


def show(site: Site, report: Report, *, status: Callable[[], Status]) -> None:
    """Freezes the mail server so that a job hangs in the middle, kills its worker, and watches."""
    address = f"break-{time.time_ns()}@example.com"
    worker, mail = _pid(status(), WORKER), _pid(status(), "mail")
    report.step(f"freezing the mail catcher (pid {mail}), so that the mail hangs in the middle of its way")
    frozen = psutil.Process(mail)
    frozen.suspend()
    try:
        answer, seconds = site.sign_up(address)
        report.check("the sign-up is answered 201 meanwhile", answer.status_code == 201, f"{seconds * 1000:.0f} ms")
        user_id = answer.json()["id"]

        def runs() -> bool:
            return any(job["state"] == "active" for job in site.welcome_jobs([user_id]))

        report.check("the job runs", patiently(runs, seconds=30), f"on {WORKER}, pid {worker}")
        report.step(f"the welcome job runs; now SIGKILL for {WORKER} (pid {worker}) and all of its group")
        os.killpg(worker, signal.SIGKILL)
    finally:
        frozen.resume()
    killed = time.monotonic()
    report.step("the mail catcher goes on; the job belongs to a worker that is no more")

    def back() -> int | None:
        pid = _pid(status(), WORKER)
        return pid if pid and pid != worker else None

    again = patiently(back, seconds=30)
    report.check("the supervisor starts the worker again", bool(again), f"pid {again}")
    report.step(f"the supervisor has started {WORKER} again (pid {again}); waiting until the lost lease runs out")

    def done() -> bool:
        return all(job["state"] == "completed" for job in site.welcome_jobs([user_id]))

    patiently(done, seconds=RESCUE_SECONDS)
    [job] = site.welcome_jobs([user_id])
    after = time.monotonic() - killed
    report.step(f"the job is {job['state']}, {after:.1f} s after the kill; lost with a worker: {job['stalled_count']}")
    report.check("the job is completed all the same", job["state"] == "completed", job["error"] or job["state"])
    report.check("it was lost once, and taken again", job["stalled_count"] == 1, job["stalled_count"])
    patiently(lambda: site.mail_counts([address]).total(), seconds=10)
    mails = site.mail_counts([address]).total()
    report.step(f"{address} has {mails} mail")
    report.check("the user has exactly one mail", mails == 1, f"{mails} mail")
    report.measured("from the kill to the end of the job", [after])


def _pid(status: Status, name: str) -> int:
    return next((process["pid"] or 0 for process in status["processes"] if process["name"] == name), 0)
