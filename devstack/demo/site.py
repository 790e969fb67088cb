"""The running stack as the demo uses it: over HTTP, and with a look into the ledger and the caught mails."""

import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, LiteralString, NotRequired, TypedDict

import httpx
import psycopg
from psycopg.rows import dict_row

from devstack.admin import EMAIL

PASSWORD = "a demo is not a secret"  # noqa: S105  # of users that exist for the demo alone


class Status(TypedDict):
    """What `bin/up --status --json` prints."""

    processes: list[dict[str, Any]]
    urls: dict[str, str]
    home: str


class JobRow(TypedDict):
    """A job in the ledger."""

    id: str
    state: str
    attempt: int
    stalled_count: int
    error: NotRequired[str]


class Site:
    """One running stack."""

    def __init__(self, status: Status) -> None:
        self.urls = status["urls"]
        self.home = Path(status["home"])
        self.client = httpx.Client(base_url=self.urls["web"], timeout=30)

    def sign_up(self, email: str) -> tuple[httpx.Response, float]:
        """Signs a user up; returns the answer and the seconds that it took."""
        began = time.monotonic()
        answer = self.client.post("/signup", json={"email": email, "name": "Demo", "password": PASSWORD})
        return answer, time.monotonic() - began

    def token(self, email: str) -> str:
        """A bearer token for the API."""
        answer = self.client.post("/api/tokens", json={"email": email, "password": PASSWORD})
        answer.raise_for_status()
        token: str = answer.json()["token"]
        return token

    def job_of_api(self, job_id: str, token: str) -> dict[str, Any]:
        """The job as its owner sees it."""
        answer = self.client.get(f"/api/jobs/{job_id}", headers={"Authorization": f"Bearer {token}"})
        answer.raise_for_status()
        job: dict[str, Any] = answer.json()
        return job

    def job_of_ledger(self, job_id: str) -> dict[str, Any]:
        """The same for a job that belongs to nobody, so that the API shows it to nobody."""
        with psycopg.connect(self.urls["database"], row_factory=dict_row) as connection:
            job: Any = connection.execute(
                "SELECT state, result, error, json_build_object('percent', coalesce(progress_percent, 0),"
                " 'message', progress_message) AS progress FROM jobs_job WHERE id = %s",
                [job_id],
            ).fetchone()
        if job is None:
            raise LookupError(f"There is no job {job_id}.")
        shown: dict[str, Any] = job
        return shown

    def value(self, statement: LiteralString, *values: str) -> str:
        """The one value that a query finds; empty where it finds none."""
        with psycopg.connect(self.urls["database"]) as connection:
            row = connection.execute(statement, values).fetchone()
        return str(row[0]) if row else ""

    def welcome_jobs(self, user_ids: Sequence[int]) -> list[JobRow]:
        """The welcome jobs of these users, from the ledger."""
        keys = [f"welcome-{user_id}" for user_id in user_ids]
        with psycopg.connect(self.urls["database"], row_factory=dict_row) as connection:
            rows: Any = connection.execute(
                "SELECT id::text, state, attempt, stalled_count, error FROM jobs_job WHERE dedup_key = ANY(%s)", [keys]
            ).fetchall()
        return list(rows)

    def mail_counts(self, recipients: Sequence[str]) -> Counter[str]:
        """How many mails each of these addresses has got."""
        answer = httpx.get(self.urls["mail_api"], timeout=30)
        answer.raise_for_status()
        caught = (to for mail in answer.json()["messages"] for to in mail["recipients"]["to"])
        wanted = set(recipients)
        return Counter(to for to in caught if to in wanted)

    def admin(self) -> httpx.Client | None:
        """A browser that is signed in to the admin; None where the password is not in the data folder."""
        password = self.home / "admin-password"
        if not password.exists():
            return None
        browser = httpx.Client(base_url=self.urls["web"], timeout=30, follow_redirects=True)
        fields = {"username": EMAIL, "password": password.read_text().strip(), "next": "/admin/"}
        browser.post(
            "/admin/login/",
            data={**fields, "csrfmiddlewaretoken": form_token(browser, "/admin/login/")},
            headers={"Referer": f"{self.urls['web']}/admin/login/"},
        )
        return browser


def form_token(browser: httpx.Client, path: str) -> str:
    """The CSRF token of the form on a page; empty where there is none."""
    found = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', browser.get(path).text)
    return found[1] if found else ""
