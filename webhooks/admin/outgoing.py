"""Endpoints, and what was sent to them."""

from typing import Any
from uuid import UUID

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Count, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils.safestring import SafeString
from django.views.decorators.http import require_POST
from unfold.admin import TabularInline
from unfold.decorators import display
from unfold.paginator import InfinitePaginator
from unfold.widgets import UnfoldAdminCheckboxSelectMultipleWidget

from jobs import rendering
from jobs.admin.lists import ListAdmin
from jobs.admin.read_only import ReadOnlyAdmin
from webhooks import sealing, services
from webhooks.admin.links import job_link
from webhooks.event_types import EVENT_TYPES
from webhooks.models import Delivery, DeliveryAttempt, Endpoint

_COLOURS = {"delivered": "success", "failed": "danger", "pending": "info"}
_MOST_REFUSALS_SHOWN = 5


class EndpointForm(forms.ModelForm):  # type: ignore[type-arg]
    """An endpoint; its events are ticked."""

    event_types = forms.MultipleChoiceField(
        choices=[(name, f"{name} – {meaning}") for name, meaning in EVENT_TYPES.items()],
        widget=UnfoldAdminCheckboxSelectMultipleWidget,
    )

    class Meta:
        model = Endpoint
        fields = ("owner", "url", "event_types", "hears_everybody", "is_active")

    def clean(self) -> dict[str, Any]:
        """Only staff hears of everybody's events."""
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        owner = cleaned.get("owner")
        if cleaned.get("hears_everybody") and owner is not None and not owner.is_staff:
            self.add_error("hears_everybody", "Only an endpoint of staff may hear of everybody's events.")
        return cleaned


@admin.register(Endpoint)
class EndpointAdmin(ListAdmin):
    """Endpoints of all users. The secret is shown once, when the endpoint is made or gets another.

    One that was sent anything to can be switched off here, not deleted: what was sent stays to be read. Its owner may
    delete it over the API.
    """

    form = EndpointForm
    list_display = ("url", "owner", "events", "hears_everybody", "is_active", "created_at")
    list_filter = ("is_active", "hears_everybody")
    list_select_related = ("owner",)
    ordering = ("-created_at",)
    search_fields = ("url", "owner__email")
    autocomplete_fields = ("owner",)
    actions = ("renew_secret",)

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        """A new endpoint belongs to whoever makes it, unless another is chosen."""
        return {"owner": request.user.pk, **super().get_changeform_initial_data(request)}

    def save_model(self, request: HttpRequest, obj: Endpoint, form: Any, change: bool) -> None:
        """Makes the secret of a new endpoint, and shows it this once."""
        secret = None if change else sealing.new_secret()
        if secret:
            obj.sealed_secret = sealing.seal(secret)
        super().save_model(request, obj, form, change)
        if secret:
            self._show(request, obj, secret)

    @admin.action(description="New secret", permissions=["change"])
    def renew_secret(self, request: HttpRequest, queryset: QuerySet[Endpoint]) -> None:
        """Gives the selected endpoints new secrets, and shows them this once."""
        for endpoint in queryset:
            self._show(request, endpoint, services.renew_secret(endpoint=endpoint))

    def _show(self, request: HttpRequest, endpoint: Endpoint, secret: str) -> None:
        words = f"The signing secret of {endpoint.url}, shown this once: {secret}"
        self.message_user(request, words, messages.WARNING)

    @display(description="events")
    def events(self, endpoint: Endpoint) -> str:
        """What it hears of."""
        return ", ".join(endpoint.event_types)


class DeliveryAttemptInline(TabularInline):
    """Every request of a delivery."""

    model = DeliveryAttempt
    verbose_name_plural = "Attempts"
    fields = readonly_fields = ("number", "status", "started", "took", "error", "answer", "job")
    extra = 0
    can_delete = False
    hide_title = True

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody."""
        return False

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Whoever sees the delivery."""
        return True

    @display(description="started")
    def started(self, attempt: DeliveryAttempt) -> SafeString | str:
        """When it was sent."""
        return rendering.recent(attempt.started_at)

    @display(description="took")
    def took(self, attempt: DeliveryAttempt) -> str:
        """Until the answer."""
        return rendering.between(attempt.started_at, attempt.finished_at)

    @display(description="answer")
    def answer(self, attempt: DeliveryAttempt) -> SafeString | str:
        """The beginning of the answer's body."""
        return rendering.preformatted(attempt.response_excerpt) if attempt.response_excerpt else "–"

    @display(description="job")
    def job(self, attempt: DeliveryAttempt) -> SafeString | str:
        """The job whose run it was."""
        return job_link(attempt.job_id)


@admin.register(Delivery)
class DeliveryAdmin(ReadOnlyAdmin):
    """Deliveries. Sending again needs the permission to change deliveries; nothing else can be changed."""

    list_display = ("event_type", "endpoint", "owner", "state_label", "attempt_count", "created", "job")
    list_filter = ("state", "event__type", ("created_at", admin.DateFieldListFilter))
    list_per_page = 50
    list_select_related = ("event", "endpoint__owner")
    ordering = ("-created_at",)
    search_fields = ("endpoint__url", "endpoint__owner__email", "event__subject")
    show_full_result_count = False
    # Counting the rows that match costs more than showing a page of them.
    paginator = InfinitePaginator
    show_facets = admin.ShowFacets.NEVER
    actions = ("resend",)
    inlines = (DeliveryAttemptInline,)
    change_form_outer_before_template = "webhooks/admin/delivery_actions.html"
    fields = readonly_fields = (
        "event_type",
        "message_id",
        "endpoint",
        "owner",
        "state_label",
        "job",
        "created_at",
        "delivered_at",
        "body_text",
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Delivery]:
        """Deliveries with the number of their attempts."""
        found: QuerySet[Delivery] = super().get_queryset(request).annotate(attempt_count=Count("attempts"))
        return found

    def has_resend_permission(self, request: HttpRequest) -> bool:
        """Whether the user may send deliveries again."""
        return request.user.has_perm("webhooks.change_delivery")

    @admin.action(description="Send again", permissions=["resend"])
    def resend(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> None:
        """Sends the selected deliveries again, under the same event ids."""
        sent, refusals = 0, []
        for delivery_id in queryset.values_list("pk", flat=True):
            try:
                services.resend(delivery_id=delivery_id)
                sent += 1
            except services.StillOnItsWay as refusal:
                refusals.append(str(refusal))
        if sent:
            words = "1 delivery is sent again." if sent == 1 else f"{sent} deliveries are sent again."
            self.message_user(request, words, messages.SUCCESS)
        for sentence in refusals[:_MOST_REFUSALS_SHOWN]:
            self.message_user(request, sentence, messages.WARNING)
        if len(refusals) > _MOST_REFUSALS_SHOWN:
            rest = len(refusals) - _MOST_REFUSALS_SHOWN
            self.message_user(request, f"{rest} more are still on their way.", messages.WARNING)

    def get_urls(self) -> list[URLPattern]:
        """The list and the pages, and where the button of a page is posted to."""
        view = self.admin_site.admin_view(require_POST(self.resend_one))
        return [path("<uuid:delivery_id>/resend/", view, name="webhooks_delivery_resend"), *super().get_urls()]

    def resend_one(self, request: HttpRequest, delivery_id: UUID) -> HttpResponse:
        """The button "Send again" of a delivery's page."""
        if not self.has_resend_permission(request):
            raise PermissionDenied
        self.resend(request, Delivery.objects.filter(pk=delivery_id))
        return HttpResponseRedirect(reverse("admin:webhooks_delivery_change", args=[delivery_id]))

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """Tells the page whether this user has the button."""
        context["can_resend"] = self.has_resend_permission(request)
        found: HttpResponse = super().render_change_form(request, context, *args, **kwargs)
        return found

    @display(description="event", ordering="event__type")
    def event_type(self, delivery: Delivery) -> str:
        """What is told."""
        return str(delivery.event)

    @display(description="webhook-id")
    def message_id(self, delivery: Delivery) -> str:
        """The header by which the receiver tells repetitions."""
        return delivery.event.message_id

    @display(description="owner")
    def owner(self, delivery: Delivery) -> str:
        """Whose endpoint it is."""
        return str(delivery.endpoint.owner)

    @display(description="state", ordering="state")
    def state_label(self, delivery: Delivery) -> SafeString:
        """Where it is."""
        return rendering.badge(delivery.state, _COLOURS)

    @display(description="attempts", ordering="attempt_count")
    def attempt_count(self, delivery: Any) -> int:
        """How many requests there were."""
        count: int = delivery.attempt_count
        return count

    @display(description="created", ordering="created_at")
    def created(self, delivery: Delivery) -> SafeString | str:
        """When the event happened."""
        return rendering.recent(delivery.created_at)

    @display(description="job")
    def job(self, delivery: Delivery) -> SafeString | str:
        """The job that sends it."""
        return job_link(delivery.job_id)

    @display(description="body")
    def body_text(self, delivery: Delivery) -> SafeString:
        """The JSON as it is signed."""
        return rendering.preformatted(delivery.event.body)
