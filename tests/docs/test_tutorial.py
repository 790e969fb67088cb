"""`docs/tutorial.md`, followed in a copy of the checkout: every command and every file, in order."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from devstack.home import BASE_DIR
from devstack.ports import free_port
from tests.waiting import wait_until

PAGE = (BASE_DIR / "docs" / "tutorial.md").read_text()
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
ASSIGNMENT = re.compile(r"(\w+)=\$\((.*)\)")


class Reader:
    """Does what the page says, at a shell of its own, with another port."""

    def __init__(self, folder: Path, *, port: int) -> None:
        self.folder, self.port = folder, port
        self.env = {"PATH": os.environ["PATH"], "HOME": str(folder.parent)}
        self.site = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False)
        self.said: dict[str, Any] = {}

    def read(self, title: str, **before: Callable[[], bool]) -> None:
        """Follows one chapter; what its commands and requests brought is in `said`, by command.

        `before`: what a reader has seen by the time of the command of that name.
        """
        (chapter,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
        for kind, text in BLOCK.findall(chapter):
            if kind == "python":
                self.write(text)
                continue
            for line in text.splitlines():
                if is_seen := before.get(line.split()[0]):
                    wait_until(is_seen, timeout=90)
                self.said[line] = self.request(line) if line.startswith("curl") else self.call(line)

    def write(self, code: str) -> None:
        """A file of the shop is written, one of the project is added to."""
        file = self.folder / code.splitlines()[0].removeprefix("# ")
        is_ours = file.parent.name == "config"
        with file.open("a" if is_ours else "w") as target:
            target.write(f"\n{code}" if is_ours else code)

    def call(self, line: str) -> str:
        """A command, which must succeed; a variable that it assigns is there for the next ones."""
        line = line.replace("bin/up --detach", f"bin/up --detach --port {self.port}")
        if assigned := ASSIGNMENT.fullmatch(line):
            self.env[assigned[1]] = self.call(assigned[2]).strip()
            return ""
        done = subprocess.run(
            line, shell=True, check=False, cwd=self.folder, env=self.env, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout

    def request(self, line: str) -> httpx.Response:
        """What curl would do. The web may be restarting, because files have changed."""
        match shlex.split(line):
            case ["curl", "-X", method, url]:
                pass
            case ["curl", url]:
                method = "GET"
            case other:
                pytest.fail(f"not understood: {other}")
        path = url.removeprefix("http://127.0.0.1:8000")
        expected = {"/buy/unicorn": 404, "/health": 200}.get(path, 202)
        return wait_until(lambda: self.answer(method, path, expected), timeout=90, reason=line)

    def answer(self, method: str, path: str, expected: int) -> httpx.Response | None:
        try:
            answer = self.site.request(method, path)
        except httpx.TransportError:
            return None
        return answer if answer.status_code == expected else None

    def bought(self, item: str) -> str:
        """The id of the job, from the answer."""
        return str(self.said[f"curl -X POST http://127.0.0.1:8000/buy/{item}"].json()["job"])

    def sign_in(self) -> None:
        login = "/admin/login/"
        self.site.get(login)
        form = {
            "username": re.findall(r"`(\S+@\S+)`", PAGE)[0],
            "password": self.said["cat .handoff/admin-password"].strip(),
            "csrfmiddlewaretoken": self.site.cookies["csrftoken"],
        }
        assert self.site.post(login, data=form, params={"next": "/admin/"}).status_code == 302

    def page(self, path: str) -> str:
        answer = self.site.get(path)
        assert answer.status_code == 200, (path, answer.status_code)
        return answer.text


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    folder = tmp_path / "handoff"
    listed = ["git", "-c", f"safe.directory={BASE_DIR}", "ls-files", "-z"]
    names = subprocess.run(listed, cwd=BASE_DIR, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(BASE_DIR / name, folder / name)
    # All is installed: what runs the tests has what `bin/up` needs.
    environment = folder / ".venv"
    environment.mkdir()
    for path in Path(sys.prefix).iterdir():
        (environment / path.name).symlink_to(path)
    (environment / "requirements-local.txt").unlink(missing_ok=True)
    shutil.copy(BASE_DIR / "requirements-local.txt", environment)
    reader = Reader(folder, port=free_port(20))
    with reader.site:
        yield reader
    subprocess.run(["bin/up", "--stop"], check=False, cwd=folder, env=reader.env, capture_output=True)


@pytest.mark.timeout(400)
def test_every_step_leads_to_what_the_page_says(reader: Reader) -> None:
    reader.read("Start")
    reader.sign_in()
    assert "default" in reader.page("/admin/queues/")
    status = reader.call("bin/up --status")
    (url,) = re.findall(r"^\s*database\s+(\S+)", status, re.MULTILINE)
    with psycopg.connect(url, autocommit=True) as ledger:

        def is_so(job: str, state: str, attempt: int = 1, stalls: int = 0) -> bool:
            found = "SELECT state, attempt, stalled_count FROM jobs_job WHERE id = %s"
            return ledger.execute(found, [job]).fetchone() == (state, attempt, stalls)

        def count(table: str) -> int:
            (found,) = ledger.execute(f"SELECT count(*) FROM {table}").fetchone() or (0,)
            return int(found)

        reader.read("An app with a slow task")
        reader.read("A view that enqueues")
        jobs = count("jobs_job")
        reader.read("Buy something")
        assert (count("shop_order"), count("jobs_job") - jobs) == (1, 1)
        tea = reader.bought("tea")
        wait_until(lambda: is_so(tea, "completed"), timeout=90)

        reader.read("See it")
        (listed,) = [text for command, text in reader.said.items() if "jobs list" in command]
        assert (tea in listed, "completed" in listed) == (True, True)
        health = reader.said["curl http://127.0.0.1:8000/health"].json()
        assert health["queues"]["default"]["completed"] >= 1
        assert tea in reader.page("/admin/jobs/job/")
        assert "1 × tea" in reader.page(f"/admin/jobs/job/{tea}/change/")

        reader.read("Let it fail")
        jam, nothing = reader.bought("jam"), reader.bought("nothing")
        wait_until(lambda: is_so(jam, "completed", attempt=2), timeout=90)
        assert "There is a paper jam." in reader.page(f"/admin/jobs/job/{jam}/change/")
        wait_until(lambda: is_so(nothing, "failed"), timeout=90)
        reader.read("Run it again")
        wait_until(lambda: is_so(nothing, "completed"), timeout=90)
        assert "1 × milk" in reader.page(f"/admin/jobs/job/{nothing}/change/")
        assert "Run again" in reader.page("/admin/jobs/auditentry/")

        reader.read("Kill the worker", kill=lambda: is_so(reader.bought("coffee"), "active"))
        coffee = reader.bought("coffee")
        wait_until(lambda: is_so(coffee, "completed", stalls=1), timeout=90)
        assert "stalled" in reader.page(f"/admin/jobs/job/{coffee}/change/")
        assert count("shop_order WHERE receipt <> ''") == 4
    reader.read("Stop")


def test_every_chapter_is_followed() -> None:
    followed = re.findall(r'reader\.read\("(.+?)"', Path(__file__).read_text())
    assert re.findall(r"^## (.+)$", PAGE, re.MULTILINE) == followed
