"""The limits that a call and its task put on one job, checked before anything is written.

Each job keeps its own: where two jobs with one key disagree about its limit, each starts only when its own is held, by
all starts or running jobs of the key.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jobs.bounds import LONGEST_KEY_CHARACTERS
from jobs.limits import COLUMNS, lane_of
from jobs.options import is_text
from jobs.quiet_hours import QuietHours
from jobs.rates import InvalidLimit, Rate

if TYPE_CHECKING:
    from jobs.models import Job
    from jobs.task import JobTask

_MOST_AT_ONCE = 10_000


def taken_from(
    options: dict[str, Any], task: "JobTask", args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Takes a job's limits out of a call's options, adds what its task declares; returns the columns that keep them.

    What a task declares as a key may name arguments, as in "tenant:{tenant_id}". A limit without a key holds for all
    jobs of the task. Raises InvalidLimit for what means nothing.
    """
    called = {name: options.pop(name, None) for name in COLUMNS}
    own: dict[str, Any] = {name: getattr(task, name) or None for name in COLUMNS}
    for name in ("rate_key", "concurrency_key"):
        if called[name] is None and own[name] is not None:
            own[name] = _filled_in(task, own[name], args, kwargs)
    own.update({name: value for name, value in called.items() if value is not None})
    try:
        return _checked(own, task.name)
    except InvalidLimit as error:
        raise InvalidLimit(f"{task.name}: {error}") from None


def moved(task: "JobTask", job: "Job", args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that keep a job's limits once it has other arguments: a declared key that names them follows."""
    own = {name: getattr(job, name) for name in COLUMNS}
    for name in ("rate_key", "concurrency_key"):
        template = getattr(task, name)
        if template is None:
            continue
        try:
            is_declared = own[name] == _filled_in(task, template, job.args, job.kwargs)
        except (TypeError, InvalidLimit):
            # The arguments are those of an earlier version of the task.
            is_declared = True
        if is_declared:
            own[name] = _filled_in(task, template, args, kwargs)
            _check_key(name, own[name])
    return {**own, "lane": lane_of(own)}


def check_declared(task: "JobTask") -> None:
    """Raises InvalidLimit where a task declares limits that mean nothing, or keys of arguments it does not have."""
    parameters = inspect.signature(task.run).parameters
    taken_from({}, task, (), dict.fromkeys(parameters, "argument"))


def _checked(own: dict[str, Any], task_name: str) -> dict[str, Any]:
    if own["rate_limit"] is not None:
        own["rate_limit"] = str(Rate.parse(own["rate_limit"]))
        own["rate_key"] = own["rate_key"] or f"task:{task_name}"
    if own["concurrency_limit"] is not None:
        own["concurrency_key"] = own["concurrency_key"] or f"task:{task_name}"
    elif own["concurrency_key"] is not None:
        own["concurrency_limit"] = 1
    for name in ("rate_key", "concurrency_key"):
        _check_key(name, own[name])
    _check_count(own["concurrency_limit"])
    if own["quiet_hours"] is not None:
        QuietHours.parse(own["quiet_hours"])
    return {**own, "lane": lane_of(own)}


def _check_key(name: str, key: Any) -> None:
    if key is None:
        return
    if not is_text(key, LONGEST_KEY_CHARACTERS):
        raise InvalidLimit(f"{name}={key!r}: expected a text of 1 to {LONGEST_KEY_CHARACTERS} characters.")


def _check_count(limit: Any) -> None:
    if limit is None:
        return
    if not isinstance(limit, int) or isinstance(limit, bool) or not 0 < limit <= _MOST_AT_ONCE:
        raise InvalidLimit(f"concurrency_limit={limit!r}: expected a whole number from 1 to {_MOST_AT_ONCE:,}.")


def _filled_in(task: "JobTask", template: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """A declared key with the call's arguments in the places of their names."""
    if not isinstance(template, str) or "{" not in template:
        return template
    bound = inspect.signature(task.run).bind_partial(*args, **kwargs)
    bound.apply_defaults()
    try:
        return template.format(**bound.arguments)
    except (LookupError, AttributeError, ValueError) as error:
        raise InvalidLimit(
            f"{task.name}: the key {template!r} cannot be made of the arguments ({type(error).__name__}: {error})."
        ) from None
