"""What pytest loads to run Celery's tests: another application under them, and a note of each outcome.

The tests make their applications by Celery's fixtures, and share a worker that runs in a thread of pytest's process.
"""

import copyreg
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from celery.contrib.testing import app as testing
from celery.loaders.base import BaseLoader

OUTCOMES = "CELERY_SUITE_OUTCOMES"
RESULTS = "CELERY_SUITE_RESULTS"
# The ledger's backend, by a name that begins as that of Redis does: most tests of errors and callbacks ask for that.
LEDGER = "redis-or-rather-ledger"


def pytest_configure() -> None:
    """Sets Django up, where results are in its database."""
    # As tblib would, which Celery looks for. What the pool's process logs comes through a queue, and a traceback, which
    # cannot be pickled, ends the thread that sends it: tests that read the log would see nothing from then on.
    copyreg.pickle(TracebackType, left_behind)
    if "DJANGO_SETTINGS_MODULE" in os.environ:
        import django
        from django.core.management import call_command

        django.setup()
        call_command("migrate", verbosity=0)
    if os.environ[RESULTS] == "ledger":
        from tests.celery_suite.app import SuiteCelery

        testing.Celery = SuiteCelery
        BaseLoader.override_backends = {LEDGER: "jobs.backend:LedgerBackend"}


def left_behind(traceback: TracebackType) -> tuple[Any, tuple[()]]:
    """What pickle makes of a traceback: None."""
    return type(None), ()


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Each test has a worker: some rely on one that another test has started."""
    for item in items:
        item.fixturenames.insert(0, "celery_session_worker")


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is going to be run: of a test that its process does not outlive, nothing else is ever said."""
    _note(("lost", item.nodeid) for item in session.items)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Of one test there are several: of its fixtures, of its parts, and of itself."""
    if report.failed or report.skipped or report.when == "call":
        _note([(report.outcome, report.nodeid)])


def _note(outcomes: Iterable[tuple[str, str]]) -> None:
    with Path(os.environ[OUTCOMES]).open("a") as file:
        file.writelines(f"{outcome} {name}\n" for outcome, name in outcomes)
