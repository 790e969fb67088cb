"""What the doctor looks at beyond the ledger: the parts that only this project's apps speak to."""

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from django.conf import settings

from jobs.doctor import Finding, Level, examination

_PATIENCE_SECONDS = 2.0


@examination("Parts")
def parts() -> Iterator[Finding]:
    """Whether what jobs need is in reach of this process: mail, Flower, the CRM, and room for files."""
    yield from _reached("The mail server", settings.EMAIL_HOST, settings.EMAIL_PORT, "EMAIL_HOST and EMAIL_PORT")
    yield from _url_reached("Flower", settings.FLOWER_URL, "FLOWER_URL")
    if settings.CRM_BASE_URL:
        yield from _url_reached("The CRM", settings.CRM_BASE_URL, "CRM_BASE_URL")
    yield from _writable(Path(settings.MEDIA_ROOT))


def _url_reached(what: str, url: str, variable: str) -> Iterator[Finding]:
    address = urlsplit(url)
    port = address.port or (443 if address.scheme == "https" else 80)
    yield from _reached(what, address.hostname or "", port, variable)


def _reached(what: str, host: str, port: int, variable: str) -> Iterator[Finding]:
    try:
        socket.create_connection((host, port), timeout=_PATIENCE_SECONDS).close()
    except OSError as error:
        yield Finding(
            Level.WARNING,
            f"{what} at {host}:{port} cannot be reached from here: {error}.",
            f"Start it, open the way to it, or correct {variable}. Jobs that need it are retried.",
        )
    else:
        yield Finding(Level.GOOD, f"{what} at {host}:{port} takes connections.")


def _writable(folder: Path) -> Iterator[Finding]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        yield Finding(
            Level.ERROR,
            f"Files cannot be written to {folder}: {error}.",
            "Make room, or give the user that runs web and workers the right to write there.",
        )
    else:
        yield Finding(Level.GOOD, f"Files can be written to {folder}.")
