"""The README's commands and its task are run as they stand there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from accounts.models import User
from devstack.home import BASE_DIR
from devstack.ports import LOOPBACK, free_port
from jobs.models import Job
from tests.processes import Process, Processes
from tests.smtp import SmtpServer
from tests.waiting import wait_until

README = (BASE_DIR / "README.md").read_text()
# What a reader does by hand after the blocks of code: opens the page, with a browser's form.
JOIN = """
import django
django.setup()
from django.test import Client
answer = Client(HTTP_HOST="localhost").post("/join", {"email": "ada@example.com", "name": "Ada"})
assert answer.status_code == 202, answer.content
print(answer.json()["job"])
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """Every command of the README, in blocks and in sentences, as a shell splits it."""
    lines = [line for block in blocks("console") for line in block.replace("\\\n", " ").splitlines()]
    named = re.findall(r"`((?:bin/|\.venv/bin/)[^`]*)`", README)
    return [shlex.split(line) for line in [*lines, *named]]


def code(file: str) -> str:
    (found,) = [block for block in blocks("python") if block.startswith(f"# {file}\n")]
    return found


@pytest.mark.parametrize("command", [pytest.param(command, id=" ".join(command[:2])) for command in commands()])
def test_every_command_is_there_and_knows_its_options(command: list[str]) -> None:
    program, *arguments = command
    if program == "curl":
        return
    if program == ".venv/bin/python":
        assert (arguments[0], Path(sys.executable).name[:6]) == ("manage.py", "python")
        return
    assert os.access(BASE_DIR / program, os.X_OK)
    script = (BASE_DIR / program).read_text()
    assert script.startswith("#!/bin/sh\n")
    if arguments:
        (module,) = re.findall(r"python -m (devstack \w+)", script)
        usage = subprocess.run(
            [sys.executable, "-m", *module.split(), "--help"], cwd=BASE_DIR, check=True, capture_output=True, text=True
        ).stdout
        assert all(argument in usage for argument in arguments)


@pytest.mark.django_db(transaction=True)
def test_the_curl_line_signs_a_user_up_and_the_mail_arrives(processes: Processes, smtp_server: SmtpServer) -> None:
    (line,) = [command for command in commands() if command[0] == "curl"]
    port = free_port()
    web = processes.start(
        "granian", "--interface=wsgi", f"--host={LOOPBACK}", f"--port={port}", "config.wsgi:application"
    )
    processes.worker("email", pool="threads")
    assert "http://127.0.0.1:8000/" in line[2]
    answer = wait_until(lambda: sent(line, port=port, web=web), timeout=60)
    assert answer.status_code == 201, answer.text
    assert answer.json() == {"id": User.objects.get(email="ada@example.com").pk}
    wait_until(lambda: smtp_server.mails_to("ada@example.com"), timeout=30)


def sent(line: list[str], *, port: int, web: Process) -> httpx.Response | None:
    """What curl would do with these arguments."""
    assert web.status is None, web.output
    curl, show_headers, url, header_option, header, data_option, data = line
    assert (curl, show_headers, header_option, data_option) == ("curl", "-i", "-H", "-d")
    name, _, value = header.partition(": ")
    try:
        return httpx.post(url.replace(":8000", f":{port}"), headers={name: value}, content=data, trust_env=False)
    except httpx.TransportError:
        return None


@pytest.mark.django_db(transaction=True)
def test_the_task_runs_as_it_stands_in_the_readme(processes: Processes, tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    shop.mkdir()
    assert processes.start("manage", "startapp", "shop", str(shop)).wait() == 0
    for file in ("tasks.py", "views.py"):
        (shop / file).write_text(code(f"shop/{file}"))
    # What the reader adds to a file of the project is added to a copy that goes by another name.
    for file in ("settings", "urls"):
        (tmp_path / f"shop_{file}.py").write_text(f"from config.{file} import *\n{code(f'config/{file}.py')}")
    with (tmp_path / "shop_settings.py").open("a") as settings:
        settings.write('ROOT_URLCONF = "shop_urls"\n')
    env = {"PYTHONPATH": str(tmp_path), "DJANGO_SETTINGS_MODULE": "shop_settings"}

    processes.worker("default", include=(), env=env)
    request = processes.start("tests.script", env={**env, "SCRIPT": JOIN})
    assert request.wait() == 0, request.output
    job = wait_until(lambda: Job.objects.filter(state="completed").first(), timeout=30)
    user = User.objects.get(email="ada@example.com")
    assert (str(job.pk), job.task, job.result) == (
        request.output.split()[-1],
        "shop.tasks.greet",
        f"Hello, user {user.pk}!",
    )
    assert (job.queue, job.max_attempts) == ("default", 3)
    (call,) = [command for command in commands() if command[:3] == [".venv/bin/python", "manage.py", "shell"]]
    shell = processes.start("manage", *call[2:], env=env)
    assert (shell.wait(timeout=60), shell.output.splitlines()[-1]) == (0, "Hello, user 1!"), shell.output


def test_the_task_is_no_longer_than_six_lines() -> None:
    assert len([line for line in code("shop/tasks.py").splitlines() if line.strip()]) <= 6
