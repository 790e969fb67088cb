"""What is to follow a call, checked together with it: every step as if it were called at this moment.

Once its turn has come, nobody is there any more who could be told what is wrong with it.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from jobs.dedup import Dedup
from jobs.ids import parse_id
from jobs.options import InvalidOption, check, shown

if TYPE_CHECKING:
    from celery import Celery

# What Celery writes into the options of the members of a group or a chord, and what is asked when the step follows.
_NOT_ASKED = ("chord", "group_id", "group_index", "flow_slot", "owner_id", "reply_to")
_LINKS = ("link", "chain", "link_error")
_CANVASES = ("group", "chain", "chord")

Make = Callable[..., Any]


class Steps:
    """Checks what follows one call. `make` makes an unsaved job of a call, or raises what is wrong with it."""

    def __init__(self, app: "Celery", task: str, own_id: Any, make: Make) -> None:
        self._app, self._task, self._make = app, task, make
        self._ids = {own_id}

    def check(self, follow_ups: Mapping[str, Any]) -> None:
        """Checks `link`, `chain` and `link_error`. Raises what calling the first step that is wrong would raise, and
        InvalidOption for something that is no step, or for an id that two of them have."""
        for name in _LINKS:
            self._check_all(follow_ups.get(name, []), is_errback=name == "link_error")

    def _check_all(self, steps: Iterable[Any], *, is_errback: bool) -> None:
        for step in steps:
            if not isinstance(step, Mapping) or not isinstance(step.get("task"), str):
                raise InvalidOption(f"{self._task}: {shown(step)} cannot follow: expected a signature of a task.")
            options, kwargs = step.get("options") or {}, step.get("kwargs") or {}
            if step.get("subtask_type") in _CANVASES:
                check(step["task"], options)
                self._check_links(options)
                for name in ("tasks", "header", "body"):
                    self._check_all(_listed(kwargs.get(name)), is_errback=is_errback)
            else:
                self._check_one(step, dict(options), is_errback=is_errback)

    def _check_links(self, options: Mapping[str, Any]) -> None:
        for name in _LINKS:
            self._check_all(_listed(options.get(name)), is_errback=name == "link_error")

    def _check_one(self, step: Mapping[str, Any], options: dict[str, Any], *, is_errback: bool) -> None:
        from jobs.app import UnknownTask

        name = step["task"]
        task = self._app.tasks.get(name)
        if task is None:
            raise UnknownTask(name, sorted(known for known in self._app.tasks if not known.startswith("celery.")))
        check(name, options)
        self._check_links(options)
        if options.get("task_id") is not None and not is_errback:
            self._take(name, options["task_id"])
        if not hasattr(task, "run_claimed") or is_errback:
            # A message of Celery's own; and an errback is called with what Celery's rule for it says.
            return
        if "rest_of" in options:
            raise TypeError(f"{name}: unknown options rest_of.")
        called = {key: value for key, value in options.items() if key not in (*_NOT_ASKED, *_LINKS)}
        Dedup.taken_from(called)
        args = tuple(step.get("args") or ())
        if not step.get("immutable"):
            # In the place of the result.
            args = (None, *args)
        self._make(self._app, task, args, dict(step.get("kwargs") or {}), {**called, "follows": True})

    def _take(self, name: str, task_id: Any) -> None:
        own_id = parse_id(task_id)
        if own_id in self._ids:
            raise InvalidOption(f"{name}: task_id={shown(task_id)} is another step's of the same call already.")
        self._ids.add(own_id)


def _listed(steps: Any) -> list[Any]:
    if not steps:
        return []
    return [steps] if isinstance(steps, Mapping) else list(steps)
