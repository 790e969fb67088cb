"""What the ledger brings for projects that say nothing, and what it tells those that say something else."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, current_app
from django.conf import settings
from django.db import connections
from django.test import override_settings
from psycopg import IsolationLevel

from jobs import checks, defaults
from jobs.app import LedgerCelery
from jobs.queues import PACED_QUEUES, QUEUES, Queue, declare


@pytest.fixture
def _queues_again() -> Iterator[None]:
    before = list(QUEUES.values())
    yield
    declare(*before)


@pytest.fixture
def plain_celery() -> Iterator[Celery]:
    before: Any = current_app._get_current_object()
    app = Celery("plain", set_as_current=False)
    app.set_current()
    yield app
    before.set_current()


def configured(**said: Any) -> LedgerCelery:
    """An application of a project whose settings say this."""
    app = LedgerCelery("other", set_as_current=False)
    app.config_from_object(SimpleNamespace(**said), namespace="CELERY")
    return app


def test_a_project_that_says_nothing_has_what_the_ledger_needs_of_celery() -> None:
    conf = configured().conf
    for name, value in defaults.celery().items():
        assert conf[name] == value
    assert {queue.name for queue in conf.task_queues} == set(QUEUES)


def test_what_a_project_says_comes_before_what_the_ledger_brings() -> None:
    conf = configured(CELERY_TASK_DEFAULT_PRIORITY=2, CELERY_WORKER_PREFETCH_MULTIPLIER=8).conf
    assert (conf.task_default_priority, conf.worker_prefetch_multiplier, conf.task_acks_late) == (2, 8, True)


@pytest.mark.parametrize("name", sorted(defaults.JOBS))
def test_a_setting_of_the_ledger_that_a_project_has_not_is_set_at_its_start(name: str) -> None:
    said = getattr(settings, name)
    with override_settings(**{name: said}):
        delattr(settings, name)
        defaults.fill_in(settings)
        assert getattr(settings, name) == defaults.JOBS[name]
    assert getattr(settings, name) == said


@pytest.mark.usefixtures("_queues_again")
def test_a_project_declares_queues_of_its_own() -> None:
    declare(Queue(name="default", purpose="All"), Queue(name="mail", purpose="Mail", rate_limit="1/s"))
    assert {queue.name for queue in configured().conf.task_queues} == {"default", "mail"} == set(QUEUES)
    assert PACED_QUEUES == ["mail"]


@pytest.mark.usefixtures("_queues_again")
@pytest.mark.parametrize("names", [["mail"], ["default", "mail", "mail"], []])
def test_queues_need_different_names_and_a_default(names: list[str]) -> None:
    before = dict(QUEUES)
    with pytest.raises(ValueError, match="'default'"):
        declare(*(Queue(name=name, purpose="") for name in names))
    assert before == QUEUES


def test_an_application_without_a_ledger_is_refused_at_the_start(plain_celery: Celery) -> None:
    assert [error.id for error in checks.check_application()] == ["jobs.E006"]
    assert checks.check_delivery() == []


@pytest.mark.parametrize("url", ["amqp://localhost", ""])
def test_a_broker_that_is_no_redis_is_refused_at_the_start(url: str) -> None:
    with override_settings(CELERY_BROKER_URL=url):
        assert [error.id for error in checks.check_application()] == ["jobs.E007"]
    assert checks.check_application() == []


def test_moments_without_a_time_zone_are_refused_at_the_start() -> None:
    with override_settings(USE_TZ=False):
        assert [error.id for error in checks.check_time_zone()] == ["jobs.E008"]
    assert checks.check_time_zone() == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OPTIONS", {"server_side_binding": True}),
        ("OPTIONS", {"isolation_level": IsolationLevel.REPEATABLE_READ}),
        ("AUTOCOMMIT", False),
    ],
)
def test_a_connection_that_the_ledger_cannot_use_is_refused_at_the_start(
    name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checks.check_connection() == []
    monkeypatch.setitem(connections["default"].settings_dict, name, value)
    assert [error.id for error in checks.check_connection()] == ["jobs.E009"]


OTHERWISE = {
    "result_backend": "django-db",
    "task_acks_late": False,
    "worker_prefetch_multiplier": 4,
    "worker_consumer": "celery.worker.consumer:Consumer",
    "worker_disable_rate_limits": False,
    "task_reject_on_worker_lost": True,
    "task_retry_on_worker_lost": True,
    "task_ignore_result": True,
    "task_store_errors_even_if_ignored": False,
    "task_create_missing_queues": True,
    "broker_connection_retry": False,
    "broker_connection_retry_on_startup": False,
    "broker_connection_max_retries": 100,
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_a_setting_of_celerys_that_the_ledger_relies_on_is_held(name: str) -> None:
    conf = current_app.conf
    before = conf[name]
    setattr(conf, name, OTHERWISE[name])
    try:
        [error] = checks.check_delivery()
    finally:
        setattr(conf, name, before)
    assert error.id == "jobs.E002"
    assert error.msg.startswith(f"CELERY_{name.upper()} is {OTHERWISE[name]!r}; the ledger needs ")
    assert checks.check_delivery() == []


def test_hints_that_would_be_elsewhere_are_refused_at_the_start() -> None:
    assert checks.check_delivery() == []
    conf = current_app.conf
    before = conf.broker_transport_options
    conf.broker_transport_options = {**before, "sep": "|"}
    try:
        assert [error.id for error in checks.check_delivery()] == ["jobs.E002"]
        conf.broker_transport_options = {**before, "socket_timeout": 1}
        assert checks.check_delivery() == []
    finally:
        conf.broker_transport_options = before
