"""The operators' own limits of a queue, over the declared ones. Pausing has its buttons on the dashboard."""

from collections.abc import Callable
from typing import Any, cast

from django import forms
from django.contrib import admin
from django.contrib.auth.models import AbstractBaseUser
from django.http import HttpRequest
from django.utils.safestring import SafeString
from unfold.decorators import display
from unfold.widgets import UnfoldAdminSelectWidget

from jobs import audit, rendering
from jobs.admin.audit import AuditHistory
from jobs.limits import in_force
from jobs.models import QueueControl
from jobs.queues import NO_LIMIT, QUEUES
from jobs.quiet_hours import QuietHours
from jobs.rates import InvalidLimit, Rate


class QueueLimitsForm(forms.ModelForm):  # type: ignore[type-arg]  # generic in the stubs alone
    """Limits and thresholds of a declared queue, and how many ended jobs are kept; what is empty stays as declared."""

    class Meta:
        model = QueueControl
        fields = ("name", *QueueControl.OVERRIDES)
        labels = {
            "name": "Queue",
            "rate_limit": "Starts per time",
            "concurrency_limit": "Running at once",
            "quiet_hours": "Quiet hours",
            "waiting_threshold_count": "Waiting jobs",
            "failed_threshold_count": "Failures in an hour",
            "oldest_threshold_seconds": "Seconds of waiting",
            "keep_completed_count": "Completed jobs kept",
            "keep_failed_count": "Failed jobs kept",
        }
        help_texts = {
            "rate_limit": 'Over all workers, as in 10/s, 100/m or 1000/h. "none" lifts a limit. Empty: as declared',
            "concurrency_limit": "Over all workers. 0 lifts a limit. Empty: as declared",
            "quiet_hours": 'Nothing starts then, as in 22:00-07:00 Europe/Berlin. "none" for none. Empty: as declared',
            "waiting_threshold_count": "From this many on, /health is degraded. Empty: as declared in jobs/queues.py",
            "failed_threshold_count": "From this many on, /health is degraded. Empty: as declared in jobs/queues.py",
            "oldest_threshold_seconds": "Of the oldest job; from this many on, /health is degraded. Empty: as declared",
            "keep_completed_count": "And as many cancelled ones. All stay for an hour. Empty: as declared",
            "keep_failed_count": "All stay for an hour. Empty: as declared",
        }

    def clean_rate_limit(self) -> str | None:
        """As it is written everywhere else."""
        written: str | None = self.cleaned_data["rate_limit"]
        return str(_checked(Rate.parse, written)) if written not in (None, NO_LIMIT) else written

    def clean_quiet_hours(self) -> str | None:
        """Refuses what is no time of day, or no zone."""
        written: str | None = self.cleaned_data["quiet_hours"]
        if written not in (None, NO_LIMIT):
            _checked(QuietHours.parse, written)
        return written


@admin.register(QueueControl)
class QueueLimitsAdmin(AuditHistory):
    """Limits per queue. Rows appear when a queue is paused or gets limits for the first time."""

    form = QueueLimitsForm
    list_display = ("name", "limits", "waiting", "failed", "kept_completed", "kept_failed", "paused")
    ordering = ("name",)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        """A row keeps its queue."""
        return ("name",) if obj is not None else ()

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        """Offers the declared queues."""
        if db_field.name == "name":
            widget = UnfoldAdminSelectWidget(choices=[(name, name) for name in QUEUES])
            return forms.ChoiceField(choices=[(name, name) for name in QUEUES], widget=widget, label="Queue")
        return super().formfield_for_dbfield(db_field, request, **kwargs)

    def save_model(self, request: HttpRequest, obj: QueueControl, form: Any, change: bool) -> None:
        """Records what was set, in the transaction of the form. Nothing else is written: a job may have been told to
        wait since the form was opened."""
        if change:
            obj.save(update_fields=form.changed_data)
        else:
            super().save_model(request, obj, form, change)
        if form.changed_data:
            details = {
                "before": {name: form.initial.get(name) for name in form.changed_data},
                "after": {name: form.cleaned_data[name] for name in form.changed_data},
            }
            actor = cast(AbstractBaseUser, request.user)
            audit.record(actor=actor, thing=obj, what="Limits changed.", details=details)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody: with the row of a paused queue its pause would go, unrecorded. Empty the limits instead."""
        return False

    @display(description="limits")
    def limits(self, control: QueueControl) -> str:
        """Those that are in force."""
        return in_force(control.name, control).limits or "–"

    @display(description="waiting jobs")
    def waiting(self, control: QueueControl) -> str:
        """The threshold in force."""
        return _in_force(control, "waiting_threshold_count")

    @display(description="failures in an hour")
    def failed(self, control: QueueControl) -> str:
        """The threshold in force."""
        return _in_force(control, "failed_threshold_count")

    @display(description="completed jobs kept")
    def kept_completed(self, control: QueueControl) -> str:
        """How many of the last ones stay."""
        return _in_force(control, "keep_completed_count")

    @display(description="failed jobs kept")
    def kept_failed(self, control: QueueControl) -> str:
        """How many of the last ones stay."""
        return _in_force(control, "keep_failed_count")

    @display(description="paused")
    def paused(self, control: QueueControl) -> SafeString | str:
        """Since when."""
        return rendering.recent(control.paused_at)


def _checked(parse: Callable[[str], object], written: str | None) -> object:
    try:
        return parse(written or "")
    except InvalidLimit as error:
        raise forms.ValidationError(str(error)) from error


def _in_force(control: QueueControl, field: str) -> str:
    own = getattr(control, field)
    if own is not None:
        return str(own)
    return f"{getattr(QUEUES[control.name], field)} (declared)" if control.name in QUEUES else "–"
