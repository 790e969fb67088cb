"""Sources and their events."""

from typing import Any

from django import forms
from django.conf import settings
from django.contrib import admin
from django.http import HttpRequest
from django.utils.safestring import SafeString
from unfold.decorators import display
from unfold.paginator import InfinitePaginator
from unfold.widgets import UnfoldAdminTextInputWidget

from jobs import rendering
from jobs.admin.lists import ListAdmin
from jobs.admin.read_only import ReadOnlyAdmin
from webhooks import receiving, sealing
from webhooks.admin.links import job_link
from webhooks.models import IncomingEvent, Source

_COLOURS = {"handled": "success", "ignored": "", "pending": "info"}


class SourceForm(forms.ModelForm):  # type: ignore[type-arg]
    """A source, with its secret typed in and never shown again."""

    secret = forms.CharField(
        required=False,
        strip=True,
        widget=UnfoldAdminTextInputWidget(attrs={"autocomplete": "off"}),
        help_text="whsec_… as the source shows it. It is kept encrypted and never shown. Empty: it stays as it is.",
    )

    class Meta:
        model = Source
        fields = ("name", "is_active")

    def clean_secret(self) -> str:
        """A secret of Standard Webhooks; a new source needs one."""
        secret: str = self.cleaned_data["secret"]
        if not secret:
            if not self.instance.sealed_secret:
                raise forms.ValidationError("A new source needs its secret.")
            return secret
        try:
            sealing.check(secret)
        except sealing.NoSecret as error:
            raise forms.ValidationError(str(error)) from error
        return secret


@admin.register(Source)
class SourceAdmin(ListAdmin):
    """Systems that send events to us. One that has sent any can be switched off, not deleted."""

    form = SourceForm
    list_display = ("name", "address", "is_active", "created_at")
    list_filter = ("is_active",)
    search_fields = ("name",)
    fields = ("name", "address", "is_active", "secret")
    readonly_fields = ("address",)

    def save_model(self, request: HttpRequest, obj: Source, form: Any, change: bool) -> None:
        """Keeps the secret that was typed in, if one was."""
        if secret := form.cleaned_data["secret"]:
            receiving.set_secret(source=obj, secret=secret)
        super().save_model(request, obj, form, change)

    @display(description="address")
    def address(self, source: Source) -> str:
        """Where the source posts its events to."""
        return f"{settings.SITE_URL}/webhooks/in/{source.name}" if source.name else "–"


@admin.register(IncomingEvent)
class IncomingEventAdmin(ReadOnlyAdmin):
    """Events as they came in. To handle one again, run its job again."""

    list_display = ("type", "event_id", "source", "outcome_label", "note", "received", "job")
    list_filter = ("outcome", "source", ("received_at", admin.DateFieldListFilter))
    list_per_page = 50
    list_select_related = ("source",)
    ordering = ("-received_at",)
    search_fields = ("event_id", "type", "note")
    show_full_result_count = False
    # Counting the rows that match costs more than showing a page of them.
    paginator = InfinitePaginator
    show_facets = admin.ShowFacets.NEVER
    fields = readonly_fields = (
        "source",
        "event_id",
        "type",
        "outcome_label",
        "note",
        "job",
        "received_at",
        "handled_at",
        "body_text",
    )

    @display(description="outcome", ordering="outcome")
    def outcome_label(self, event: IncomingEvent) -> SafeString:
        """What became of it."""
        return rendering.badge(event.outcome, _COLOURS)

    @display(description="received", ordering="received_at")
    def received(self, event: IncomingEvent) -> SafeString | str:
        """When it came in."""
        return rendering.recent(event.received_at)

    @display(description="job")
    def job(self, event: IncomingEvent) -> SafeString | str:
        """The job that handles it."""
        return job_link(event.job_id)

    @display(description="body")
    def body_text(self, event: IncomingEvent) -> SafeString:
        """The JSON as it was signed."""
        return rendering.preformatted(event.body)
