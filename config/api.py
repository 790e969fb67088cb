"""The JSON API: its routers, who may call them, and the one shape of every error.

Every error, whatever its status, is `{"error": {"message": "…", "fields": {"email": "…"}}}`: a sentence for people, and
a sentence for each field that is wrong (`fields` is empty where no field is to blame). No answer ever holds a stack
trace. The description for machines is at `/api/openapi.json`, the same for people at `/api/docs`.

Statuses: 400 the body is no JSON, 401 no or wrong credentials, 403 the CSRF token is missing, 404 not there or not
yours, 409 it exists already, 411 the body's length is not declared, 413 the body is too large, 415 the body is not
declared as JSON, 422 a field is wrong, 500 our fault, 503 the database is away for the moment.
"""

import functools
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

from django.core.exceptions import NON_FIELD_ERRORS, ValidationError
from django.core.signals import got_request_exception
from django.db import InterfaceError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.http.request import UnreadablePostError
from ninja import NinjaAPI
from ninja.errors import HttpError
from ninja.errors import ValidationError as SchemaError
from ninja.parser import Parser
from ninja.security import SessionAuth

from accounts.api import BearerToken
from accounts.api import router as accounts_router
from jobs.api import router as jobs_router

logger = logging.getLogger(__name__)

# The largest body that any of these calls has a use for; an upload comes another way.
BODY_MAX_BYTES = 16 * 1024

View = Callable[..., HttpResponse]


def error_response(
    message: str, *, status: int, fields: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
) -> JsonResponse:
    """An error in the one shape that every error has."""
    body = {"error": {"message": message, "fields": dict(fields or {})}}
    return JsonResponse(body, status=status, headers=dict(headers or {}))


def small_json_only(view: View) -> View:
    """Lets a body through only if it is declared as JSON and small; refused by its headers, before it is read.

    A chunked body has got its length from `config.chunked`; where the server does not allow that it is refused, because
    Django reads nothing of it and it would look empty. The web server cuts a body that is longer than it declared.
    """

    @functools.wraps(view)
    def checked(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        declared = request.META.get("CONTENT_LENGTH") or ""
        if request.META.get("HTTP_TRANSFER_ENCODING") and not declared:
            return error_response("Send the body with a Content-Length.", status=411)
        length = int(declared[:9]) if declared.isascii() and declared.isdigit() else 0
        if length > BODY_MAX_BYTES:
            return error_response(f"The body is too large: at most {BODY_MAX_BYTES} bytes.", status=413)
        if length and request.content_type != "application/json":
            return error_response("Send the body as JSON, with Content-Type: application/json.", status=415)
        return view(request, *args, **kwargs)

    return checked


class NotAnObject(ValueError):
    """The body is JSON, but not an object with fields."""


class JsonObjectParser(Parser):
    """Reads the body as a JSON object. Whatever it raises becomes a 400."""

    def parse_body(self, request: HttpRequest) -> dict[str, Any]:
        """The object; raises NotAnObject, ValueError for no JSON, RecursionError for what is nested too deep."""
        body = json.loads(request.body)
        # Half a surrogate pair (RFC 8259, section 8.2) is a str that neither PostgreSQL nor a hasher takes.
        json.dumps(body, ensure_ascii=False).encode()
        if not isinstance(body, dict):
            raise NotAnObject
        return body


api = NinjaAPI(
    title="Handoff",
    version="1",
    docs_url="/api/docs",
    openapi_url="/api/openapi.json",
    parser=JsonObjectParser(),
)
api.add_decorator(small_json_only, mode="view")
api.add_router("", accounts_router)
api.add_router("/api/jobs", jobs_router, auth=[BearerToken(), SessionAuth()])

_MESSAGES = {
    "missing": "This field is required.",
    "string_type": "Must be a text.",
    "string_pattern_mismatch": "Holds a character that is not allowed.",
}


@api.exception_handler(SchemaError)
def _schema_error(request: HttpRequest, error: SchemaError) -> HttpResponse:
    fields: dict[str, str] = {}
    for problem in error.errors:
        # loc is (source, parameter, field, …); a problem of the parameter itself is one of the whole body.
        path = [str(part) for part in problem["loc"][2:]]
        if path:
            fields.setdefault(".".join(path), _MESSAGES.get(problem["type"], f"{problem['msg']}."))
        else:
            return error_response("The body is empty; a JSON object was expected.", status=400)
    return error_response("Some fields are wrong.", status=422, fields=fields)


@api.exception_handler(ValidationError)
def _model_error(request: HttpRequest, error: ValidationError) -> HttpResponse:
    by_field = error.message_dict if hasattr(error, "error_dict") else {NON_FIELD_ERRORS: error.messages}
    fields = {name: " ".join(dict.fromkeys(messages)) for name, messages in by_field.items()}
    return error_response(fields.pop(NON_FIELD_ERRORS, "Some fields are wrong."), status=422, fields=fields)


@api.exception_handler(HttpError)
def _http_error(request: HttpRequest, error: HttpError) -> HttpResponse:
    if error.status_code == 401:
        message = "Sign in, or send a token." if str(error) == "Unauthorized" else str(error)
        return error_response(message, status=401, headers={"WWW-Authenticate": 'Bearer realm="Handoff"'})
    if isinstance(error.__cause__, NotAnObject):
        return error_response("The body must be a JSON object.", status=error.status_code)
    if error.status_code == 400 and isinstance(error.__cause__, ValueError | RecursionError):
        return error_response("The body is not valid JSON in UTF-8.", status=400)
    return error_response(str(error), status=error.status_code)


@api.exception_handler(UnreadablePostError)
def _body_was_cut(request: HttpRequest, error: UnreadablePostError) -> HttpResponse:
    return error_response("The body ended before its Content-Length.", status=400)


@api.exception_handler(Http404)
def _not_found(request: HttpRequest, error: Http404) -> HttpResponse:
    return error_response("There is no such thing here.", status=404)


@api.exception_handler(OperationalError)
@api.exception_handler(InterfaceError)
def _database_is_away(request: HttpRequest, error: Exception) -> HttpResponse:
    _report(request, error)
    message = "The database cannot be reached at the moment. Try again soon."
    return error_response(message, status=503, headers={"Retry-After": "5"})


@api.exception_handler(Exception)
def _our_fault(request: HttpRequest, error: Exception) -> HttpResponse:
    _report(request, error)
    return error_response("Something went wrong on our side. It has been noted.", status=500)


def _report(request: HttpRequest, error: Exception) -> None:
    # What Django does itself for an exception that reaches it: error trackers listen to this signal.
    got_request_exception.send(sender=None, request=request)
    logger.error("%s %s failed", request.method, request.path, exc_info=error)
