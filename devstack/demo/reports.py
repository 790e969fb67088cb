"""A chapter of the demo: a user asks for a PDF report, watches it, and downloads it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from devstack.demo.report import Report, patiently
from devstack.demo.site import Site

# The first report of a fresh worker loads the fonts of the machine.
READY_SECONDS = 90


def show(site: Site, report: Report, *, address: str) -> None:
    """Asks as the user with this address, and checks that somebody else gets nothing."""
    headers = {"Authorization": f"Bearer {site.token(address)}"}
    today = datetime.now(UTC).date()
    wish = {"kind": "activity", "from": str(today - timedelta(days=6)), "to": str(today)}
    refused = site.client.post("/api/reports", json={**wish, "to": "2999-01-01"}, headers=headers)
    report.check("a report on the future is refused", refused.status_code == 422, refused.status_code)

    answer = site.client.post("/api/reports", json=wish, headers=headers)
    report.check("a report is promised at once (202)", answer.status_code == httpx.codes.ACCEPTED, answer.status_code)
    if answer.status_code != httpx.codes.ACCEPTED:
        return
    job_id, report_id = answer.json()["job"], answer.json()["id"]
    report.step(f"a report is being made: {answer.headers['Location']}")
    shown = _watched(site, report, job_id, headers["Authorization"].removeprefix("Bearer "))
    report.check("the report is made", shown["state"] == "completed", shown["error"] or shown["progress"]["message"])

    path = f"/api/reports/{report_id}/download"
    file = site.client.get(path, headers=headers)
    report.step(f"GET {path}: {file.status_code}, {len(file.content)} bytes, {file.headers.get('Content-Type')}")
    report.check("it is a PDF", file.content.startswith(b"%PDF-"), f"{len(file.content)} bytes")
    stranger = f"stranger-{report_id}@example.com"
    site.sign_up(stranger)
    strangers = site.client.get(path, headers={"Authorization": f"Bearer {site.token(stranger)}"})
    report.check("nobody else gets it", strangers.status_code == httpx.codes.NOT_FOUND, strangers.status_code)
    mails = patiently(lambda: max(0, site.mail_counts([address]).total() - 1), seconds=30)
    report.check("a mail tells that it is ready", mails == 1, f"{mails} mail")


def _watched(site: Site, report: Report, job_id: str, token: str) -> dict[str, Any]:
    """The job when it has ended; each step of its progress is shown once."""
    seen: set[str] = set()

    def ended() -> bool:
        job = site.job_of_api(job_id, token)
        line = f"{job['progress']['percent']} % {job['progress']['message']}"
        if job["state"] == "active" and line not in seen:
            seen.add(line)
            report.step(f"the report: {line}")
        return job["state"] not in ("delayed", "waiting", "active")

    patiently(ended, seconds=READY_SECONDS)
    return site.job_of_api(job_id, token)
