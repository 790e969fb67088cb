"""Celery's canvas on the ledger: where a signature's job stands in a flow, and chords that are enqueued as one piece.

Celery takes a canvas apart and sends its tasks one by one, each with the ids of the group that it is a member of. Of
that the ledger keeps the place: a slot of a flow is always held by exactly one job. A chain that is a member begins
with its first step in the slot; each step hands the slot on to the next, in the transaction that ends it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, NamedTuple
from uuid import UUID

from celery.canvas import Signature, _chain, _chord, chunks, group, maybe_signature
from django.db import router, transaction

from jobs.callers import refuse_unsafe
from jobs.ids import InvalidJobId, derived_id, parse_id
from jobs.models import Job
from jobs.options import InvalidOption, NotSupported
from jobs.together import together

# Stands among the arguments of a job that is held, for the results of the flow that it waits for.
_RESULTS = "__results_of_flow__"
# The place of a part that was added later.
_AFTER_ALL = 2**31 - 1
# How Celery is to ask whether the parts of a chord have ended.
_OF_POLLING = ("interval", "max_retries")


class Place(NamedTuple):
    """The slot of a flow that a job holds. Paths are in the order of the results."""

    flow_id: UUID
    path: list[int]


@dataclass(slots=True, kw_only=True)
class FanOut:
    """What is to become of a job whose body has asked for it: it is held until `children` have ended, then goes on as
    `then`; without that, it ends as its only child did."""

    children: Iterable[Any]
    then: Signature | None = None
    on_failure: str = "fail"
    is_begun: bool = False

    @property
    def is_used_up(self) -> bool:
        """Whether nobody can read the children from the first on any more: a generator that was begun."""
        return self.is_begun and iter(self.children) is self.children


def flow_id_of(group_id: object) -> UUID:
    """The flow that a group's id stands for."""
    try:
        return parse_id(group_id)
    except InvalidJobId:
        return derived_id("flow", group_id)


def take_place(options: dict[str, Any]) -> Place | None:
    """Takes what says where a job stands out of its options; None for a job that belongs to no flow."""
    handed_on = options.pop("flow_slot", None)
    own = {name: options.pop(name, None) for name in ("chord", "group_index")}
    own["group_id"] = options.get("group_id")
    if options.get("rest_of") is not None:
        # A chain that ends in a chord is never left in the row.
        return None
    chain = options.get("chain")
    # Of a chain, the last step is what the flow waits for; `chain` is in reverse.
    last = _last_options(chain[0]) if chain else own
    if not last.get("chord"):
        return None
    flow_id, index = flow_id_of(last["group_id"]), last.get("group_index")
    if index is None:
        # Added by a part that runs, by `add_to_chord`.
        index = _AFTER_ALL
    if handed_on is None or handed_on["flow_id"] != str(flow_id):
        return Place(flow_id, [index])
    return Place(flow_id, handed_on["path"] if handed_on["is_whole"] else [*handed_on["path"], index])


def hand_on(place: Place, step: Mapping[str, Any]) -> dict[str, Any]:
    """The option that gives a job's slot to the next step of its chain; the members of a group share it in order."""
    is_whole = step.get("subtask_type") not in ("group", "chord", "chain")
    return {"flow_slot": {"flow_id": str(place.flow_id), "path": place.path, "is_whole": is_whole}}


def held_argument(*, only: bool = False) -> dict[str, Any]:
    """The argument that becomes a flow's list of results or, with `only`, the result of its only member."""
    return {_RESULTS: "only" if only else "all"}


def is_held_argument(value: object) -> bool:
    """Whether an argument still waits for results."""
    return isinstance(value, dict) and value.keys() == {_RESULTS}


def is_in_place_of_one(args: Any) -> bool:
    """Whether a held job ends as the only member of its flow does."""
    return bool(args) and isinstance(args, list) and args[0] == held_argument(only=True)


def with_results(args: list[Any], results: list[Any]) -> list[Any]:
    """A held job's arguments, with the results in their place."""
    if not args or not is_held_argument(args[0]):
        return args
    return [results[0] if args[0][_RESULTS] == "only" else results, *args[1:]]


def _last_options(step: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options of what a step of a chain ends with."""
    if step.get("subtask_type") == "chord":
        return _last_options(step["kwargs"]["body"])
    if step.get("subtask_type") == "chain":
        return _last_options(step["kwargs"]["tasks"][-1])
    options: Mapping[str, Any] = step.get("options") or {}
    return options


def _unchunked(signature: Any) -> Any:
    """The group that chunks stand for; a copy of them is a plain signature, known by its name alone."""
    if signature["task"] != "celery.chunks":
        return signature
    of = signature["kwargs"]
    return chunks(of["task"], of["it"], of["n"]).group()


def as_one(signature: Any, app: Any) -> Any:
    """The signature as something that ends with one job: a group, also at the end of a chain or as the body of a chord,
    gets one that makes a list of its results."""
    signature = _unchunked(signature)
    if isinstance(signature, _chain) and signature.tasks:
        last = as_one(maybe_signature(signature.tasks[-1], app=app), app)
        return _chain(*signature.tasks[:-1], last, app=app, **signature.options)
    if isinstance(signature, group):
        return signature | app.tasks["celery.accumulate"].s(index=0)
    if isinstance(signature, _chord) and isinstance(signature.body, (_chord, _chain, group)):
        chord = signature.clone()
        chord.body = as_one(signature.body, app)
        return chord
    return signature


def as_member(signature: Any, app: Any, membership: Mapping[str, Any]) -> Any:
    """A copy of the signature that ends with one job. Only that last job is marked as the member.

    Where a call of a chord says it, Celery makes the last step of a chain that is its body a member of its header.
    """
    member = last = as_one(signature, app).clone()
    while isinstance(last, (_chain, _chord)):
        last = last.body if isinstance(last, _chord) else last.tasks[-1]
    last.options.update(membership)
    return member


def _as_step(step: Any, app: Any) -> Any:
    """A step of a chain that others come after: once for a chord whose body is a group, as for a group itself."""
    step = _unchunked(step)
    if step.get("subtask_type") == "chord":
        return as_one(maybe_signature(step, app=app), app)
    return step


def _in_one_piece(
    apply: Callable[..., Any], *, first: Callable[[Any], None], without: Iterable[str] = ()
) -> Callable[..., Any]:
    @wraps(apply)
    def apply_in_one_piece(canvas: Any, *args: Any, **kwargs: Any) -> Any:
        for name in without:
            kwargs.pop(name, None)
            canvas.options.pop(name, None)
        if canvas.app.conf.task_always_eager:
            return apply(canvas, *args, **kwargs)
        first(canvas)
        using = router.db_for_write(Job)
        refuse_unsafe(canvas.task, ledger=using)
        with transaction.atomic(using=using), together(using):
            return apply(canvas, *args, **kwargs)

    return apply_in_one_piece


def _flat(tasks: Iterable[Any]) -> Iterator[Any]:
    """The tasks of a group with those of groups inside in their places: Celery itself turns their order around."""
    for task in tasks:
        signature = _unchunked(maybe_signature(task))
        if isinstance(signature, group):
            yield from _flat(signature.tasks)
        else:
            yield signature


def _freeze_in_order(freeze: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(freeze)
    def freeze_in_order(canvas: Any, *args: Any, **kwargs: Any) -> Any:
        members = list(_flat(canvas.tasks))
        if kwargs.get("chord") is not None:
            # Each member of a chord has one result, also a chain that ends in a group.
            members = [as_one(member, canvas.app) for member in members]
        canvas.tasks = members
        _refuse_the_same_id_twice(canvas)
        return freeze(canvas, *args, **kwargs)

    return freeze_in_order


def _refuse_the_same_id_twice(canvas: Any) -> None:
    known = set()
    for member in canvas.tasks:
        task_id = (member.get("options") or {}).get("task_id")
        if task_id is not None and task_id in known:
            raise InvalidOption(f"{member['task']}: task_id={task_id!r} is another member's of this group already.")
        known.add(task_id)


def _run_as_often_as_called(run: Callable[..., Any]) -> Callable[..., Any]:
    """Celery notes the id of the last step in the chain that it runs, and would send the same one the next time, or in
    another thread that calls the chain at this moment. It runs a copy instead. An id that the caller has given stays.
    """

    @wraps(run)
    def run_as_often_as_called(canvas: Any, *args: Any, **kwargs: Any) -> Any:
        own = dict.__new__(type(canvas))
        own.update(canvas)
        own.__dict__.update(canvas.__dict__)
        own.options = dict(canvas.options)
        tasks = list(canvas.tasks)
        steps = [*(_as_step(task, canvas.app) for task in tasks[:-1]), *map(_unchunked, tasks[-1:])]
        own.kwargs = {**canvas.kwargs, "tasks": steps}
        return run(own, *args, **kwargs)

    return run_as_often_as_called


def _clone_an_only_member(clone: Callable[..., Any]) -> Callable[..., Any]:
    """A group of one is its member where it is a step of a chain. A copy of the chain that has the member itself gives
    it one id for all copies."""

    @wraps(clone)
    def clone_an_only_member(canvas: Any, *args: Any, **kwargs: Any) -> Any:
        copy = clone(canvas, *args, **kwargs)
        if isinstance(copy.tasks, (list, tuple)) and len(copy.tasks) == 1:
            copy.tasks = [maybe_signature(copy.tasks[0], clone=True)]
        return copy

    return clone_an_only_member


def _end_each_with_one(unroll: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(unroll)
    def end_each_with_one(canvas: Any) -> Any:
        *steps, last = unroll(canvas)
        return [*(_as_step(step, canvas.app) for step in steps), last]

    return end_each_with_one


def _refuse_foreign_tasks(canvas: Any) -> None:
    """What is no job has no end that a flow could see."""
    for name in {task["task"] for task in _plain_tasks([canvas])}:
        task = canvas.app.tasks.get(name)
        if task is not None and not hasattr(task, "run_claimed"):
            raise NotSupported(f"{name} has a base class of its own: its runs are no jobs, so no chord sees them end.")


def _plain_tasks(steps: Iterable[Any]) -> Iterator[Any]:
    """The signatures of single tasks in these, however deep."""
    for step in steps:
        signature = _unchunked(step)
        if signature.get("subtask_type") not in ("group", "chain", "chord"):
            yield signature
            continue
        for name in ("tasks", "header", "body"):
            inside = signature["kwargs"].get(name)
            if inside:
                yield from _plain_tasks([inside] if isinstance(inside, Mapping) else inside)


def mend() -> None:
    """What Celery's canvas has no place of its own for. Called once, when Django is set up.

    The jobs of a group or a chord become one transaction, groups inside of groups keep their order, and chunks are what
    they stand for, a group, wherever they are.
    """
    group.apply_async = _in_one_piece(group.apply_async, first=_refuse_the_same_id_twice)
    _chord.apply_async = _in_one_piece(_chord.apply_async, first=_refuse_foreign_tasks, without=_OF_POLLING)
    group._freeze_group_tasks = _freeze_in_order(group._freeze_group_tasks)
    group.clone = _clone_an_only_member(group.clone)
    _chain.run = _run_as_often_as_called(_chain.run)
    # A chord that goes on after its body, as steps of a chain.
    _chord._unroll_body = _end_each_with_one(_chord._unroll_body)
