"""A chapter of the demo: the new users have become contacts at the CRM."""

from collections import Counter
from collections.abc import Sequence

import httpx

from devstack.demo.report import Report, patiently
from devstack.demo.site import Site


def show(site: Site, report: Report, *, addresses: Sequence[str]) -> None:
    """Looks at the stand-in for the CRM; with a CRM of somebody's own there is nothing to look at."""
    wanted = {address.lower() for address in addresses}

    def found() -> Counter[str]:
        answer = httpx.get(site.urls["crm"], timeout=30)
        answer.raise_for_status()
        emails = (contact["properties"]["email"].lower() for contact in answer.json()["results"])
        return Counter(email for email in emails if email in wanted)

    patiently(lambda: len(found()) == len(wanted), seconds=30)
    counts = found()
    report.step(f"GET {site.urls['crm']}: {len(counts)} of the users are contacts")
    report.check("every user is a contact at the CRM, once", counts == Counter(wanted), f"{counts.total()} contacts")
