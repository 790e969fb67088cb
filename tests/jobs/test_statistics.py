"""Events become statistics: each is counted once, whoever dies and however many fold."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.db.models import Sum
from django.utils import timezone

from accounts.models import User
from jobs import folds, services, settle, statistics
from jobs.dispatcher import statistics as duty
from jobs.models import JobEvent, OwnerStat, Stat
from jobs.settle import Run
from jobs.statistics import BOUNDS_SECONDS, Counts, Histogram
from tests.jobs.connections import another_connection, kill, over
from tests.jobs.factories import claim_job, make_events, make_job, make_worker

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def user(db: None) -> User:
    return User.objects.create(email="ann@example.com", name="Ann")


def make_mails(count: int = 1, **fields: Any) -> None:
    make_events(count, **{"queue": "email", "task": "a.tasks.mail", "at": NOON, **fields})


def completed() -> tuple[int, int]:
    """Jobs counted as completed, and events that are not folded yet."""
    return Stat.objects.aggregate(sum=Sum("completed_count"))["sum"] or 0, JobEvent.objects.count()


@pytest.mark.django_db
def test_every_end_of_a_run_is_counted_under_its_kind_with_its_wait_and_its_length() -> None:
    worker = make_worker()

    def run() -> Run:
        job = make_job(task="a.tasks.mail", run_at=timezone.now() - timedelta(seconds=3))
        return claim_job(job, worker)

    settle.complete(run(), result=None)
    settle.fail(run(), error="no")
    settle.retry(run(), delay=9, error="not yet")
    settle.cancel(run(), reason="enough")
    claimed = run()
    settle.lose(claimed.row(), evidence="killed")
    services.revoke_job(job_id=make_job(task="a.tasks.mail").pk)
    assert not duty.Fold().run_once()
    (one,) = statistics.counts(start_at=timezone.now() - timedelta(minutes=2)).values()
    assert (one.completed, one.failed, one.retried, one.stalled, one.cancelled) == (1, 1, 1, 1, 2)
    # The sixth never ran.
    assert (one.waits.count, one.runs.count) == (5, 5)
    assert 3 <= one.waits.mean_seconds < 30
    assert 2 <= one.waits.percentile_seconds(50) < 30


@pytest.mark.django_db
def test_a_reader_says_the_same_before_and_after_the_fold_and_between_two_batches(user: User) -> None:
    for second, run_seconds in enumerate((None, 0.0, 0.015625, 0.375, 7.0, 3600.0, 9000.0)):
        at = NOON + timedelta(seconds=20 * second)
        make_mails(at=at, run_seconds=run_seconds, wait_seconds=run_seconds, owner=user)
        make_mails(at=at, kind="failed", task="a.tasks.other", owner=user, error=f"number {second}")
        make_mails(at=at, kind="retried", queue="crm")

    def told() -> list[Any]:
        span = {"start_at": NOON, "end_at": NOON + timedelta(hours=1)}
        totals: dict[str, Any] = {}
        for queue, *figures in statistics.totals(failed_for=timedelta(hours=1)):
            totals[queue] = [sum(pair) for pair in zip(totals.get(queue, [0, 0, 0]), figures, strict=True)]
        return [
            statistics.counts(start_at=NOON - timedelta(days=1)),
            statistics.counts(start_at=NOON - timedelta(days=1), by=("queue",)),
            totals,
            statistics.of_owners([user.pk], **span),
        ]

    before = told()
    answers = []
    while folds.fold_events(limit=5)[0]:
        answers.append(told())
    assert len(answers) == 5
    assert answers == [before] * 5
    folds.fold_days(age=timedelta(0))
    assert told() == before
    assert before[2] == {"email": [7, 7, 0], "crm": [0, 0, 0]}
    assert [(one.task, one.completed, one.failed, one.error) for one in before[3]] == [
        ("a.tasks.mail", 7, 0, ""),
        ("a.tasks.other", 0, 7, "number 6"),
    ]


@pytest.mark.django_db
def test_each_length_of_time_is_in_the_bucket_under_the_first_bound_above_it() -> None:
    for seconds in (0.0, *BOUNDS_SECONDS):
        make_mails(run_seconds=seconds, wait_seconds=seconds + 0.001)
    duty.Fold().run_once()
    stat = Stat.objects.get()
    assert stat.run_buckets == stat.wait_buckets == [1] * (len(BOUNDS_SECONDS) + 1)


@pytest.mark.django_db
def test_ten_thousand_events_are_folded_a_batch_at_a_time() -> None:
    for number in range(10):
        make_mails(1000, task=f"a.tasks.number_{number % 3}", at=NOON + timedelta(seconds=30 * number))
    assert [duty.Fold().run_once() for _ in range(3)] == [True, True, False]
    assert completed() == (10_000, 0)
    # Of ten half minutes, three tasks take turns.
    assert Stat.objects.count() == 10
    assert statistics.total(statistics.counts(start_at=NOON).values()).completed == 10_000


@pytest.mark.django_db(transaction=True)
def test_two_that_fold_at_once_count_each_event_once() -> None:
    make_mails(10)
    with another_connection() as other:
        with other.cursor() as cursor:
            cursor.execute("SELECT FROM jobs_jobevent ORDER BY id LIMIT 4 FOR UPDATE")
        # Those that the other holds are left to it, without waiting.
        assert folds.fold_events(limit=100)[0] == 6
        assert completed() == (6, 4)
    assert folds.fold_events(limit=100)[0] == 4
    assert completed() == (10, 0)


@pytest.mark.django_db(transaction=True)
def test_two_that_add_to_one_row_at_once_lose_nothing() -> None:
    make_mails(5)
    # The same statement, of another leader, which has not committed yet.
    with another_connection() as other:
        with over(other):
            assert folds.fold_events(limit=3)[0] == 3
        with connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = '50ms'")
            with pytest.raises(Exception, match="lock timeout"):
                folds.fold_events(limit=100)
            cursor.execute("RESET lock_timeout")
        assert completed() == (0, 5)
        other.commit()
    assert folds.fold_events(limit=100)[0] == 2
    assert completed() == (5, 0)


@pytest.mark.django_db(transaction=True)
def test_a_fold_that_dies_in_the_middle_has_counted_nothing() -> None:
    make_mails(10)
    with another_connection() as other:
        with over(other):
            assert folds.fold_events(limit=100)[0] == 10
        kill(other)
    assert completed() == (0, 10)
    assert folds.fold_events(limit=100)[0] == 10
    assert completed() == (10, 0)


@pytest.mark.django_db
def test_the_minutes_of_a_day_become_one_row_when_it_is_over_for_two_days() -> None:
    today = timezone.now().astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    for age in range(5):
        for minute in (0, 1, 719, 1439):
            make_mails(at=today - timedelta(days=age) + timedelta(minutes=minute), run_seconds=0.375)
    duty.Fold().run_once()
    before = statistics.counts(start_at=today - timedelta(days=9))
    for _ in range(2):
        duty.fold_days()
        assert statistics.counts(start_at=today - timedelta(days=9)) == before
    rows = Stat.objects.order_by("minute").values_list("minute", "completed_count")
    assert list(rows)[:2] == [(today - timedelta(days=4), 4), (today - timedelta(days=3), 4)]
    assert len(rows) == 2 + 3 * 4
    # A late event finds the day's row, or makes a minute that joins it.
    make_mails(at=today - timedelta(days=4))
    make_mails(at=today - timedelta(days=4) + timedelta(minutes=7))
    duty.Fold().run_once()
    duty.fold_days()
    assert Stat.objects.get(minute=today - timedelta(days=4)).completed_count == 6
    assert Stat.objects.count() == 14


@pytest.mark.django_db
def test_a_span_that_began_long_ago_is_counted_by_whole_days() -> None:
    make_mails(at=NOON)
    duty.Fold().run_once()
    spans = {}
    for hour in (11, 13, 36):
        found = statistics.counts(start_at=NOON.replace(hour=0) + timedelta(hours=hour))
        spans[hour] = sum(one.completed for one in found.values())
    assert spans == {11: 1, 13: 1, 36: 0}


def test_a_percentile_is_found_within_its_bucket() -> None:
    place = BOUNDS_SECONDS.index(2.0)
    buckets = [0] * (len(BOUNDS_SECONDS) + 1)
    buckets[place] = 90
    buckets[-1] = 10
    lengths = Histogram(buckets=tuple(buckets), seconds_sum=90 * 1.5 + 10 * 7200)
    assert lengths.percentile_seconds(45) == pytest.approx(1.5)
    assert lengths.percentile_seconds(90) == pytest.approx(2.0)
    assert lengths.percentile_seconds(95) == BOUNDS_SECONDS[-1]
    assert Histogram().percentile_seconds(50) is None
    assert (Histogram() + lengths).percentile_seconds(45) == pytest.approx(1.5)
    assert statistics.total([]) == Counts()


@pytest.mark.django_db
def test_an_owners_day_begins_at_a_quarter_of_an_hour_in_every_zone(user: User) -> None:
    # Midnight in Kathmandu, which is 5 h 45 min ahead.
    midnight = datetime(2026, 2, 28, 18, 15, tzinfo=UTC)
    make_mails(at=midnight - timedelta(microseconds=1), owner=user, task="a.tasks.yesterday")
    make_mails(at=midnight, owner=user, task="a.tasks.today")
    for _ in range(2):
        found = statistics.of_owners([user.pk], start_at=midnight, end_at=midnight + timedelta(days=1))
        assert [(one.task, one.quarter) for one in found] == [("a.tasks.today", midnight)]
        duty.Fold().run_once()


@pytest.mark.django_db
def test_what_is_counted_for_a_user_goes_with_the_user_and_late_events_stop_nothing(user: User) -> None:
    worker = make_worker()
    job = make_job(owner=user, max_attempts=1)
    settle.fail(claim_job(job, worker), error="x" * 300)
    make_mails(owner=user)
    folds.fold_events(limit=1)
    assert OwnerStat.objects.get().error == "x" * 200
    user.delete()
    assert not OwnerStat.objects.exists()
    assert folds.fold_events(limit=10)[0] == 1
    assert not OwnerStat.objects.exists()
    assert Stat.objects.count() == 2


@pytest.mark.django_db(transaction=True)
def test_an_owner_whom_somebody_has_locked_is_not_waited_for() -> None:
    ann, bob = (User.objects.create(email=f"{name}@example.com", name=name) for name in ("ann", "bob"))
    for owner in (ann, bob, None):
        make_mails(owner=owner)
    with another_connection() as other, other.cursor() as cursor:
        cursor.execute("SELECT FROM accounts_user WHERE id = %s FOR UPDATE", [ann.pk])
        with connection.cursor() as mine:
            mine.execute("SET lock_timeout = '50ms'")
            assert folds.fold_events(limit=10)[0] == 2
            mine.execute("RESET lock_timeout")
        assert JobEvent.objects.get().owner_id == ann.pk
    assert folds.fold_events(limit=10)[0] == 1
    assert completed() == (3, 0)
    assert set(OwnerStat.objects.values_list("owner", "completed_count")) == {(ann.pk, 1), (bob.pk, 1)}


@pytest.mark.django_db
def test_the_error_of_a_job_without_an_owner_is_nobodys_to_read() -> None:
    settle.fail(claim_job(make_job(), make_worker()), error="private")
    assert JobEvent.objects.get().error == ""
