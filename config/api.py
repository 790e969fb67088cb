"""The JSON API: its routers, who may call them, and the one shape of every error.

Every error, whatever its status, is `{"error": {"message": "…", "fields": {"email": "…"}}}`: a sentence for people, and
a sentence for each field that is wrong (`fields` is empty where no field is to blame). No answer ever holds a stack
trace. The description for machines is at `/api/openapi.json`, the same for people at `/api/docs`.

Statuses: 400 the body is not what it is declared to be, 401 no or wrong credentials, 403 the CSRF token is missing, 404
not there or not yours, 409 it exists already, 411 the body's length is not declared, 413 the body is too large, 415 the
body is not declared as what this address takes, 422 a field is wrong, 500 our fault, 503 the database is away for the
moment.
"""

import json
import logging
from collections.abc import Mapping
from typing import Any

from django.core.exceptions import NON_FIELD_ERRORS, RequestDataTooBig, SuspiciousOperation, ValidationError
from django.core.signals import got_request_exception
from django.db import InterfaceError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.http.multipartparser import MultiPartParserError
from django.http.request import UnreadablePostError
from ninja import NinjaAPI
from ninja.errors import HttpError
from ninja.errors import ValidationError as SchemaError
from ninja.parser import Parser
from ninja.security import SessionAuth

from accounts.api import BearerToken
from accounts.api import router as accounts_router
from config.bodies import BodyRefused, declared_bodies_only
from jobs.api import router as jobs_router
from media_jobs.api import images as images_router
from media_jobs.api import videos as videos_router
from reports.api import router as reports_router
from webhooks.api import incoming as incoming_router
from webhooks.api import router as endpoints_router

logger = logging.getLogger(__name__)


def error_response(
    message: str, *, status: int, fields: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
) -> JsonResponse:
    """An error in the one shape that every error has."""
    body = {"error": {"message": message, "fields": dict(fields or {})}}
    return JsonResponse(body, status=status, headers=dict(headers or {}))


def _refused(refusal: BodyRefused) -> HttpResponse:
    return error_response(str(refusal), status=refusal.status)


class SignedIn(SessionAuth):
    """A session of Django's, with its CSRF token. A stranger is asked for neither, so that his body is not even read:
    looking for the token in a form would take in the whole upload."""

    def __call__(self, request: HttpRequest) -> Any:
        """The user, or None."""
        return super().__call__(request) if request.user.is_authenticated else None


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
api.add_decorator(declared_bodies_only(_refused), mode="view")
signed_in = [BearerToken(), SignedIn()]
api.add_router("", accounts_router)
api.add_router("/api/jobs", jobs_router, auth=signed_in)
api.add_router("/api/images", images_router, auth=signed_in)
api.add_router("/api/videos", videos_router, auth=signed_in)
api.add_router("/api/reports", reports_router, auth=signed_in)
api.add_router("/api/webhook-endpoints", endpoints_router, auth=signed_in)
# Whoever sends here proves himself by his signature.
api.add_router("/webhooks/in", incoming_router)

_MESSAGES = {
    "missing": "This field is required.",
    "string_type": "Must be a text.",
    "string_pattern_mismatch": "Holds a character that is not allowed.",
}


@api.exception_handler(SchemaError)
def _schema_error(request: HttpRequest, error: SchemaError) -> HttpResponse:
    fields: dict[str, str] = {}
    for problem in error.errors:
        # loc is (source, field, …), but (source, parameter, field, …) for a body; a problem of that parameter itself is
        # one of the whole body.
        source, *place = problem["loc"]
        path = [str(part) for part in (place[1:] if source.startswith("body") else place)]
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


@api.exception_handler(MultiPartParserError)
@api.exception_handler(SuspiciousOperation)
def _no_form(request: HttpRequest, error: Exception) -> HttpResponse:
    return error_response("The body is not a valid form (multipart/form-data).", status=400)


@api.exception_handler(RequestDataTooBig)
def _fields_are_too_large(request: HttpRequest, error: RequestDataTooBig) -> HttpResponse:
    return error_response("The fields of the form are too large.", status=413)


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
