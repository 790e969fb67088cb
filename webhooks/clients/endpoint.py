"""Sends one signed message to one endpoint, and tells what it answered.

Built on httpcore, the connection library under httpx, because only there the connection itself can be checked. It does
nothing unasked either: it follows no redirect, reads no proxy from the environment, keeps no cookie, unpacks no body.
"""

import functools
import ssl
from dataclasses import dataclass

import httpcore
import httpx
from django.conf import settings

from webhooks.clients.network import GuardedBackend

CONNECT_SECONDS = 5.0
READ_SECONDS = 15.0
# A receiver that needs to say more than this says it to somebody else.
EXCERPT_BYTES = 2 * 1024


class NoAnswer(Exception):
    """The endpoint gave no answer; the text says why, in words for its owner."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What an endpoint said: the status, and the first bytes of the body as text."""

    status: int
    excerpt: str


def post(url: str, *, body: bytes, headers: dict[str, str], ssl_context: ssl.SSLContext | None = None) -> Answer:
    """Posts the body and returns the answer, whatever its status.

    5 s to connect, 15 s until the answer's head is there, 20 s for everything. Of the answer's body at most
    `EXCERPT_BYTES` are read, and only for people: a body that breaks off does not change what the status has said.
    Raises NoAnswer, or webhooks.clients.network.AddressRefused. A second call sends a second request.
    """
    target = httpx.URL(url)
    backend = GuardedBackend(allowed=settings.WEBHOOK_ALLOWED_NETWORKS, total_seconds=CONNECT_SECONDS + READ_SECONDS)
    timeouts = {"connect": CONNECT_SECONDS, "read": READ_SECONDS, "write": READ_SECONDS, "pool": CONNECT_SECONDS}
    try:
        with (
            httpcore.ConnectionPool(ssl_context=ssl_context or _trusted(), network_backend=backend) as pool,
            pool.stream(
                "POST",
                httpcore.URL(scheme=target.raw_scheme, host=target.raw_host, port=target.port, target=target.raw_path),
                headers=[*headers.items(), ("Host", target.netloc.decode()), ("Content-Length", str(len(body)))],
                content=body,
                extensions={"timeout": timeouts},
            ) as response,
        ):
            return Answer(status=response.status, excerpt=_excerpt(response))
    except httpcore.TimeoutException as error:
        raise NoAnswer(_late(error)) from error
    except httpcore.NetworkError as error:
        raise NoAnswer(f"The connection failed: {error or type(error).__name__}.") from error
    except httpcore.ProtocolError as error:
        raise NoAnswer(f"The answer is not HTTP: {error or type(error).__name__}.") from error


@functools.cache
def _trusted() -> ssl.SSLContext:
    # Read once: loading all certificates of authorities takes longer than most deliveries.
    return httpx.create_ssl_context(trust_env=False)


def _excerpt(response: httpcore.Response) -> str:
    read = b""
    try:
        for part in response.iter_stream():
            read += part
            if len(read) >= EXCERPT_BYTES:
                break
    except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError):
        pass
    # PostgreSQL stores no NUL.
    return read[:EXCERPT_BYTES].decode("utf-8", "replace").replace("\0", "�")


def _late(error: httpcore.TimeoutException) -> str:
    if isinstance(error, httpcore.ConnectTimeout):
        return f"No connection within {CONNECT_SECONDS:g} s."
    return f"No answer within {READ_SECONDS:g} s."
