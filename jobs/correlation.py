"""One id for all that came of one request: in the log lines of every process, in jobs and their children, in mail and
deliveries, and in the answer to whoever asked.

django-guid does the same for requests, but holds Django below 6.0 on Python 3.12.
"""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from uuid import uuid4

from django.http import HttpRequest, HttpResponse

HEADER = "X-Request-ID"
# Goes into logs, mails and headers as it is: nothing that could end a line.
_FIT = re.compile(r"[\w.:-]{8,64}", re.ASCII)

_current: ContextVar[str] = ContextVar("correlation_id", default="")


def current() -> str:
    """The id of the request or the run that this thread is at; empty where there is none."""
    return _current.get()


def assume(correlation_id: str) -> None:
    """From now on, this thread is at something of that id."""
    _current.set(correlation_id)


@contextmanager
def assumed(correlation_id: str) -> Iterator[None]:
    """In this block, the thread is at something of that id."""
    token = _current.set(correlation_id)
    try:
        yield
    finally:
        _current.reset(token)


class Correlation:
    """Middleware, the first of all: takes the proxy's or the client's id, if it is fit for a log, or makes one."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        given = request.headers.get(HEADER, "")
        with assumed(given if _FIT.fullmatch(given) else uuid4().hex):
            response = self._get_response(request)
            response[HEADER] = _current.get()
        return response


class AddCorrelationId(logging.Filter):
    """Gives every record a `correlation_id`, a dash where there is none."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Lets all pass."""
        record.correlation_id = _current.get() or "-"
        return True
