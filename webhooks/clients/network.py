"""Connections that look where they go, and that end in time.

A host name is resolved here, once; each address is checked, and the very address that passed is dialled. So a name that
answers with a public address when it is checked and a private one when it is dialled (DNS rebinding) gains nothing.
The name stays what TLS and the Host header speak of.
"""

import ipaddress
import socket
import ssl
import time
from collections.abc import Iterable, Sequence
from typing import Any

import httpcore

from webhooks.addresses import Address, Network, may_be_dialled


class AddressRefused(Exception):
    """The host has no address that may be dialled."""

    def __init__(self, host: str) -> None:
        super().__init__(f"{host} leads to a private or reserved network: webhooks are not sent there.")


class GuardedBackend(httpcore.NetworkBackend):
    """Opens connections for httpcore, to permitted addresses only; everything on them ends `total_seconds` after the
    connection began, so that an answer of one byte every few seconds does not hold a worker for ever."""

    def __init__(self, *, allowed: Sequence[Network], total_seconds: float) -> None:
        self._allowed = allowed
        self._total_seconds = total_seconds
        self._system = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """A connection to the first permitted address of the host that answers.

        Raises AddressRefused where none is permitted, httpcore.ConnectError or ConnectTimeout where none answers.
        """
        deadline = time.monotonic() + self._total_seconds
        give_up = deadline if timeout is None else min(deadline, time.monotonic() + timeout)
        problem: Exception | None = None
        for address in self._permitted(host, port):
            left = give_up - time.monotonic()
            if left <= 0:
                break
            try:
                stream = self._system.connect_tcp(
                    str(address), port, timeout=left, local_address=local_address, socket_options=socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                problem = error
            else:
                return TimelyStream(stream, deadline=deadline)
        raise problem or httpcore.ConnectTimeout("timed out")

    def _permitted(self, host: str, port: int) -> list[Address]:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"{host} cannot be resolved") from error
        addresses = [ipaddress.ip_address(sockaddr[0]) for *_, sockaddr in found]
        permitted = [address for address in addresses if may_be_dialled(address, allowed=self._allowed)]
        if not permitted:
            raise AddressRefused(host)
        return permitted


class TimelyStream(httpcore.NetworkStream):
    """A connection all of whose steps end at one moment, whatever time each of them is given."""

    def __init__(self, stream: httpcore.NetworkStream, *, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Up to so many bytes; raises httpcore.ReadTimeout at the deadline."""
        return self._stream.read(max_bytes, self._left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Sends all of it; raises httpcore.WriteTimeout at the deadline."""
        self._stream.write(buffer, self._left(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        """Ends the connection."""
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """The same connection, encrypted, with the same deadline."""
        left = self._left(timeout, httpcore.ConnectTimeout)
        stream = self._stream.start_tls(ssl_context, server_hostname=server_hostname, timeout=left)
        return TimelyStream(stream, deadline=self._deadline)

    def get_extra_info(self, info: str) -> Any:
        """What the connection knows of itself."""
        return self._stream.get_extra_info(info)

    def _left(self, timeout: float | None, late: type[Exception]) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise late("timed out")
        return left if timeout is None else min(left, timeout)
