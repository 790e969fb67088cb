"""The options of calls at their edges: kept, or refused in words, with the caller's transaction as it was."""

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from celery import chain, chord, group
from django.utils import timezone

from accounts.models import User
from jobs.bulk import CallRefused, enqueue_many
from jobs.dispatcher import due
from jobs.enqueue import NotSupported, PayloadNotJSON
from jobs.flows import ChildRefused, fan_out
from jobs.ids import InvalidJobId
from jobs.models import Job
from jobs.testing import run_due_jobs
from tests.jobs.factories import state_of
from tests.sample_tasks import add, echo

pytestmark = pytest.mark.django_db

DECADE = timedelta(days=3653)
LONG_AGO, FAR_AHEAD = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, tzinfo=UTC)
NO_NUMBERS = [math.nan, math.inf, -math.inf, 10**12, 1e300, 10**400, "soon", True, [], {}]
REFUSED: dict[str, list[Any]] = {
    "countdown": NO_NUMBERS,
    "eta": [FAR_AHEAD, LONG_AGO, "soon", 5, [], timezone.now() + DECADE + timedelta(days=2)],
    "expires": [*NO_NUMBERS, LONG_AGO, FAR_AHEAD],
    "priority": [-1, 10, 1.5, "1", True, 10**12],
    "max_attempts": [0, -1, 1_000_001, 10**12, "3", 1.5],
    "soft_time_limit": [*NO_NUMBERS, -1],
    "time_limit": [*NO_NUMBERS, -1],
    "correlation_id": ["x" * 65, "a\0b", "\ud800", "", 7],
    "group_id": ["x" * 65, "a\0b", "\ud800"],
    "group_index": [-1, 2**31, "1"],
    "argsrepr": ["", "x" * 1025, "a\0b", "\ud800", 7],
    "kwargsrepr": ["", "x" * 1025, {}],
    "headers": [7, "x", {1: 2}, {"a": object()}, {"a": math.nan}, {"a": "\0"}],
    "queue": [7, ["default"]],
    "owner_id": [0, -1, 10**30, "ann", "\0", [], math.nan],
    "task_id": ["invoice-7", 7, "\0", []],
    "parent_id": ["x"],
    "root_id": ["x"],
    "dedup_key": ["x" * 256, "a\0b", "\ud800", 7],
    "rate_key": ["x" * 129, "a\0b", "\ud800", 7],
    "concurrency_key": ["x" * 129, "a\0b", "\ud800", 7],
    "flow_slot": [{}, 7],
    "awaited_flow_id": ["x"],
}
EDGES: list[dict[str, Any]] = [
    {"countdown": (DECADE - timedelta(days=1)).total_seconds()},
    {"countdown": -5},
    {"countdown": 0.0},
    {"eta": "2026-01-01T00:00:00"},
    {"eta": datetime(2026, 1, 1)},  # as callers give it
    {"expires": -1},
    {"priority": 0},
    {"max_attempts": 1_000_000},
    {"time_limit": 0},
    {"correlation_id": "ä" * 64},
    {"group_id": "x" * 64},
    {"dedup_key": "ä" * 255},
    {"rate_key": "{}\n" * 42},
    {"headers": {"": None}},
]


def nested(levels: int) -> Any:
    value: Any = "bottom"
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


def in_a_link(name: str, value: Any) -> Any:
    return add.apply_async((1, 2), link=echo.s().set(**{name: value}))


def in_a_chain(name: str, value: Any) -> Any:
    return chain(add.s(1, 2), echo.s(), echo.s().set(**{name: value})).apply_async()


def in_a_flow(name: str, value: Any) -> Any:
    return fan_out(None, [add.s(1, 2), add.s(1, 2).set(**{name: value})], then=echo.s())


CALLS: dict[str, Callable[[str, Any], Any]] = {
    "one": lambda name, value: add.apply_async((1, 2), **{name: value}),
    "many": lambda name, value: enqueue_many(add, [{"x": 1, "y": 2}], **{name: value}),
    "link": in_a_link,
    "chain": in_a_chain,
    "flow": in_a_flow,
}


@pytest.mark.parametrize("how", CALLS)
@pytest.mark.parametrize("name", REFUSED)
def test_what_could_not_be_kept_is_refused_in_words_and_nothing_is_written(how: str, name: str) -> None:
    # What only the ledger says of a member, and what a call of many may not say at all.
    if how == "flow" and name in {"group_id", "group_index", "parent_id", "root_id", "flow_slot", "awaited_flow_id"}:
        return
    # Who that will be then is asked when it follows.
    if how in {"link", "chain"} and name == "owner_id":
        return
    for value in REFUSED[name]:
        if value == "" and how != "one":
            continue
        with pytest.raises((ValueError, TypeError), match=rf"(?s){name}|arguments cannot be kept"):
            CALLS[how](name, value)
        # Asked of PostgreSQL: the caller's transaction is as it was.
        assert not Job.objects.exists(), value


@pytest.mark.parametrize("options", EDGES, ids=str)
def test_what_is_just_within_the_bounds_is_kept_and_can_be_ended(options: dict[str, Any]) -> None:
    result = add.apply_async((1, 2), **options)
    due.run_once()
    if state_of(result.id) == "waiting":
        run_due_jobs()
    assert state_of(result.id) in {"completed", "delayed", "cancelled"}


def test_an_owner_is_a_user() -> None:
    ann = User.objects.create(email="ann@example.com", name="Ann")
    assert Job.objects.get(pk=add.apply_async((1, 2), owner_id=ann.pk).id).owner == ann
    with pytest.raises(ValueError, match=rf"owner_id={ann.pk + 1}: expected the id of a user"):
        add.apply_async((1, 2), owner_id=ann.pk + 1)


@pytest.mark.parametrize("levels", [101, 600, 5000])
@pytest.mark.parametrize(
    "call", [lambda value: echo.delay(value), lambda value: enqueue_many(echo, [{"value": value}])]
)
def test_an_argument_that_is_nested_too_deep_is_refused(call: Callable[[Any], Any], levels: int) -> None:
    with pytest.raises((PayloadNotJSON, CallRefused), match="arguments cannot be kept"):
        call(nested(levels))
    assert not Job.objects.exists()


class AsJSON:
    """What says itself how it is kept, as kombu lets any object do."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __json__(self) -> Any:
        return self._value


@pytest.mark.parametrize(
    "call", [lambda value: echo.delay(value), lambda value: enqueue_many(echo, [{"value": value}])]
)
def test_what_an_object_makes_of_itself_is_no_deeper_than_what_others_are(call: Callable[[Any], Any]) -> None:
    with pytest.raises((PayloadNotJSON, CallRefused), match="arguments cannot be kept"):
        call(AsJSON(nested(150)))
    assert not Job.objects.exists()


@pytest.mark.parametrize("name", ["link", "link_error", "chain"])
@pytest.mark.parametrize("value", ["x", 5, [5], [None], [{}], [{"task": 5}], [{"task": "no.such"}]])
def test_what_is_no_signature_cannot_follow(name: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError, LookupError), match=r"expected|There is no task"):
        add.apply_async((1, 2), **{name: value})
    assert not Job.objects.exists()


@pytest.mark.parametrize("child", [None, 5, "x", {}, [], {"task": 5}])
def test_a_child_that_is_no_signature_is_refused_with_its_index(child: Any) -> None:
    with pytest.raises(ChildRefused, match="child 1, counted from 0"):
        fan_out(None, [echo.s(1), child], then=echo.s())
    assert not Job.objects.exists()


def test_arguments_may_come_from_a_generator() -> None:
    result = add.apply_async(number for number in (1, 2))
    run_due_jobs()
    assert result.get() == 3


def test_the_options_of_no_call_at_all_are_checked() -> None:
    with pytest.raises(ValueError, match="countdown"):
        enqueue_many(add, [], countdown=10**12)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(nested(5000), id="deep"),
        pytest.param(10**5000, id="a long number"),
        pytest.param("\ud800" * 5000, id="half characters"),
        pytest.param([{"a": "x" * 5000}] * 5000, id="long"),
    ],
)
def test_an_option_that_is_too_long_or_deep_to_be_shown_is_refused_in_words(value: Any) -> None:
    with pytest.raises(ValueError, match=r"add: countdown=.*: expected seconds, at most 10 years\.$") as refused:
        add.apply_async((1, 2), countdown=value)
    assert len(str(refused.value).encode()) < 250


def test_an_argument_and_a_result_may_be_nested_a_hundred_deep() -> None:
    result = echo.delay(nested(100))
    many = enqueue_many(echo, [{"value": nested(100)}])
    run_due_jobs()
    assert many.count == 1
    assert result.get() == nested(100)
    assert set(Job.objects.values_list("state", flat=True)) == {"completed"}


@pytest.mark.parametrize(
    "canvas",
    [
        lambda named: chain(add.s(1, 2), named),
        lambda named: chain(add.s(1, 2), group(echo.s(), named)),
        lambda named: chord([add.s(1, 2), named.clone((1,))], echo.s()),
        lambda named: chord([add.s(1, 2)], named),
        lambda named: group(add.s(1, 2), named.clone((1,))),
        lambda named: add.s(1, 2).on_error(named),
        lambda named: chain(add.s(1, 2), chord([echo.s(), echo.s()], named)),
        lambda named: add.s(1, 2).set(link=echo.s().set(link=named)),
    ],
)
def test_an_id_that_is_none_is_refused_anywhere_in_a_canvas(canvas: Callable[[Any], Any]) -> None:
    with pytest.raises(InvalidJobId, match="'invoice-7' is not a UUID"):
        canvas(echo.s().set(task_id="invoice-7")).apply_async(expires=2)
    assert not Job.objects.exists()


def test_an_id_that_is_given_to_a_link_is_its_jobs() -> None:
    own = str(uuid4())
    add.apply_async((1, 2), link=echo.s().set(task_id=own))
    run_due_jobs()
    assert (state_of(own), Job.objects.get(pk=own).result) == ("completed", 3)


def test_a_child_whose_id_is_there_already_is_refused() -> None:
    there = add.delay(1, 2)
    with pytest.raises(ChildRefused, match="child 1, counted from 0") as refused:
        fan_out(None, [add.s(1, 2), add.s(1, 2).set(task_id=there.id)], then=echo.s())
    assert isinstance(refused.value.__cause__, NotSupported)
    twice = str(uuid4())
    with pytest.raises(ChildRefused, match="child 1, counted from 0"):
        fan_out(None, [add.s(1, 2).set(task_id=twice), add.s(1, 2).set(task_id=twice)], then=echo.s())
    assert Job.objects.count() == 1


def test_a_canvas_that_is_called_again_under_its_ids_is_the_same() -> None:
    canvas = chord([add.s(1, 2), add.s(3, 4)], echo.s())
    canvas.freeze()
    for _ in range(2):
        result = canvas.apply_async()
    run_due_jobs()
    assert result.get() == [3, 7]
