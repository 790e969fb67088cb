"""The limits of one job: what its call and its task say."""

from types import SimpleNamespace
from typing import Any

import pytest
from celery import current_app, shared_task
from django.core.exceptions import ImproperlyConfigured

from jobs import bulk, checks
from jobs.app import LedgerCelery
from jobs.limits import COLUMNS
from jobs.models import Job
from jobs.options import InvalidOption
from jobs.queues import QUEUES, Queue
from jobs.rates import InvalidLimit
from tests import sample_tasks

pytestmark = pytest.mark.django_db


@shared_task(queue="default", rate_limit="5/s", rate_key="tenant:{tenant_id}", concurrency_key="user:{user_id}")
def serve(tenant_id: int, user_id: int = 7) -> None:
    """A task that declares limits for each tenant and each user."""


@shared_task(queue="default", rate_limit=2, concurrency_limit=3, quiet_hours="22:00-07:00 Europe/Berlin")
def be_quiet() -> None:
    """A task whose limits hold for all of its jobs."""


def limits_of(result: Any) -> tuple[Any, ...]:
    job = Job.objects.get(pk=result.id)
    assert (job.lane == "") == (not any(getattr(job, name) for name in COLUMNS))
    return tuple(getattr(job, name) for name in COLUMNS)


def test_a_job_without_limits_stands_in_the_lane_of_those() -> None:
    assert limits_of(sample_tasks.add.delay(1, 2)) == (None,) * 5


def test_a_call_gives_its_job_limits() -> None:
    options = {"rate_key": "t", "rate_limit": "5/m", "concurrency_key": "u", "concurrency_limit": 2}
    result = sample_tasks.add.apply_async((1, 2), quiet_hours="22:00-07:00 UTC", **options)
    assert limits_of(result) == ("t", "5/m", "u", 2, "22:00-07:00 UTC")


def test_declared_keys_are_made_of_the_arguments_however_they_are_passed() -> None:
    wanted = ("tenant:42", "5/s", "user:7", 1, None)
    assert limits_of(serve.delay(42)) == limits_of(serve.delay(tenant_id=42, user_id=7)) == wanted


def test_a_call_comes_before_its_task() -> None:
    result = serve.apply_async((42,), rate_key="all", rate_limit="1/h", concurrency_limit=4)
    assert limits_of(result) == ("all", "1/h", "user:7", 4, None)


def test_a_limit_without_a_key_holds_for_all_jobs_of_the_task() -> None:
    key = f"task:{be_quiet.name}"
    assert limits_of(be_quiet.delay()) == (key, "2/s", key, 3, "22:00-07:00 Europe/Berlin")


def test_the_rate_that_a_project_sets_for_all_of_its_tasks_is_one_for_each_of_them() -> None:
    app = LedgerCelery("limited", set_as_current=False)
    app.config_from_object(SimpleNamespace(CELERY_TASK_DEFAULT_RATE_LIMIT="5/m"), namespace="CELERY")

    @app.task(name="says nothing")
    def says_nothing() -> None:
        """Nothing."""

    @app.task(name="has its own", rate_limit="1/h")
    def has_its_own() -> None:
        """Nothing."""

    app.finalize()
    assert limits_of(says_nothing.delay())[:2] == ("task:says nothing", "5/m")
    assert limits_of(has_its_own.delay())[:2] == ("task:has its own", "1/h")


def test_a_rate_key_without_a_rate_may_be_paused_alone() -> None:
    assert limits_of(sample_tasks.add.apply_async((1, 2), rate_key="host")) == ("host", None, None, None, None)


def test_the_calls_of_a_bulk_have_keys_of_their_own() -> None:
    bulk.enqueue_many(serve, [{"tenant_id": number} for number in range(3)])
    keys = Job.objects.values_list("rate_key", "concurrency_key").order_by("rate_key")
    assert list(keys) == [(f"tenant:{number}", "user:7") for number in range(3)]
    assert Job.objects.values("lane").distinct().count() == 3


@pytest.mark.parametrize(
    "options",
    [
        {"rate_limit": "fast"},
        {"rate_limit": 0.5},
        {"rate_key": ""},
        {"rate_key": 42},
        {"rate_key": "k" * 129},
        {"concurrency_key": "a\0b"},
        {"concurrency_key": "u", "concurrency_limit": 0},
        {"concurrency_limit": True},
        {"concurrency_limit": "2"},
        {"quiet_hours": "at night"},
    ],
)
def test_what_means_nothing_is_refused_before_anything_is_written(options: dict[str, Any]) -> None:
    with pytest.raises((InvalidLimit, InvalidOption), match=sample_tasks.add.name):
        sample_tasks.add.apply_async((1, 2), **options)
    assert not Job.objects.exists()


@pytest.mark.parametrize(
    "declared",
    [{"rate_limit": "fast"}, {"rate_key": "tenant:{nobody}"}, {"concurrency_limit": -1}, {"quiet_hours": "night"}],
)
def test_a_worker_does_not_start_with_a_task_whose_limits_mean_nothing(
    declared: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in declared.items():
        monkeypatch.setattr(sample_tasks.add, name, value, raising=False)
    with pytest.raises(ImproperlyConfigured, match=sample_tasks.add.name):
        checks.refuse_unsafe_tasks(current_app)


@pytest.mark.parametrize(
    "declared",
    [{"rate_limit": "fast"}, {"quiet_hours": "night"}, {"concurrency_limit": -1}, {"concurrency_limit": 1.5}],
)
def test_a_queue_whose_limits_mean_nothing_is_refused_at_import(declared: dict[str, Any]) -> None:
    with pytest.raises(InvalidLimit, match="Queue 'q'"):
        Queue(name="q", purpose="", **declared)


def test_email_starts_ten_jobs_a_second() -> None:
    assert str(QUEUES["email"].rate) == "10/s"
