"""Bodies that nobody read to their end, because the headers were enough to refuse the request."""

from typing import IO, Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment


class ClosesAfterUnread:
    """WSGI middleware that says `Connection: close` with an answer to a request whose body was not read to its end.

    A server cannot find the next request behind such a body and closes the connection. A client that is not told sends
    its next request into a connection that is gone (RFC 9110, section 7.6.1, and RFC 9112, section 9.6). The server of
    `manage.py runserver` takes no such header from an application and is left alone: it marks no end of its input.
    """

    def __init__(self, application: WSGIApplication) -> None:
        self._application = application

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        declared = environ.get("CONTENT_LENGTH") or ""
        is_chunked = bool(environ.get("HTTP_TRANSFER_ENCODING"))
        if not environ.get("wsgi.input_terminated") or not (declared or is_chunked):
            return self._application(environ, start_response)
        body = _Watched(environ["wsgi.input"], length=None if is_chunked else _length(declared))
        environ["wsgi.input"] = body

        def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
            closing = [] if body.is_read else [("Connection", "close")]
            return start_response(status, [*headers, *closing], *error)

        return self._application(environ, start)


def _length(declared: str) -> int | None:
    return int(declared[:12]) if declared.isascii() and declared.isdigit() else None


class _Watched:
    """A body that knows whether it was read to its end: where its length is None, until it gave less than asked for."""

    def __init__(self, stream: IO[bytes], *, length: int | None) -> None:
        self._stream = stream
        self._missing = length
        self.is_read = length == 0

    def read(self, size: int = -1) -> bytes:
        return self._seen(self._stream.read(size), size)

    def readline(self, size: int = -1) -> bytes:
        line = self._stream.readline(size)
        return self._seen(line, 0 if line else 1)

    def _seen(self, data: bytes, size: int) -> bytes:
        if self._missing is None:
            self.is_read = self.is_read or size < 0 or len(data) < size
        else:
            self._missing -= len(data)
            self.is_read = self._missing <= 0
        return data
