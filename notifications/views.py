"""The unsubscribe page."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_http_methods

from notifications import services
from notifications.unsubscribe import BadUnsubscribeLink, user_id_of


# The signed link is the permission, and no cookie is read: mail providers press the button by a bare POST (RFC 8058).
@csrf_exempt
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def unsubscribe(request: HttpRequest, token: str) -> HttpResponse:
    """GET shows a button and changes nothing, because mail scanners follow links; POST unsubscribes."""
    try:
        if request.method == "POST":
            services.unsubscribe(token=token)
            return render(request, "notifications/unsubscribe.html", {"step": "done"})
        user_id_of(token=token)
    except BadUnsubscribeLink:
        return render(request, "notifications/unsubscribe.html", {"step": "bad link"}, status=404)
    return render(request, "notifications/unsubscribe.html", {"step": "ask"})
