"""A chapter of the demo: a user asks for a PDF report, watches it, and downloads it."""

from datetime import UTC, datetime, timedelta

import httpx

from devstack.demo.report import Report, patiently
from devstack.demo.site import Site
from devstack.demo.watching import watched


def show(site: Site, report: Report, *, address: str) -> None:
    """Asks as the user with this address, and checks that somebody else gets nothing."""
    token = site.token(address)
    headers = {"Authorization": f"Bearer {token}"}
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
    shown = watched(report, lambda: site.job_of_api(job_id, token), what="the report")
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
