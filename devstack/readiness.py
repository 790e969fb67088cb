"""When a process counts as ready: not when it has started, but when it does its work."""

import socket
import time

import httpx
import psycopg

from devstack import state
from devstack.ports import LOOPBACK

WORKER_CONSUMES = "SELECT 1 FROM jobs_worker WHERE pid = %s AND dead_at IS NULL AND lease_expires_at > now()"
BEAT_TICKED = "SELECT 1 FROM jobs_duty WHERE name = 'beat' AND ticked_at > now() - make_interval(secs => %s)"


def listens(port: int) -> bool:
    """Whether somebody takes connections on this port."""
    try:
        socket.create_connection((LOOPBACK, port), timeout=1).close()
    except OSError:
        return False
    return True


def serves(url: str) -> bool:
    """Whether a page is answered, and not with an error of the server."""
    try:
        return httpx.get(url, timeout=5).status_code < httpx.codes.INTERNAL_SERVER_ERROR
    except httpx.HTTPError:
        return False


def worker_is_ready(database_url: str, pid: int) -> bool:
    """Whether the worker with this pid has its lease in the ledger."""
    return _holds(database_url, WORKER_CONSUMES, [pid])


def beat_is_ready(database_url: str, pid: int) -> bool:
    """Whether beat has looked at its schedule since this process began: one before it may just have done so too."""
    began = state.created(pid)
    return began is not None and _holds(database_url, BEAT_TICKED, [time.time() - began])


def _holds(database_url: str, query: str, parameters: list[float]) -> bool:
    try:
        with psycopg.connect(database_url, connect_timeout=2) as connection:
            return connection.execute(query.encode(), parameters).fetchone() is not None
    except psycopg.OperationalError:
        return False
