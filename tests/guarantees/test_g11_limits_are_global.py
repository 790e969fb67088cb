"""G11: limits hold over all workers together."""

from datetime import datetime, timedelta

import pytest

from jobs.models import Job
from tests import sample_tasks
from tests.guarantees.ledger import assert_ledger_consistent
from tests.processes import Processes
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

SECOND = timedelta(seconds=1)


def starts(**jobs: object) -> list[datetime]:
    """When the jobs started, by the database's clock."""
    found = Job.objects.filter(**jobs).order_by("started_at").values_list("started_at", flat=True)
    return [start for start in found if start is not None]


def most_within(period: timedelta, moments: list[datetime]) -> int:
    """The most of these moments that lie in any time of a length, its end not included."""
    return max(sum(begin <= moment < begin + period for moment in moments) for begin in moments)


def all_completed(count: int) -> bool:
    return Job.objects.filter(state="completed").count() == count


def test_two_hundred_jobs_at_ten_a_second_take_no_less_than_nineteen_seconds_on_two_workers(
    processes: Processes,
) -> None:
    for _ in range(2):
        processes.worker("email", pool="threads", concurrency=5)
    for number in range(200):
        sample_tasks.add.apply_async((number, 1), queue="email")
    wait_until(lambda: all_completed(200), timeout=120)
    moments = starts()
    assert most_within(SECOND, moments) <= 10
    assert moments[-1] - moments[0] >= 19 * SECOND
    assert_ledger_consistent()
