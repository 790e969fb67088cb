"""The demo proper: users sign up, mails arrive, everything is seen in its place."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import httpx

from devstack.demo import crm, digest, media, reports, webhooks
from devstack.demo.report import Report, patiently
from devstack.demo.site import Site

# As people come: several at once, not all in the same instant.
SIGN_UPS_PER_SECOND = 25
AT_ONCE = 4


def take(site: Site, report: Report, *, user_count: int) -> None:
    """Walks through all features and checks each."""
    addresses = [f"demo-{time.time_ns()}-{number}@example.com" for number in range(user_count)]
    user_ids = _sign_up(site, report, addresses)
    if not user_ids:
        return
    _mails(site, report, addresses)
    _jobs(site, report, addresses[0], user_ids)
    media.show(site, report, address=addresses[0])
    reports.show(site, report, address=addresses[0])
    webhooks.show(site, report, address=addresses[0])
    crm.show(site, report, addresses=addresses)
    digest.show(site, report, address=addresses[0])
    _refusals(site, report, addresses[0])
    _health(site, report)
    _admin(site, report)


def _sign_up(site: Site, report: Report, addresses: list[str]) -> list[int]:
    report.step(f"signing {len(addresses)} users up, {AT_ONCE} at once")
    began = time.monotonic()

    def one(numbered: tuple[int, str]) -> tuple[httpx.Response, float]:
        number, address = numbered
        time.sleep(max(0.0, began + number / SIGN_UPS_PER_SECOND - time.monotonic()))
        return site.sign_up(address)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(one, enumerate(addresses)))
    created = [answer.json()["id"] for answer, _ in answers if answer.status_code == httpx.codes.CREATED]
    report.step(f"{len(created)} users have their answer")
    report.check("every sign-up is answered 201 with an id", len(created) == len(addresses), f"{len(created)} users")
    report.measured("POST /signup", [seconds for _, seconds in answers])
    return created


def _mails(site: Site, report: Report, addresses: list[str]) -> None:
    report.step("waiting for the welcome mails, which come 2 s later")
    began = time.monotonic()
    patiently(lambda: len(site.mail_counts(addresses)) == len(addresses), seconds=30 + len(addresses) / 5)
    counts = site.mail_counts(addresses)
    report.step(f"{len(counts)} users have their mail")
    report.check("every user has got the welcome mail", len(counts) == len(addresses), f"{len(counts)} users")
    report.check("nobody has got it twice", all(count == 1 for count in counts.values()), f"{counts.total()} mails")
    report.measured("the last mail after the last sign-up", [time.monotonic() - began])


def _jobs(site: Site, report: Report, address: str, user_ids: list[int]) -> None:
    patiently(lambda: all(job["state"] == "completed" for job in site.welcome_jobs(user_ids)), seconds=10)
    jobs = site.welcome_jobs(user_ids)
    done = sum(job["state"] == "completed" for job in jobs)
    report.step(f"{done} of {len(jobs)} jobs are completed in the ledger")
    report.check("each user has one job, and it is completed", done == len(jobs) == len(user_ids), f"{done} jobs")
    [mine] = site.welcome_jobs(user_ids[:1])
    seen = site.job_of_api(mine["id"], site.token(address))
    shown = seen["state"], seen["progress"]["percent"], seen["result"]
    report.step(f"GET /api/jobs/{mine['id']}: {seen['state']}, {seen['result']}")
    report.check(
        "the API shows the owner the job with its result",
        shown == ("completed", 100, {"sent": True, "recipient": address}),
        shown[0],
    )
    anonymous = site.client.get(f"/api/jobs/{mine['id']}").status_code
    report.check("the API shows it to nobody else", anonymous in (401, 404), anonymous)


def _refusals(site: Site, report: Report, address: str) -> None:
    report.step("trying what must be refused")
    taken, _ = site.sign_up(address)
    report.check("a taken address is refused", taken.status_code == httpx.codes.CONFLICT, taken.status_code)
    wrong, _ = site.sign_up("no address")
    report.check("a wrong address is refused", wrong.status_code == httpx.codes.UNPROCESSABLE_ENTITY, wrong.status_code)
    broken = site.client.post("/signup", content="{", headers={"Content-Type": "application/json"})
    report.check("malformed JSON is refused", broken.status_code == httpx.codes.BAD_REQUEST, broken.status_code)


def _health(site: Site, report: Report) -> None:
    answer = site.client.get("/health")
    health = answer.json()
    report.step(f"GET /health: {health['status']}, e-mail queue {health['queues']['email']}")
    report.check("/health is ok", answer.status_code == httpx.codes.OK, "; ".join(health["reasons"]) or "ok")


def _admin(site: Site, report: Report) -> None:
    flower = site.client.get("/admin/flower/")
    report.check("Flower is closed to strangers", flower.status_code in (302, 403), flower.status_code)
    browser = site.admin()
    if browser is None:
        report.step("no admin password in the data folder: admin and Flower are not looked at")
        return
    with closing(browser):
        for name, path, words in (
            ("the admin shows the jobs", "/admin/jobs/job/", "send_welcome"),
            ("the dashboard shows the queues", "/admin/queues/", "email"),
            ("Flower shows the workers", "/admin/flower/", "worker-email@"),
        ):
            page = browser.get(path)
            report.step(f"GET {path}: {page.status_code}")
            report.check(name, page.status_code == httpx.codes.OK and words in page.text, page.status_code)
