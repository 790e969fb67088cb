"""The pool of processes, without processes."""

from types import SimpleNamespace

from kombu.asynchronous import Hub

from jobs.worker.pool import LedgerPool


def test_a_process_whose_end_was_seen_is_not_watched_anew_after_a_lost_connection() -> None:
    hub = Hub()
    pool = LedgerPool.__new__(LedgerPool)
    pool._track_child_process(SimpleNamespace(_sentinel_poll=None), hub)
    assert not hub.readers
    hub.close()
