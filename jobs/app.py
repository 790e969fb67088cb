"""The Celery application whose tasks are rows of the ledger."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import django
from celery import Celery
from celery.result import AsyncResult
from celery.utils.collections import ChainMap
from django.apps import apps

from jobs import defaults
from jobs.worker.monitoring import BunchEvents
from jobs.worker.step import LedgerStep
from jobs.worker.taken import KeepTaken


class UnknownTask(LookupError):
    """A job was sent to a task that is not registered in this project."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(f"There is no task {name!r}. Known here: {', '.join(known) or 'none'}.")


class LedgerCelery(Celery):
    """Celery, but a task that is sent becomes a row first, in the caller's transaction, and a message after it."""

    task_cls = "jobs.task:JobTask"
    control_cls = "jobs.control:LedgerControl"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steps["worker"].add(LedgerStep)
        self.steps["consumer"].update([BunchEvents, KeepTaken])

    def prepare_config(self, c: Any) -> Any:
        """The project's settings, and below them what the ledger needs of Celery."""
        return ChainMap(super().prepare_config(c), defaults.celery())

    def send_task(
        self,
        name: str,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> AsyncResult:
        """Enqueues a task by name. `delay`, signatures, groups, beat and retries all come through here.

        Raises UnknownTask for a name that nobody registered. A task with a foreign base class stays plain Celery.
        """
        if not apps.models_ready:
            # `celery call` comes here without either; workers, beat and Django's own processes have both.
            django.setup()
            self.loader.import_default_modules()
        from jobs import enqueue  # models can only be imported once Django is set up
        from jobs.task import JobTask

        task = self.tasks.get(name)
        if task is None:
            raise UnknownTask(name, sorted(known for known in self.tasks if not known.startswith("celery.")))
        if not isinstance(task, JobTask):
            options.pop("follows", None)
            return super().send_task(name, args, kwargs, **options)
        return enqueue.enqueue(self, task, tuple(args or ()), dict(kwargs or {}), options)

    @cached_property
    def AsyncResult(self) -> Any:  # noqa: N802 - Celery's name
        """Celery's results of single jobs, except that many are read together."""
        return self.subclass_with_self("jobs.results:JobResult", name="AsyncResult", reverse="AsyncResult")
