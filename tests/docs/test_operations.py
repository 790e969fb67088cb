"""`docs/operations.md` and `docs/environment.md` against what they tell of: groups, commands, log lines, variables."""

import json
import logging
import re
import time
from io import StringIO
from types import SimpleNamespace
from typing import Any

import pytest
from django.conf import settings
from django.core.management import call_command
from django.test import Client

from devstack.home import BASE_DIR
from jobs import correlation, runs
from jobs.management.commands.jobs import SUBCOMMANDS
from jobs.queues import QUEUES, WORKER_GROUPS, WorkerGroup

PAGE = (BASE_DIR / "docs" / "operations.md").read_text()


def test_the_page_of_variables_equals_what_the_environment_is_read_as() -> None:
    printed = StringIO()
    call_command("environment", stdout=printed)
    assert (BASE_DIR / "docs" / "environment.md").read_text() == printed.getvalue(), (
        "python manage.py environment > docs/environment.md"
    )


@pytest.mark.parametrize("group", WORKER_GROUPS, ids=lambda group: group.name)
def test_every_worker_group_is_listed_with_its_queues_and_slots(group: WorkerGroup) -> None:
    kinds = {"threads": ("thread", "threads"), "prefork": ("process", "processes")}[group.pool]
    slots = f"{group.concurrency} {kinds[group.concurrency > 1]}"
    queues = ", ".join(f"`{name}`" for name in group.queues)
    assert f"| `{group.name}` | queues {queues}; {slots} |" in PAGE


def test_the_connections_of_one_worker_of_each_type_are_as_the_page_says() -> None:
    # One per slot and three for duties: tests/jobs/test_connections.py counts them.
    assert f"takes {sum(group.concurrency + 3 for group in WORKER_GROUPS)} together" in PAGE.replace("\n", " ")


def test_the_commands_are_those_that_are_tested_by_hand() -> None:
    (block,) = re.findall(r"^```console\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    tested = (BASE_DIR / "tests" / "integration" / "test_by_hand.py").read_text()
    for command in block.splitlines():
        arguments = command.removeprefix("python ").replace("manage.py", "manage").split()
        assert ", ".join(f'"{argument}"' for argument in arguments) in tested, command


def test_a_run_is_logged_as_the_page_shows(caplog: pytest.LogCaptureFixture) -> None:
    (shown,) = re.findall(r"^```text\n(.*)\n```", PAGE, re.MULTILINE)
    claim = SimpleNamespace(job_id="0195508e-1a2b-7c3d-8e4f-5a6b7c8d9e0f", queue="email", attempt=1, max_attempts=3)
    with caplog.at_level(logging.INFO, logger="jobs.run"):
        request = SimpleNamespace(claim=claim, run_started=time.monotonic())
        runs.log(logging.INFO, "completed", "notifications.tasks.send_welcome", request)
    formatters: Any = settings.LOGGING["formatters"]
    correlation.assume("7f3e0c5d9a1b4e6f8a2c4d6e8f0a1b3c")
    correlation.AddCorrelationId().filter(caplog.records[0])
    correlation.assume("")
    written = logging.Formatter(formatters["line"]["format"]).format(caplog.records[0])
    numbers = re.compile(r"^\S+ \S+|ms=\d+$")
    assert numbers.sub("0", written) == numbers.sub("0", shown)


@pytest.mark.django_db(transaction=True)
def test_health_has_the_shape_that_the_page_shows() -> None:
    (shown,) = re.findall(r"^```json\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    told, found = json.loads(shown), Client(headers={"host": "localhost"}).get("/health").json()
    assert told.keys() == found.keys()
    assert told["queues"]["email"].keys() == found["queues"]["email"].keys()
    assert told["dispatcher"].keys() == found["dispatcher"].keys() == found["beat"].keys()
    assert set(found["queues"]) == set(QUEUES)


def test_the_thresholds_are_the_declared_ones() -> None:
    waiting = {queue.waiting_threshold_count for queue in QUEUES.values()}
    failed = {queue.failed_threshold_count for queue in QUEUES.values()}
    assert [f"({count})" in PAGE for counts in (waiting, failed) for count in counts] == [True, True]


def test_the_words_of_the_command_line_are_those_that_there_are() -> None:
    told = re.findall(r"^\| ((?:`[a-z-]+[A-Z ]*`(?:, )?)+) \|", PAGE.partition("## At a terminal")[2], re.MULTILINE)
    words = {word.split()[0] for row in told for word in re.findall(r"`([^`]+)`", row)}
    assert words == {subcommand.name for subcommand in SUBCOMMANDS}
