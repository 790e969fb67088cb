"""`celery.contrib.testing.worker.start_worker` in the test suite of a project that takes the ledger, as
`docs/embedding.md` says."""

from pathlib import Path
from typing import Any

import pytest

from tests.embedding.project import Project, blocks

TASKS = """
import logging

from celery import shared_task


@shared_task(queue="default")
def greet(name):
    logging.getLogger("shop").info("somebody is greeted")
    return f"Hello, {name}!"


@shared_task(queue="default", bind=True, max_retries=1)
def retry_once(self):
    if self.request.retries == 0:
        raise self.retry(countdown=0)
    return "at last"
"""
MORE_TESTS = """
import logging
import threading
import time

from celery import group
from django.db import connection
from jobs.models import Job, Worker
from shop.tasks import retry_once


class AgainTests(TransactionTestCase):
    def test_another_worker_follows(self):
        with start_worker(app):
            self.assertEqual(retry_once.delay().get(timeout=10), "at last")
        with start_worker(app):
            self.assertEqual((group(greet.s("Ada"), greet.s("Bob")) | greet.s()).delay().get(timeout=10)[:5], "Hello")
        self.assertFalse(Worker.objects.filter(dead_at=None).exists())

    def test_what_the_test_has_set_stays(self):
        logging.getLogger("shop").setLevel(logging.ERROR)
        with start_worker(app):
            greet.delay("Ada").get(timeout=10)
            self.assertEqual(logging.getLogger("shop").level, logging.ERROR)

    def test_what_nobody_has_run_waits(self):
        with start_worker(app):
            pass
        result = greet.delay("Ada")
        self.assertEqual(Job.objects.get(pk=result.id).state, "waiting")


class OfTheClassTests(TransactionTestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        worker = start_worker(app, perform_ping_check=False)
        worker.__enter__()
        cls.addClassCleanup(worker.__exit__, None, None, None)

    def test_one(self):
        self.assertEqual(greet.delay("Ada").get(timeout=10), "Hello, Ada!")
        # Longer than the worker goes without seeing whether it is still one.
        time.sleep(1)

    def test_two(self):
        self.test_one()

    def test_three(self):
        self.test_one()


class NothingIsLeftTests(TransactionTestCase):
    # Django runs classes of a kind in their order.
    def test_it_is_the_last(self):
        self.assertEqual([one.name for one in threading.enumerate() if one is not threading.main_thread()], [])
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
            self.assertEqual(cursor.fetchall(), [(1,)])
"""
# As pytest-django wants it.
INI = "[pytest]\nDJANGO_SETTINGS_MODULE = mysite.settings\npython_files = tests.py\naddopts = -p no:randomly\n"


@pytest.mark.timeout(300)
def test_a_worker_in_the_process_of_a_test_runs_its_jobs_and_leaves_nothing(
    database: dict[str, Any], wheel: Path, tmp_path: Path
) -> None:
    project = Project(tmp_path, wheel)
    project.begin(database)
    project.run("manage.py", "startapp", "shop")
    (project.folder / "shop" / "tasks.py").write_text(TASKS)
    project.add({"mysite/settings.py": "INSTALLED_APPS += ['shop']\n"})
    (project.folder / "shop" / "tests.py").write_text("")
    project.add({**blocks("A worker in your tests")})
    project.add({"shop/tests.py": MORE_TESTS, "pytest.ini": INI})
    assert "8 passed" in project.run("-W", "error", "-m", "pytest", "-q")
    project.run("-W", "error", "manage.py", "test")
