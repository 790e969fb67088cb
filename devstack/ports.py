"""The ports of the local stack, and who holds one that is taken."""

import secrets
import socket
from dataclasses import dataclass

import psutil

LOOPBACK = "127.0.0.1"


class PortTaken(Exception):
    """Another process listens where a part of the stack should."""


@dataclass(frozen=True)
class Ports:
    """The web's port, and all others within the next 19, so that two checkouts run side by side."""

    web: int

    @property
    def postgres(self) -> int:
        """PostgreSQL."""
        return self.web + 1

    @property
    def redis(self) -> int:
        """Redis."""
        return self.web + 2

    @property
    def smtp(self) -> int:
        """The mail catcher's SMTP server."""
        return self.web + 3

    @property
    def mail(self) -> int:
        """The mail catcher's page and JSON."""
        return self.web + 4

    @property
    def flower(self) -> int:
        """Flower."""
        return self.web + 5

    @property
    def crm(self) -> int:
        """The stand-in for the CRM."""
        return self.web + 6


def is_free(port: int) -> bool:
    """Whether nobody listens on this port of the loopback address."""
    with socket.socket() as probe:
        # As servers do: without it a port whose last connections still fade away would count as taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def require_free(wanted: dict[str, int]) -> None:
    """Raises PortTaken, which names port, purpose and (where the system tells) the process that holds it."""
    for name, port in wanted.items():
        if not is_free(port):
            raise PortTaken(
                f"Port {port} (for {name}) is taken{_holder(port)}. End that process, or choose other ports: "
                f"bin/up --port N takes N to N+19."
            )


def _holder(port: int) -> str:
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return ""
    for connection in connections:
        # An address is (host, port).
        if connection.status == psutil.CONN_LISTEN and connection.laddr[1:2] == (port,) and connection.pid:
            try:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
            except psutil.NoSuchProcess:
                return ""
    return ""


def free_port(count: int = 1) -> int:
    """The first of `count` neighbouring ports that are free now.

    Below 32768, where Linux begins to hand out ports to outgoing connections: there a port that is free now may be
    another program's a moment later.
    """
    for _ in range(200):
        # Not `random`: tests seed it, and two of them at one time would find the same port.
        first = 20_000 + secrets.randbelow(12_000)
        if all(is_free(first + offset) for offset in range(count)):
            return first
    raise PortTaken(f"There are no {count} free neighbouring ports between 20000 and 32000.")
