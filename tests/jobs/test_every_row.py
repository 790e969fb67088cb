"""Whatever PostgreSQL accepts as a job's row, by chance: it can be ended in every way and shown on every page, and its
neighbours go on. So a row that another version has written, or somebody by SQL, stops nothing.
"""

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import hypothesis.strategies as st
import pytest
from django.apps import apps
from django.db import DatabaseError, IntegrityError, connection, transaction
from django.db.models import DateTimeField
from django.db.models.functions import Now
from django.test import Client
from hypothesis import HealthCheck, assume, event, given, settings

from jobs import purge, services
from jobs.app import UnknownTask
from jobs.fields import MomentField
from jobs.job_filter import JobFilter
from jobs.models import Flow, Job, Worker
from jobs.queues import QUEUES
from tests.jobs.factories import make_job, make_worker
from tests.jobs.test_every_call import WAYS, all_go_through, neighbours, rarely, run, show
from tests.sample_tasks import echo
from tests.variants import examples

pytestmark = pytest.mark.django_db

# What PostgreSQL keeps in a text and in JSON.
texts = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(texts, inside, max_size=3),
    max_leaves=8,
)
signatures = st.fixed_dictionaries(
    {},
    optional={
        "task": st.just(echo.name) | json_values,
        "args": json_values,
        "kwargs": json_values,
        "options": json_values,
        "subtask_type": st.sampled_from(["group", "chord", "chain"]) | json_values,
        "immutable": json_values,
        "chord_size": json_values,
    },
)
follow_ups = st.dictionaries(
    st.sampled_from(["link", "link_error", "chain", "chord", "slot", "flow_slot", "due", "errbacks", "x"]),
    st.lists(signatures, max_size=2) | signatures | json_values,
    max_size=3,
)
moments = st.datetimes(timezones=st.just(UTC)) | st.sampled_from(
    [datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC)]
)
ids = st.uuids()
ROW: dict[str, st.SearchStrategy[Any]] = {
    "task": st.sampled_from(["", "no.such", "celery.accumulate", "celery.chord", "x" * 255]) | texts,
    "queue": st.sampled_from([*QUEUES, "nobodys", ""]),
    "priority": st.integers(0, 9),
    "args": json_values,
    "kwargs": json_values,
    "headers": json_values,
    "follow_ups": follow_ups | json_values,
    "successor": json_values | st.fixed_dictionaries({"args": json_values, "task": st.just(echo.name)}),
    "exception": json_values,
    "custom_meta": json_values,
    "custom_state": texts,
    "attempt": st.integers(1, 2**31 - 1),
    "stalled_count": st.integers(0, 2**31 - 1),
    "run_at": moments,
    "created_at": moments,
    "expires_at": moments,
    "started_at": moments,
    "time_limit_seconds": st.floats(),
    "soft_time_limit_seconds": st.floats(),
    "rate_limit": texts.map(lambda text: text[:16]),
    "rate_key": texts,
    "concurrency_key": texts,
    "concurrency_limit": st.integers(1, 2**31 - 1),
    "quiet_hours": texts,
    "lane": texts,
    "dedup_key": texts,
    "progress_message": texts,
    "progress_percent": st.integers(0, 100),
    "error": texts,
    "traceback": texts,
    "parent_id": ids,
    "root_id": ids,
    "group_id": texts,
    "flow_id": ids,
    "flow_path": st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3),
    "awaited_flow_id": ids,
    "is_held": st.booleans(),
    "correlation_id": texts,
    "claim_token": texts,
}
# As PostgreSQL keeps it, and Python does not read it.
UNREADABLE = [
    "1e5000",
    '{"a": 1e5000}',
    "[" * 3000 + "]" * 3000,
    '{"link": ' + '[{"task": ' * 200 + "1" + "}]" * 200 + "}",
    '[{"password": ' + "[" * 150 + "]" * 150 + "}]",
]
JSON_COLUMNS = ["args", "kwargs", "headers", "follow_ups", "successor", "exception", "custom_meta", "result"]
rows = st.sets(st.sampled_from(sorted(ROW)), max_size=5).flatmap(
    lambda names: st.fixed_dictionaries({name: ROW[name] for name in sorted(names)})
)


@given(
    fields=rows,
    state=st.sampled_from(["waiting", "delayed", "failed"]),
    unreadable=st.dictionaries(st.sampled_from(JSON_COLUMNS), st.sampled_from(UNREADABLE), max_size=2),
    way=st.sampled_from(WAYS),
    has_flow=st.booleans(),
    is_shown=rarely,
)
@settings(
    max_examples=examples(share=0.1), suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@pytest.mark.timeout(2400)
@pytest.mark.usefixtures("empty_redis")
def test_what_postgresql_accepts_can_be_ended_and_keeps_no_other(
    admin_client: Client,
    fields: dict[str, Any],
    state: str,
    unreadable: dict[str, str],
    way: Callable[[Job, Worker], None],
    has_flow: bool,
    is_shown: bool,
) -> None:
    with transaction.atomic():
        worker = make_worker(queues=list(QUEUES), concurrency=20)
        ordinary = neighbours()
        try:
            with transaction.atomic():
                odd = make_job(**{"task": echo.name, "args": [1], "state": state, **fields})
                for name in ("flow_id", "awaited_flow_id") if has_flow else ():
                    if name in fields:
                        Flow.objects.create(pk=fields[name])
                write_json(odd.pk, unreadable)
        except DatabaseError:
            assume(False)
        if state == "failed":
            services.retry_job(job_id=odd.pk, actor="ann")
        event(way.__name__)
        # What no process knows, a test's own worker refuses to run.
        with suppress(services.ActionRefused, UnknownTask):
            way(odd, worker)
        if is_shown:
            show(odd.pk, admin_client)
        if way is not run:
            all_go_through(*ordinary)
        end_what_is_left(odd.pk)
        purge.purge(wanted=JobFilter(), actor="ann")
        transaction.set_rollback(True)


def write_json(job_id: UUID, texts_by_column: dict[str, str]) -> None:
    with connection.cursor() as cursor:
        for column, text in texts_by_column.items():
            cursor.execute(f'UPDATE jobs_job SET "{column}" = %s::jsonb WHERE id = %s', [text, job_id])


@pytest.mark.parametrize("text", UNREADABLE)
@pytest.mark.parametrize("column", JSON_COLUMNS)
@pytest.mark.usefixtures("empty_redis")
def test_json_that_nobody_can_read_is_shown_and_comes_to_an_end(admin_client: Client, column: str, text: str) -> None:
    worker = make_worker(queues=list(QUEUES), concurrency=20)
    ordinary = neighbours()
    for state, way in [("delayed", WAYS[0]), ("waiting", WAYS[1])]:
        odd = make_job(task=echo.name, args=[1], state=state)
        write_json(odd.pk, {column: text})
        if state == "delayed":
            show(odd.pk, admin_client)
        way(odd, worker)
        end_what_is_left(odd.pk)
    all_go_through(*ordinary)
    odd = make_job(task=echo.name, args=[1])
    write_json(odd.pk, {column: text})
    run(odd, worker)
    odd.refresh_from_db()
    assert odd.state == ("failed" if column in ("args", "kwargs") else "completed"), odd.error


@pytest.mark.parametrize("moment", ["infinity", "-infinity", "0001-01-01 BC", "12000-01-01"])
@pytest.mark.parametrize("column", ["run_at", "created_at", "started_at", "finished_at", "expires_at"])
def test_a_moment_that_nobody_can_tell_is_refused_by_postgresql(column: str, moment: str) -> None:
    job = make_job()
    with connection.cursor() as cursor, pytest.raises(IntegrityError, match="check"):
        cursor.execute(f'UPDATE jobs_job SET "{column}" = %s WHERE id = %s', [moment, job.pk])


def test_every_moment_of_the_ledger_is_one_that_can_be_told() -> None:
    fields = [field for model in apps.get_app_config("jobs").get_models() for field in model._meta.concrete_fields]
    moments_there = [field for field in fields if isinstance(field, DateTimeField)]
    assert len(moments_there) > 40
    assert [str(field) for field in moments_there if not isinstance(field, MomentField)] == []
    with connection.cursor() as cursor:
        for field in moments_there:
            constraints = connection.introspection.get_constraints(cursor, field.model._meta.db_table).values()
            assert any(one["check"] and one["columns"] == [field.column] for one in constraints), field


def end_what_is_left(job_id: UUID) -> None:
    """However it is: an operator can cancel it."""
    if Job.objects.filter(pk=job_id, state__in=["waiting", "delayed", "active"]).exists():
        services.cancel_job(job_id=job_id, actor="ann")
        assert Job.objects.filter(pk=job_id, state="cancelled").exists()


def test_neighbours_are_what_they_say() -> None:
    assert {job.state for job in neighbours()} == {"delayed", "waiting"}
    assert Job.objects.filter(run_at__lt=Now() - timedelta(seconds=30)).count() == 2
