"""The dashboard: a table of all queues, refreshed while somebody looks at it, with pause and resume."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_POST, require_safe
from django_htmx.middleware import HtmxDetails

from jobs import health, services
from jobs.queues import UnknownQueue


class HtmxRequest(HttpRequest):
    """A request after django-htmx's middleware."""

    htmx: HtmxDetails


def for_staff(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Sends others to the login; but the login page must not end up inside a page that refreshes a part of itself."""
    checked = admin.site.admin_view(view)

    @wraps(view)
    def guarded(request: HtmxRequest, **kwargs: Any) -> HttpResponse:
        if request.htmx and not admin.site.has_permission(request):
            return HttpResponse("Log in to the admin first.\n", content_type="text/plain", status=403)
        return checked(request, **kwargs)

    return guarded


@for_staff
@require_safe
def queues_page(request: HtmxRequest) -> HttpResponse:
    """The whole page, or only its table when the page asks for news of itself."""
    context = {
        "health": health.check(),
        "now": timezone.now(),
        "may_pause": request.user.has_perm("jobs.change_queuecontrol"),
    }
    if request.htmx:
        return TemplateResponse(request, "jobs/admin/queues_table.html", context)
    page = {**admin.site.each_context(request), "title": "Queues", **context}
    return TemplateResponse(request, "jobs/admin/queues.html", page)


@for_staff
@require_POST
def pause_queue(request: HttpRequest, queue: str) -> HttpResponse:
    """The button "Pause"."""
    return _set_paused(request, queue, services.pause_queue, "is paused: running jobs end, no new one starts")


@for_staff
@require_POST
def resume_queue(request: HttpRequest, queue: str) -> HttpResponse:
    """The button "Resume"."""
    return _set_paused(request, queue, services.resume_queue, "runs again")


def _set_paused(request: HttpRequest, queue: str, action: Any, done: str) -> HttpResponse:
    if not request.user.has_perm("jobs.change_queuecontrol"):
        raise PermissionDenied
    try:
        changed = action(queue=queue, actor=request.user)
    except UnknownQueue as error:
        raise Http404(str(error)) from error
    if changed:
        messages.success(request, f"Queue {queue} {done}.")
    else:
        messages.info(request, f"Queue {queue}: nothing to change, somebody was faster.")
    return HttpResponseRedirect(reverse("queues"))
