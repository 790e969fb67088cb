"""The pages of the probes: `/livez`, `/readyz` and `/health`.

They need no login: they tell counts and which server is away, and nothing about any job or person. `/livez` is for
whoever restarts a process, `/readyz` for the load balancer, `/health` for the monitor that wakes somebody up: a long
queue is no reason to restart the web. `ALLOWED_HOSTS` holds for them too: add the name or address that the probe sends
as its Host, or let the probe send the site's own (in Kubernetes by `httpHeaders`). They change nothing, so a wrong
method is told as one, and not as a forged request.
"""

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_safe

from jobs import health


@csrf_exempt
@never_cache
@require_safe
def show_health(request: HttpRequest) -> JsonResponse:
    """200 when all is well, 503 with the reasons when something is not. See `jobs.health`."""
    found = health.check()
    return JsonResponse(found.as_json(), status=200 if found.is_ok else 503)


@csrf_exempt
@never_cache
@require_safe
def show_alive(request: HttpRequest) -> HttpResponse:
    """200 as long as this process answers at all; asks no other server."""
    return HttpResponse("alive\n", content_type="text/plain")


@csrf_exempt
@never_cache
@require_safe
def show_ready(request: HttpRequest) -> HttpResponse:
    """200 when the database can be reached and has the tables of this version, else 503 with the reason."""
    reason = health.why_not_ready()
    return HttpResponse(f"{reason or 'ready'}\n", content_type="text/plain", status=503 if reason else 200)
