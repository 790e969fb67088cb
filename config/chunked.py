"""Bodies of undeclared length. Django reads exactly Content-Length bytes, and so nothing of a chunked body (RFC 9112,
section 7.1), which some clients always send."""

from io import BytesIO
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from django.conf import settings


class DeclaredLength:
    """WSGI middleware that gives a chunked body a Content-Length, where the server marks the end of its input.

    It reads one byte beyond what Django takes into memory at the most; so a larger body is refused for its length like
    any other, and the rest of it is never read.
    """

    def __init__(self, application: WSGIApplication) -> None:
        self._application = application

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        if (
            environ.get("wsgi.input_terminated")
            and not environ.get("CONTENT_LENGTH")
            and environ.get("HTTP_TRANSFER_ENCODING")
        ):
            body = environ["wsgi.input"].read(settings.DATA_UPLOAD_MAX_MEMORY_SIZE + 1)
            environ["wsgi.input"] = BytesIO(body)
            environ["CONTENT_LENGTH"] = str(len(body))
        return self._application(environ, start_response)
