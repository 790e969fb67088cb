"""A chapter of the demo: the new users have become contacts at the CRM."""

from collections import Counter
from collections.abc import Sequence

import httpx

from devstack.demo.report import Report, patiently
from devstack.demo.site import Site
from devstack.demo.watching import watched


def show(site: Site, report: Report, *, addresses: Sequence[str]) -> None:
    """Looks at the stand-in for the CRM; with a CRM of somebody's own there is nothing to look at."""
    wanted = {address.lower() for address in addresses}

    def found() -> Counter[str]:
        answer = httpx.get(site.urls["crm"], timeout=30)
        answer.raise_for_status()
        emails = (contact["properties"]["email"].lower() for contact in answer.json()["results"])
        return Counter(email for email in emails if email in wanted)

    token = site.token(addresses[0])
    syncing = "SELECT job_id::text FROM crm_crmcontact c JOIN accounts_user u ON u.id = c.user_id WHERE u.email = %s"
    job_id = site.value(syncing, addresses[0])
    job = watched(report, lambda: site.job_of_api(job_id, token), what="the first user's contact")
    report.check("its job is completed", job["state"] == "completed", job["error"] or job["result"])
    patiently(lambda: len(found()) == len(wanted), seconds=30)
    counts = found()
    report.step(f"GET {site.urls['crm']}: {len(counts)} of the users are contacts")
    report.check("every user is a contact at the CRM, once", counts == Counter(wanted), f"{counts.total()} contacts")
