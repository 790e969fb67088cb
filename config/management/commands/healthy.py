"""`manage.py healthy PID` says whether a process of ours does its work: the health check of the container image."""

import socket
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, InterfaceError

from jobs import health, selectors

PATIENCE_SECONDS = 5
WEB_PORT = 8000


class Command(BaseCommand):
    """Looks at what the process runs, then asks where such a process shows that it works. Exit status 0 or 1."""

    help = "Ends with status 0 when the web, worker, beat or Flower that runs as PID does its work, else with 1."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("pid", type=int, help="1 in a container")
        parser.add_argument("--port", type=int, default=WEB_PORT, help="of the web")

    def handle(self, *args: Any, pid: int, port: int, **options: Any) -> None:
        try:
            reason = why_not(pid, web_port=port)
        except (DatabaseError, InterfaceError) as error:
            reason = f"PostgreSQL: {error}"
        if reason:
            raise CommandError(reason)


def why_not(pid: int, *, web_port: int) -> str | None:
    """The reason why the process does not do its work; None when it does.

    Raises DatabaseError or InterfaceError without PostgreSQL.
    """
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except FileNotFoundError:
        return f"Process {pid} does not run."
    if "granian" in words:
        return _refusal(web_port, "/readyz")
    if "worker" in words:
        has_lease = selectors.living_workers().filter(host=socket.gethostname(), pid=pid).exists()
        return None if has_lease else "The worker has no lease."
    if "beat" in words:
        age_seconds = selectors.tick_ages_seconds().get("beat")
        has_ticked = age_seconds is not None and age_seconds < health.TICK_AGE_LIMIT_SECONDS
        return None if has_ticked else "Beat does not tick."
    if "flower" in words:
        return _refusal(urlsplit(settings.FLOWER_URL).port or WEB_PORT, "/admin/flower/")
    # What runs for a moment, like the migrations, is well while it runs.
    return None


def _refusal(port: int, path: str) -> str | None:
    # Django answers to the site's own names alone.
    host = (settings.ALLOWED_HOSTS or ["localhost"])[0].lstrip(".").replace("*", "localhost")
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
    try:
        connection.request("GET", path, headers={"Host": host})
        status = connection.getresponse().status
    except (OSError, HTTPException) as error:
        return f"{path}: {error}"
    finally:
        connection.close()
    return None if status == 200 else f"{path} answers {status}."
