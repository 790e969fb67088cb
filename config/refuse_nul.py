"""Refuses requests with a NUL character, which PostgreSQL cannot store in a text."""

from collections.abc import Callable
from urllib.parse import unquote

from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest


class RefuseNul:
    """Middleware: answers 400 where the path, the query or a cookie has one. Parsers check the bodies."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        texts = [request.path_info, unquote(request.META.get("QUERY_STRING", "")), *request.COOKIES.values()]
        if any("\0" in text for text in texts):
            return HttpResponseBadRequest("A NUL character (%00) has no place in an address or a cookie.\n")
        return self._get_response(request)
