"""Filters of the job list whose choices come from the code: asking a large table for its distinct values is slow."""

from typing import Any

from celery import current_app
from django.contrib.admin import ModelAdmin, SimpleListFilter
from django.db.models import QuerySet
from django.http import HttpRequest

from jobs import selectors
from jobs.models import Job
from jobs.queues import QUEUES
from jobs.rendering import PAUSED
from jobs.states import State


class _TextFilter(SimpleListFilter):
    def value(self) -> str | None:
        """What was chosen; nothing where it cannot be in any row."""
        value = super().value()
        return None if value is not None and "\0" in value else value


class StateFilter(_TextFilter):
    """By state, where waiting in a paused queue is a state of its own."""

    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: "ModelAdmin[Any]") -> list[tuple[str, str]]:
        return [(state.value, state.value) for state in State] + [(PAUSED, PAUSED)]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Job]) -> QuerySet[Job]:
        state = self.value()
        if state == PAUSED:
            return queryset.filter(state=State.WAITING.value, queue__in=selectors.paused_queues())
        if state == State.WAITING:
            return queryset.filter(state=State.WAITING.value).exclude(queue__in=selectors.paused_queues())
        return queryset.filter(state=state) if state else queryset


class QueueFilter(_TextFilter):
    """By declared queue."""

    title = "queue"
    parameter_name = "queue"

    def lookups(self, request: HttpRequest, model_admin: "ModelAdmin[Any]") -> list[tuple[str, str]]:
        return [(name, name) for name in QUEUES]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Job]) -> QuerySet[Job]:
        return queryset.filter(queue=self.value()) if self.value() else queryset


class TaskFilter(_TextFilter):
    """By registered task."""

    title = "task"
    parameter_name = "task"

    def lookups(self, request: HttpRequest, model_admin: "ModelAdmin[Any]") -> list[tuple[str, str]]:
        current_app.loader.import_default_modules()
        names = sorted(name for name in current_app.tasks if not name.startswith("celery."))
        return [(name, name) for name in names]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Job]) -> QuerySet[Job]:
        return queryset.filter(task=self.value()) if self.value() else queryset
