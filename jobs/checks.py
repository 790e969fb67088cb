"""System checks of the ledger: settings without which its promises do not hold."""

from typing import Any

from celery import Celery, current_app
from django.apps import apps
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.checks import CheckMessage, Error, register
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, router
from django_celery_beat.models import PeriodicTask
from psycopg import IsolationLevel

from jobs.app import LedgerCelery
from jobs.defaults import BROKER_TRANSPORT_OPTIONS
from jobs.queues import QUEUES
from jobs.rates import InvalidLimit


@register()
def check_lease(**_: Any) -> list[CheckMessage]:
    """A lease must outlast two missed renewals."""
    if settings.JOBS_HEARTBEAT_SECONDS * 3 <= settings.JOBS_LEASE_SECONDS:
        return []
    return [
        Error(
            f"JOBS_LEASE_SECONDS ({settings.JOBS_LEASE_SECONDS:g}) is less than three times JOBS_HEARTBEAT_SECONDS "
            f"({settings.JOBS_HEARTBEAT_SECONDS:g}): a worker that is merely slow would be given up.",
            hint="Make the lease longer or the heartbeat shorter.",
            id="jobs.E001",
        )
    ]


@register()
def check_application(**_: Any) -> list[CheckMessage]:
    """Celery's application is the ledger's, and its broker a Redis."""
    errors: list[CheckMessage] = []
    app = current_app._get_current_object()
    if not isinstance(app, LedgerCelery):
        errors.append(
            Error(
                f"Celery's application is a {type(app).__name__}: its tasks would be messages without a row.",
                hint="Make a jobs.app.LedgerCelery in the project's package, and import it in its __init__.py.",
                id="jobs.E006",
            )
        )
    if not getattr(settings, "CELERY_BROKER_URL", "").startswith(("redis://", "rediss://")):
        errors.append(
            Error(
                "CELERY_BROKER_URL names no single Redis.",
                hint="Set it in Django's settings, like redis://:password@host:6379/0, or rediss:// with TLS. Sentinel "
                "and Cluster are not supported: queues would lie on several servers, and doorbells on none.",
                id="jobs.E007",
            )
        )
    return errors


@register()
def check_delivery(**_: Any) -> list[CheckMessage]:
    """Celery settings that the ledger relies on."""
    conf = current_app.conf
    if not isinstance(current_app._get_current_object(), LedgerCelery):
        return []
    wanted = {
        "result_backend": "jobs.backend:LedgerBackend",
        "task_acks_late": True,
        "worker_prefetch_multiplier": 1,
        "worker_consumer": "jobs.worker.consumer:LedgerConsumer",
        "worker_disable_rate_limits": True,
        "task_reject_on_worker_lost": False,
        "task_retry_on_worker_lost": False,
        "task_ignore_result": False,
        "task_store_errors_even_if_ignored": True,
        "task_create_missing_queues": False,
        "broker_transport_options": {**conf.broker_transport_options, **BROKER_TRANSPORT_OPTIONS},
        # However long Redis is away, no worker ends; Celery's own patience has an end.
        "broker_connection_retry": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
    }
    return [
        Error(
            f"CELERY_{name.upper()} is {conf[name]!r}; the ledger needs {value!r}.",
            hint="Remove the setting: the ledger brings its own (jobs/defaults.py).",
            id="jobs.E002",
        )
        for name, value in wanted.items()
        if conf[name] != value
    ]


@register()
def check_time_zone(**_: Any) -> list[CheckMessage]:
    """Moments have a time zone, as PostgreSQL keeps them."""
    if settings.USE_TZ:
        return []
    return [
        Error(
            "USE_TZ is False: moments without a time zone do not compare with those of the ledger.",
            hint="Set USE_TZ = True. TIME_ZONE remains the zone of forms, templates and schedules.",
            id="jobs.E008",
        )
    ]


@register()
def check_queues(**_: Any) -> list[CheckMessage]:
    """Limits of every declared queue."""
    return [
        Error(
            f"Queue {queue.name!r}: its soft time limit is not shorter than its hard one.",
            id="jobs.E003",
        )
        for queue in QUEUES.values()
        if queue.soft_time_limit_seconds >= queue.time_limit_seconds
    ]


@register()
def check_database(**_: Any) -> list[CheckMessage]:
    """All of the ledger, the schedules and the users are in one PostgreSQL database, for reads and writes alike."""
    models = [*apps.get_app_config("jobs").get_models(), PeriodicTask, get_user_model()]
    aliases = {router_says(model) for model in models for router_says in (router.db_for_read, router.db_for_write)}
    if len(aliases) > 1:
        problem = f"DATABASE_ROUTERS spread the ledger over {', '.join(sorted(aliases))}"
    elif not aliases <= set(connections):
        problem = f"DATABASE_ROUTERS put the ledger into {aliases.pop()!r}, which is not in DATABASES"
    elif (vendor := connections[next(iter(aliases))].vendor) != "postgresql":
        problem = f"The ledger is in a database of the kind {vendor}"
    else:
        return []
    return [
        Error(
            f"{problem}: an end would not be one transaction with what it brings about.",
            hint="Send 'jobs', 'django_celery_beat' and the users to one alias, on PostgreSQL and without replicas.",
            id="jobs.E004",
        )
    ]


@register()
def check_connection(**_: Any) -> list[CheckMessage]:
    """How the ledger's database is spoken to."""
    if check_database():
        return []
    wanted = connections[router.db_for_write(PeriodicTask)].settings_dict
    options = wanted["OPTIONS"]
    problems = []
    if options.get("server_side_binding"):
        problems.append(("server_side_binding is on, so no partial index serves the ledger", "Leave it out"))
    if options.get("isolation_level") not in (None, IsolationLevel.READ_COMMITTED):
        problems.append(("isolation_level is not READ COMMITTED, so claims would fail at random", "Leave it out"))
    if not wanted["AUTOCOMMIT"]:
        problems.append(("AUTOCOMMIT is False, so nothing would ever be committed", "Leave it out"))
    return [
        Error(f"DATABASES: {problem}.", hint=f"{hint}, or give the ledger an alias of its own.", id="jobs.E009")
        for problem, hint in problems
    ]


def refuse_unsafe_tasks(app: Celery) -> None:
    """At a worker's start. Raises ImproperlyConfigured for a task whose limits mean nothing."""
    from jobs import own_limits
    from jobs.task import JobTask

    for task in app.tasks.values():
        if not isinstance(task, JobTask):
            continue
        try:
            own_limits.check_declared(task)
        except InvalidLimit as error:
            raise ImproperlyConfigured(str(error)) from error
