"""Whatever a canvas is, by chance: what runs of it, how often and with what, and what comes of it, is what Celery says.

Who says it is plain Celery, which runs the same canvas of the same functions in place.
"""

import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import hypothesis.strategies as st
import pytest
from celery import Celery, Task, _state, chain, chord, current_app, group, shared_task
from celery.canvas import _chain, _chord, maybe_signature, maybe_unroll_group
from celery.exceptions import ChordError, CPendingDeprecationWarning
from celery.result import EagerResult, GroupResult, allow_join_result
from django.db import transaction
from hypothesis import HealthCheck, event, example, given, settings

from jobs.models import LIVE, Job
from jobs.testing import run_due_jobs
from tests.variants import examples, variant

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("empty_redis")]

_PREFIX = "canvas."
# Which task has run, with what: of the ledger's and of plain Celery's alike.
RAN: list[tuple[str, Any, Any]] = []


# -- What canvases are made of -----------------------------------------------------------------------------------------
class Odd(Exception):
    """Has more than one argument."""


@shared_task(name="canvas.gather", queue="default")
def gather(*args: Any, **kwargs: Any) -> Any:
    RAN.append(("gather", args, kwargs))
    return [*args]


@shared_task(name="canvas.nothing", queue="default")
def nothing(*args: Any, **kwargs: Any) -> None:
    RAN.append(("nothing", args, kwargs))


@shared_task(name="canvas.empty", queue="default")
def empty(*args: Any, **kwargs: Any) -> Any:
    RAN.append(("empty", args, kwargs))
    return []


@shared_task(name="canvas.large", queue="default")
def large(*args: Any, **kwargs: Any) -> Any:
    RAN.append(("large", args, kwargs))
    return "•" * 3_000


@shared_task(name="canvas.fail", queue="default", max_retries=0)
def fail(*args: Any, **kwargs: Any) -> None:
    RAN.append(("fail", args, kwargs))
    raise ValueError("it broke")


@shared_task(name="canvas.fail_oddly", queue="default", max_retries=0)
def fail_oddly(*args: Any, **kwargs: Any) -> None:
    RAN.append(("fail_oddly", args, kwargs))
    raise Odd("it broke", 2)


@shared_task(name="canvas.retry", queue="default", bind=True, max_retries=1)
def retry(self: Any, *args: Any, **kwargs: Any) -> Any:
    RAN.append(("retry", args, kwargs))
    if self.request.retries == 0:
        raise self.retry(countdown=0)
    return [*args]


@shared_task(name="canvas.spawn", queue="default")
def spawn(*args: Any, **kwargs: Any) -> Any:
    RAN.append(("spawn", args, kwargs))
    current_app.tasks["canvas.gather"].delay("spawned")
    return 7


def _become(what: str) -> Callable[..., Any]:
    def become(self: Any, *args: Any, **kwargs: Any) -> Any:
        RAN.append((f"become_{what}", args, kwargs))
        return self.replace(INSTEAD[what](self.app, args))

    return become


def _named(app: Any, name: str) -> Any:
    return app.tasks[f"{_PREFIX}{name}"]


# What a task may be replaced by.
INSTEAD: dict[str, Callable[[Any, Any], Any]] = {
    "a_task": lambda app, args: _named(app, "gather").s(*args),
    "what_fails": lambda app, args: _named(app, "fail").s(*args),
    "a_chain": lambda app, args: _named(app, "gather").s(*args) | _named(app, "gather").s("then"),
    "a_chain_that_fails": lambda app, args: _named(app, "fail").s(*args) | _named(app, "gather").s("then"),
    "a_group": lambda app, args: group(_named(app, "gather").s(*args), _named(app, "nothing").s()),
    "a_chord": lambda app, args: chord(
        [_named(app, "gather").s(*args), _named(app, "empty").s()], _named(app, "gather").s()
    ),
}
for what in INSTEAD:
    shared_task(name=f"{_PREFIX}become_{what}", queue="default", bind=True)(_become(what))


@shared_task(name="canvas.told", queue="default")
def told(job_id: str) -> None:
    """An errback of the kind that is a job."""
    RAN.append(("told", ["of some id" if len(job_id) == 36 else job_id], {}))


@shared_task(name="canvas.see", queue="default")
def see(request: Any, error: BaseException, traceback: Any) -> None:
    """An errback of the kind that is called in place."""
    RAN.append(("see", [type(error).__name__], {}))


TASKS = (
    "gather",
    "nothing",
    "empty",
    "large",
    "fail",
    "fail_oddly",
    "retry",
    "spawn",
    *(f"become_{one}" for one in INSTEAD),
)


# -- Canvases, as words from which either side makes its own -----------------------------------------------------------
@dataclass(frozen=True)
class One:
    """A task, with what follows it."""

    task: str
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()
    is_immutable: bool = False
    links: tuple["Canvas", ...] = ()
    errbacks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Many:
    """A chain, a group or a chord, whose last one is its body."""

    kind: str
    inside: tuple["Canvas", ...]
    links: tuple["Canvas", ...] = ()


@dataclass(frozen=True)
class Treated:
    """A canvas that somebody has done something with before it is used."""

    how: str
    inside: "Canvas"


@dataclass(frozen=True)
class Same:
    """One object that stands in two places."""

    kind: str
    inside: "Canvas"


Canvas = One | Many | Treated | Same


def made(app: Any, canvas: Canvas) -> Any:
    """What these words say, as signatures of this app."""
    if isinstance(canvas, One):
        signature = _named(app, canvas.task).signature(canvas.args, dict(canvas.kwargs), immutable=canvas.is_immutable)
        for link in canvas.links:
            signature.link(made(app, link))
        for errback in canvas.errbacks:
            signature.link_error(_named(app, errback).s())
        return signature
    if isinstance(canvas, Treated):
        signature = made(app, canvas.inside)
        if canvas.how == "cloned":
            return signature.clone()
        if canvas.how == "frozen":
            signature.freeze()
            return signature
        return maybe_signature(json.loads(json.dumps(signature)), app=app)
    if isinstance(canvas, Same):
        one = made(app, canvas.inside)
        return _together(app, canvas.kind, [one, one, one] if canvas.kind == "chord" else [one, one])
    signature = _together(app, canvas.kind, [made(app, one) for one in canvas.inside])
    for link in canvas.links:
        signature.link(made(app, link))
    return signature


def _together(app: Any, kind: str, inside: list[Any]) -> Any:
    if kind == "chain":
        return chain(*inside)
    if kind == "group":
        return group(inside, app=app)
    return chord(inside[:-1], inside[-1], app=app)


values = st.sampled_from([1, None, "text", [], [1, [2]], {"key": "value"}])
HOW = ("cloned", "frozen", "read from JSON")
linked = st.builds(One, st.sampled_from(TASKS), is_immutable=st.booleans())
links = (
    linked
    | st.builds(Treated, st.sampled_from(HOW), linked)
    | st.builds(Many, st.sampled_from(["chain", "group", "chord"]), st.lists(linked, min_size=2, max_size=2).map(tuple))
)
ones = st.builds(
    One,
    st.sampled_from(["gather", *TASKS]),
    st.lists(values, max_size=2).map(tuple),
    st.just(()) | values.map(lambda value: (("key", value),)),
    st.integers(0, 4).map(lambda number: number == 0),
    st.just(()) | st.lists(links, max_size=2).map(tuple),
    st.just(()) | st.lists(st.sampled_from(["told", "see"]), max_size=2, unique=True).map(tuple),
)


def _larger(inside: st.SearchStrategy[Canvas]) -> st.SearchStrategy[Canvas]:
    some = st.lists(inside, min_size=1, max_size=3).map(tuple)
    return (
        st.builds(Many, st.just("chain"), some, st.just(()) | st.lists(links, max_size=1).map(tuple))
        | st.builds(Many, st.just("group"), some)
        | st.builds(Many, st.just("chord"), st.lists(inside, min_size=2, max_size=3).map(tuple))
        | st.builds(Same, st.sampled_from(["chain", "group", "chord"]), inside)
        | st.builds(Treated, st.sampled_from(HOW), inside)
    )


def parts(canvas: Canvas) -> tuple[Canvas, ...]:
    """What it is made of, with what follows it."""
    if isinstance(canvas, One):
        return canvas.links
    if isinstance(canvas, Many):
        return (*canvas.inside, *canvas.links)
    return (canvas.inside,)


def has_frozen(canvas: Canvas) -> bool:
    return (isinstance(canvas, Treated) and canvas.how == "frozen") or any(map(has_frozen, parts(canvas)))


def size(canvas: Canvas) -> int:
    """How many tasks it has."""
    times = {"chain": 2, "group": 2, "chord": 3}[canvas.kind] if isinstance(canvas, Same) else 1
    return isinstance(canvas, One) + times * sum(map(size, parts(canvas)))


def is_frozen_twice(canvas: Canvas) -> bool:
    """Whether it has two jobs with one id: the ledger refuses what Celery says that nobody should call."""
    return (isinstance(canvas, Same) and has_frozen(canvas)) or any(map(is_frozen_twice, parts(canvas)))


canvases = st.recursive(ones, _larger, max_leaves=5).filter(lambda canvas: size(canvas) <= 12)


# -- Plain Celery ------------------------------------------------------------------------------------------------------
class InPlace(Task):
    """Where tasks that run in place do otherwise than those of a worker: see `as_a_worker`."""

    abstract = True

    def on_replace(self, sig: Any) -> Any:
        # The replacement has been given what follows the task. In place, the task goes on nevertheless, with the result
        # of the replacement, and would call all that once more.
        self.request.update(callbacks=None, errbacks=None)
        with allow_join_result():
            return super().on_replace(sig)


PLAIN = Celery(
    "plain", broker="memory://", backend="cache+memory://", fixups=[], set_as_current=False, task_cls=InPlace
)
PLAIN.conf.task_always_eager = True
with warnings.catch_warnings():
    # Tasks of the project name their queue, which Celery is to do otherwise one day.
    warnings.simplefilter("ignore")
    PLAIN.finalize()
# Those of modules that are imported later are none of its own.
_state._deregister_app(PLAIN)


@contextmanager
def as_a_worker() -> Iterator[None]:
    """Makes plain Celery run canvases in place as a worker of its own would. In place, it differs:

    * A chain of which a step fails raises that where it is called, and takes the group that it is in along
      (`_chain.apply`). A worker fails that chain alone.
    * A chord of which a member fails calls no errbacks of its body (`_chord.apply`). A worker does, and fails the body
      with a ChordError (`Backend.chord_error_from_stack`), or the tasks of a group that is a body with the error of
      the member (`Backend._handle_group_chord_error`).
    * A chain that follows a task together with others fails, as its steps wait for one another, and tasks may not wait
      (`Task.apply_async` denies that, and only `_chain.apply_async` allows it again).
    * A group of one in a chain stays a group (`_chain.prepare_steps` makes one task of it).
    * A chain in a chain calls its own links (`_chain.prepare_steps` takes its steps alone).
    * A chain that is a group and nothing else gives its members what it is called with (`group.from_dict`, by which a
      worker's chain copies it, forgets that).
    """

    def chain_in_place(canvas: Any, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        canvas = canvas.clone()
        for task in canvas.tasks:
            if task["subtask_type"] == "chain":
                task["options"].pop("link", None)
        canvas.tasks = [maybe_unroll_group(task) if isinstance(task, group) else task for task in canvas.tasks]
        try:
            with allow_join_result():
                return apply_chain(canvas, () if isinstance(canvas.tasks[0], group) else args, kwargs, **options)
        except Exception as error:  # noqa: BLE001 - whatever a step has raised
            return EagerResult("chain", error, "FAILURE")

    def chord_in_place(canvas: Any, *args: Any, body: Any = None, **options: Any) -> Any:
        try:
            with allow_join_result():
                return apply_chord(canvas, *args, body=body, **options)
        except Exception as error:  # noqa: BLE001 - whatever a member has raised
            never_run(canvas.body if body is None else body, error)
            failed = ChordError(str(error))
            failed.__cause__ = error
            return EagerResult("chord", failed, "FAILURE")

    before = _state._tls.current_app
    apply_chain, apply_chord = _chain.apply, _chord.apply
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # Of chords with errbacks, that they will be called otherwise one day.
        warnings.simplefilter("ignore", CPendingDeprecationWarning)
        patch.setattr(_chain, "apply", chain_in_place)
        patch.setattr(_chord, "apply", chord_in_place)
        PLAIN.set_current()
        try:
            yield
        finally:
            _state._set_current_app(before)


def never_run(signature: Any, cause: Exception) -> None:
    """Calls the errbacks of those tasks that get no results to begin with, and of what waits for those in turn."""
    held, bodies = first_tasks(signature)
    error = cause if len(held) > 1 else ChordError()
    for task in held:
        for errback in task.options.get("link_error", []):
            if errback["task"] == f"{_PREFIX}told":
                maybe_signature(errback, app=PLAIN).apply(("x" * 36,))
            else:
                maybe_signature(errback, app=PLAIN)(None, error, None)
    for body in bodies:
        never_run(body, error)


def first_tasks(signature: Any) -> tuple[list[Any], list[Any]]:
    """The tasks that begin a canvas, and the bodies that wait for them."""
    if signature["subtask_type"] == "chain":
        return first_tasks(signature.tasks[0])
    if signature["subtask_type"] not in ("group", "chord"):
        return [signature], []
    tasks, bodies = [], [signature.body] if signature["subtask_type"] == "chord" else []
    for one in signature.tasks:
        of_one = first_tasks(one)
        tasks += of_one[0]
        bodies += of_one[1]
    return tasks, bodies


# -- Both --------------------------------------------------------------------------------------------------------------
class Came(NamedTuple):
    """What has come of a canvas."""

    ran: Counter[str]
    results: list[Any]


def outcome(result: Any) -> Any:
    try:
        return json.loads(json.dumps(result.get(timeout=1)))
    except Exception as error:  # noqa: BLE001 - it is the outcome
        return tuple(_in_words(error))


def _in_words(error: BaseException | None) -> Iterator[tuple[str, str]]:
    """An error, and those that it is said to come of."""
    while error is not None:
        yield type(error).__name__, str(error)
        error = error.__cause__


def what_ran() -> Counter[str]:
    ran = Counter(json.dumps(one) for one in RAN)
    RAN.clear()
    return ran


def in_plain_celery(canvas: Canvas, args: tuple[Any, ...], times: int) -> Came:
    RAN.clear()
    with as_a_worker():
        signature = made(PLAIN, canvas)
        results = [as_called(signature.apply_async(args)) for _ in range(times)]
        return Came(what_ran(), [outcome(result) for result in results])


def as_called(result: Any) -> Any:
    """The result of a call. That of a group of one that ends in a group is the result of that group, where a worker
    runs it (`group.apply_async`); in place, it is not (`group.apply`)."""
    if isinstance(result, GroupResult) and len(result) == 1 and isinstance(result[0], GroupResult):
        return result[0]
    return result


def in_the_ledger(canvas: Canvas, args: tuple[Any, ...], times: int) -> Came:
    RAN.clear()
    signature = made(current_app._get_current_object(), canvas)
    results = [signature.apply_async(args) for _ in range(times)]
    run_due_jobs(at_most=1000)
    assert not Job.objects.filter(state__in=LIVE).exists()
    return Came(what_ran(), [outcome(result) for result in results])


def is_as(found: Any, expected: Any) -> bool:
    """Whether an outcome is as expected. Of a chord that fails, `get()` raises the error of its member, or that of the
    chord, which names the member by its id before that."""
    if not (isinstance(found, tuple) and isinstance(expected, tuple)):
        return bool(found == expected)
    kind, text = found[0]
    same = (
        one == kind and (words == text or (kind == "ChordError" and text.endswith(words))) for one, words in expected
    )
    return any(same)


LINKED_TWICE = Many("chain", (One("become_a_task", links=(One("gather"),)),), links=(One("gather"),))
LINKED_TWICE_AS_A_GROUP = Many("chain", (One("become_a_group", links=(One("gather"),)),), links=(One("gather"),))
TWO_GROUPS_OF_ONE = Same("group", Many("chain", (Many("group", (One("gather", is_immutable=True),)),)))
LINKED_INSIDE = Many("chain", (Many("chain", (One("gather"),), links=(One("gather"),)),))
ENDS_IN_A_GROUP = Many("group", (Many("chain", (One("gather"), Many("group", (One("gather"), One("gather"))))),))
FAILS_LATER = One("become_a_chain_that_fails", errbacks=("told", "see"))
FAILS_BEFORE_A_GROUP = Many(
    "chord", (One("gather"), One("fail"), Many("group", (One("gather", errbacks=("see",)), One("gather"))))
)


# Parts of the long run, so that several processes share it.
@pytest.mark.parametrize("part", [1, *map(variant, (2, 3, 4))])
@given(canvas=canvases, args=st.sampled_from([(), (), (9,)]), times=st.integers(1, 2))
@example(canvas=FAILS_LATER, args=(), times=1)
@example(canvas=LINKED_TWICE, args=(), times=1)
@example(canvas=LINKED_TWICE_AS_A_GROUP, args=(), times=1)
@example(canvas=TWO_GROUPS_OF_ONE, args=(), times=1)
@example(canvas=LINKED_INSIDE, args=(), times=1)
@example(canvas=ENDS_IN_A_GROUP, args=(), times=1)
@example(canvas=FAILS_BEFORE_A_GROUP, args=(), times=1)
@settings(
    # Each runs some ten jobs.
    max_examples=examples(share=0.1),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@pytest.mark.timeout(2400)
def test_what_runs_of_a_canvas_and_comes_of_it_is_what_celery_says(
    part: int, canvas: Canvas, args: tuple[Any, ...], times: int
) -> None:
    if is_frozen_twice(canvas):
        return
    if has_frozen(canvas):
        # An id is one job, however often it is sent.
        times = 1
    with transaction.atomic():
        expected = in_plain_celery(canvas, args, times)
        found = in_the_ledger(canvas, args, times)
        transaction.set_rollback(True)
    assert found.ran == expected.ran
    assert all(map(is_as, found.results, expected.results)), (found.results, expected.results)
    event("it fails" if any(isinstance(one, tuple) for one in found.results) else "it has a result")
