"""Jobs that arrive are counted by minute, once each, whoever counts and however late they are committed."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from jobs import claims, folds, statistics
from jobs.dispatcher import statistics as dispatcher_statistics
from jobs.dispatcher.statistics import Arrivals
from jobs.models import Job, JobEvent, Stat
from tests.jobs.factories import make_events
from tests.jobs.plans import rows_read

pytestmark = pytest.mark.django_db

MINUTE = timedelta(minutes=1)


def this_minute() -> datetime:
    return timezone.now().replace(second=0, microsecond=0)


def make_jobs(count: int, **fields: Any) -> None:
    Job.objects.bulk_create(
        [Job(**{"task": "a.tasks.mail", "queue": "email", "state": "waiting", **fields}) for _ in range(count)]
    )


def arrived() -> dict[datetime, int]:
    return dict(Stat.objects.filter(arrived_count__gt=0).values_list("minute", "arrived_count"))


def count_all(arrivals: Arrivals) -> None:
    while arrivals.run_once():
        pass


def test_jobs_of_the_last_hour_are_counted_by_the_minute_in_which_they_were_made() -> None:
    now = this_minute()
    for minutes, count in ((0, 1), (2, 2), (30, 3), (61, 4)):
        make_jobs(count, created_at=now - minutes * MINUTE)
    arrivals = Arrivals()
    for _ in range(2):
        count_all(arrivals)
        assert arrived() == {now: 1, now - 2 * MINUTE: 2, now - 30 * MINUTE: 3}


def test_each_task_and_queue_has_a_count_of_its_own() -> None:
    make_jobs(1)
    make_jobs(2, task="a.tasks.digest")
    make_jobs(3, queue="crm")
    count_all(Arrivals())
    counts = statistics.counts(start_at=this_minute() - MINUTE)
    assert {key: one.arrived for key, one in counts.items()} == {
        ("email", "a.tasks.mail"): 1,
        ("email", "a.tasks.digest"): 2,
        ("crm", "a.tasks.mail"): 3,
    }


def test_jobs_that_are_committed_late_are_counted_with_their_minute() -> None:
    now = this_minute()
    arrivals = Arrivals()
    make_jobs(1, created_at=now - MINUTE)
    count_all(arrivals)
    make_jobs(1, created_at=now - MINUTE)
    count_all(arrivals)
    assert arrived() == {now - MINUTE: 2}


def test_jobs_that_are_committed_very_late_are_counted_within_a_minute() -> None:
    now = this_minute()
    arrivals = Arrivals()
    count_all(arrivals)
    make_jobs(1, created_at=now - 9 * MINUTE)
    count_all(arrivals)
    assert arrived() == {}
    arrivals._back_at = 0.0
    count_all(arrivals)
    assert arrived() == {now - 9 * MINUTE: 1}


class Clock:
    """A clock that stands still but for what takes its time."""

    def __init__(self) -> None:
        self.now = 10_000.0

    def monotonic(self) -> float:
        return self.now


def test_where_very_many_arrive_counting_them_takes_a_small_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, counted = Clock(), []
    begin = this_minute()

    def count(start_at: datetime, end_at: datetime) -> None:
        # As for 300,000 jobs in each minute.
        counted.append((clock.now, seconds := 0.23 * ((end_at - start_at) / MINUTE)))
        clock.now += seconds

    monkeypatch.setattr(dispatcher_statistics, "time", clock)
    monkeypatch.setattr(folds, "count_arrivals", count)
    monkeypatch.setattr(claims, "now", lambda: begin + timedelta(seconds=clock.now - 10_000.0))
    arrivals = Arrivals()
    # What nobody has counted for an hour is counted at once.
    count_all(arrivals)
    counted.clear()
    began = clock.now
    while clock.now < began + 3600:
        clock.now += dispatcher_statistics.ARRIVALS_SECONDS
        count_all(arrivals)
    assert sum(seconds for _, seconds in counted) < 0.03 * 3600
    # Each minute is counted soon all the same, and again when it is past.
    moments = [moment for moment, _ in counted]
    assert max(after - before for before, after in pairwise(moments)) < 60


def test_jobs_that_were_removed_have_arrived_all_the_same() -> None:
    now = this_minute()
    make_jobs(3, created_at=now)
    count_all(Arrivals())
    Job.objects.all().delete()
    make_jobs(1, created_at=now)
    count_all(Arrivals())
    assert arrived() == {now: 3}


def test_arrivals_and_ends_of_a_minute_are_in_one_row_and_become_a_day() -> None:
    noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
    make_jobs(3, created_at=noon)
    folds.count_arrivals(noon, noon + MINUTE)
    make_events(2, queue="email", task="a.tasks.mail", kind="completed", at=noon)
    folds.fold_events(limit=10)
    folds.count_arrivals(noon, noon + MINUTE)
    one = Stat.objects.get()
    assert (one.arrived_count, one.completed_count) == (3, 2)
    folds.fold_days(age=statistics.MINUTES_KEPT)
    one = Stat.objects.get()
    assert (one.minute, one.arrived_count, one.completed_count) == (noon.replace(hour=0), 3, 2)
    assert not JobEvent.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_two_at_once_count_once() -> None:
    now = this_minute()
    make_jobs(5, created_at=now)

    def count(_: int) -> None:
        try:
            folds.count_arrivals(now, now + MINUTE)
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(count, range(12)))
    assert arrived() == {now: 5}


def test_a_minute_is_read_by_the_index_and_not_all_jobs() -> None:
    make_jobs(2000, created_at=this_minute() - timedelta(hours=3))
    make_jobs(20)
    now = this_minute()
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE jobs_job")
    assert rows_read(folds.COUNT_ARRIVALS, {"start_at": now - MINUTE, "end_at": now + MINUTE}) <= 20
