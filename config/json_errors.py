"""Errors that Django answers before or without the API, in the API's one shape."""

from collections.abc import Callable
from http import HTTPStatus

from django.http import HttpRequest, HttpResponse

from config.api import api, error_response

_MESSAGES = {
    HTTPStatus.NOT_FOUND: "There is no such thing here.",
    HTTPStatus.METHOD_NOT_ALLOWED: "This address does not take that method.",
}


class JsonErrors:
    """Middleware: a client of the API that reads `error.message` finds it also after a wrong path or method."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self._get_response(request)
        if response.status_code < HTTPStatus.BAD_REQUEST or response.get("Content-Type") == "application/json":
            return response
        if not _is_for_the_api(request):
            return response
        status = HTTPStatus(response.status_code)
        # The headers say what else there is to know: Allow, Retry-After.
        headers = {name: value for name, value in response.items() if not name.startswith("Content-")}
        return error_response(_MESSAGES.get(status, f"{status.phrase}."), status=status, headers=headers)


def _is_for_the_api(request: HttpRequest) -> bool:
    match = request.resolver_match
    return request.path.startswith("/api/") or (match is not None and match.namespace == api.urls_namespace)
