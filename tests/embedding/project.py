"""A project of somebody else's that takes the ledger as a package, as `docs/embedding.md` says."""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
from django.conf import settings

from devstack.home import BASE_DIR
from tests.processes import Process
from tests.waiting import wait_until

PAGE = (BASE_DIR / "docs" / "embedding.md").read_text()
DATABASE = "embedding"


def blocks(heading: str) -> dict[str, str]:
    """The Python of a chapter, by the file that it belongs into."""
    (chapter,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return dict(re.findall(r"^```python\n# (\S+)\n(.*?)^```", chapter, re.MULTILINE | re.DOTALL))


class Project:
    """A project of somebody else's, with a Python of its own that has the wheel and, beside it, what that needs."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.folder = folder / "project"
        self.folder.mkdir()
        environment = folder / "venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
        self.python = str(environment / "bin" / "python")
        (packages,) = environment.glob("lib/python*/site-packages")
        (packages / "beside.pth").write_text(sysconfig.get_path("purelib"))
        install = ["pip", "install", "--quiet", "--offline", "--no-deps", "--python", self.python, str(wheel)]
        subprocess.run([sys.executable, "-m", "uv", *install], check=True)
        # Nothing of the test's own settings.
        self.env = {"PATH": os.environ["PATH"], "HOME": str(folder)}
        self.logs = folder

    def run(self, *arguments: str) -> str:
        """`python …` in the project, which must succeed; returns what it printed."""
        done = subprocess.run(
            [self.python, *arguments], check=False, cwd=self.folder, env=self.env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def begin(self, database: dict[str, Any]) -> None:
        """`django-admin startproject`, and the five lines of the page."""
        self.run("-m", "django", "startproject", "mysite", ".")
        self.add({"mysite/settings.py": f"DATABASES = {{'default': {database!r}}}\n"})
        self.add(blocks("Five lines"))

    def add(self, chapter: dict[str, str]) -> None:
        """Puts the blocks of a chapter where they belong, behind what is there."""
        for file, code in chapter.items():
            with (self.folder / file).open("a") as target:
                target.write(f"\n{code.replace('redis://127.0.0.1:6379/0', redis_url())}")

    def worker(self, number: int) -> Process:
        env = {"DJANGO_SETTINGS_MODULE": "mysite.settings"}
        arguments = ["celery", "-A", "mysite", "worker", "--loglevel=INFO", "--concurrency=1"]
        log = self.logs / f"worker-{number}.log"
        worker = Process(arguments, log=log, env=env, python=self.python, folder=self.folder)
        wait_until(lambda: " ready." in worker.output or worker.status is not None, timeout=60)
        assert worker.status is None, worker.output
        return worker


def redis_url() -> str:
    """Another database of the Redis of this test run."""
    return urlsplit(settings.REDIS_URL)._replace(path="/1").geturl()


def connected(facts: dict[str, Any], name: str) -> "psycopg.Connection[Any]":
    user = {"user": facts["USER"], "password": facts["PASSWORD"]}
    return psycopg.connect(host=facts["HOST"], port=facts["PORT"], dbname=name, autocommit=True, **user)
