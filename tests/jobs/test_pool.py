"""The pool of processes, without processes."""

from importlib import import_module
from types import SimpleNamespace

import pytest
from django.core.exceptions import ImproperlyConfigured
from kombu.asynchronous import Hub

from jobs.worker.pool import LedgerPool
from jobs.worker.step import LedgerStep


def test_a_process_whose_end_was_seen_is_not_watched_anew_after_a_lost_connection() -> None:
    hub = Hub()
    pool = LedgerPool.__new__(LedgerPool)
    pool._track_child_process(SimpleNamespace(_sentinel_poll=None), hub)
    assert not hub.readers
    hub.close()


@pytest.mark.parametrize("name", ["prefork", "thread", "solo", "gevent", "eventlet", "base"])
def test_pools_of_processes_and_threads_are_taken_and_others_refused(name: str) -> None:
    module = import_module(f"celery.concurrency.{name}")
    kind = module.BasePool if name == "base" else module.TaskPool
    step, worker = LedgerStep.__new__(LedgerStep), SimpleNamespace(pool=kind.__new__(kind))
    if name in ("prefork", "thread", "solo"):
        step.create(worker)
    else:
        with pytest.raises(ImproperlyConfigured, match=f"celery.concurrency.{name} is no pool for the ledger"):
            step.create(worker)
