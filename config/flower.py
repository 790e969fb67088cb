"""Flower behind the admin's login: each request is checked here, then passed on to Flower's loopback port.

Flower itself knows no users: it gets neither our session cookie nor an Authorization header, and none of its cookies
come back. Logged out of Django is therefore logged out of Flower. Why: docs/adr/0002-flower-behind-the-admin.md
"""

from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from urllib.parse import urlsplit

import httpx
from django.conf import settings
from django.contrib import admin
from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.template.response import TemplateResponse
from django.urls import reverse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_http_methods

TIMEOUT = httpx.Timeout(15, connect=1)
# All that Flower needs of a request and a browser of an answer. Everything else stays behind: cookies, credentials,
# hop-by-hop headers (RFC 9110, section 7.6.1), and the encoding, which httpx has undone.
_REQUEST_HEADERS = (
    "accept",
    "accept-language",
    "content-type",
    "if-modified-since",
    "if-none-match",
    "x-requested-with",
)
_RESPONSE_HEADERS = ("content-type", "etag", "last-modified", "location")


# Flower's forms carry no token of Django's: where the request comes from is checked instead.
@csrf_exempt
@require_http_methods(["GET", "HEAD", "POST"])
def flower(request: HttpRequest, path: str = "") -> HttpResponseBase:
    """One page, asset or call of Flower, for staff only; everybody else is sent to the login or refused."""
    if not admin.site.has_permission(request):
        if _is_page(request):
            return redirect_to_login(request.get_full_path(), reverse("admin:login"))
        return HttpResponse("Log in to the admin first.\n", content_type="text/plain", status=403)
    if request.method == "POST" and not _is_same_origin(request):
        return HttpResponse("This request comes from another site.\n", content_type="text/plain", status=403)
    try:
        answer = _client().request(
            request.method or "GET",
            httpx.URL(settings.FLOWER_URL).copy_with(raw_path=request.get_full_path().encode("ascii")),
            headers={name: request.headers[name] for name in _REQUEST_HEADERS if name in request.headers},
            content=request.body,
        )
    except httpx.TimeoutException:
        return _away(request, 504, "Flower does not answer in time.")
    except httpx.TransportError:
        return _away(request, 503, "Flower does not run.")
    response = HttpResponse(answer.content, status=answer.status_code)
    for name in _RESPONSE_HEADERS:
        if name in answer.headers:
            response[name] = answer.headers[name]
    if "location" in answer.headers:
        response["location"] = answer.headers["location"].removeprefix(settings.FLOWER_URL)
    # Never kept by a shared cache, and asked for again each time: a logged-out browser shows nothing of it.
    response["cache-control"] = "private, no-cache" if path.startswith("static/") else "private, no-store"
    return response


@cache
def _client() -> httpx.Client:
    """Keeps connections to Flower open; safe for many threads. Proxies of the environment do not apply to loopback."""
    # The client is everybody's: a cookie that it kept for one would go out with the requests of all.
    no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
    return httpx.Client(timeout=TIMEOUT, trust_env=False, headers={"accept-encoding": "identity"}, cookies=no_cookies)


def _is_page(request: HttpRequest) -> bool:
    return request.method == "GET" and "text/html" in request.headers.get("accept", "")


def _is_same_origin(request: HttpRequest) -> bool:
    """Whether a page of ours sent this: by Fetch metadata (W3C), else by Origin, else by Referer. None of them: no."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    source = request.headers.get("origin") or request.headers.get("referer") or ""
    return urlsplit(source)[:2] == (request.scheme, request.get_host())


def _away(request: HttpRequest, status: int, reason: str) -> HttpResponseBase:
    if not _is_page(request):
        return HttpResponse(f"{reason}\n", content_type="text/plain", status=status)
    context = {**admin.site.each_context(request), "title": "Flower", "reason": reason, "url": settings.FLOWER_URL}
    response = TemplateResponse(request, "config/flower_away.html", context, status=status)
    response["cache-control"] = "private, no-store"
    return response
