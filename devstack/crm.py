"""A stand-in for the CRM: contacts over HTTP as HubSpot's API has them, kept in a file, shown as JSON.

Enough for the local stack and the demo: create, update by address, read, list. It is no test double: the tests use
answers of their own.
"""

import argparse
import json
import os
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from devstack.home import BASE_DIR
from devstack.launch import Launch
from devstack.ports import LOOPBACK

CONTACTS = "/crm/v3/objects/contacts"
TOKEN_VARIABLE = "CRM_STAND_IN_TOKEN"  # noqa: S105  # the name of a variable


def launch(*, folder: Path, port: int, token: str) -> Launch:
    """How the stand-in starts; its contacts are kept in `folder` over restarts."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Launch(
        argv=[sys.executable, "-m", "devstack.crm", f"--port={port}", f"--file={folder / 'contacts.json'}"],
        folder=BASE_DIR,
        # Not on the command line, which every user of the machine can read.
        env={TOKEN_VARIABLE: token, "PYTHONUNBUFFERED": "1"},
    )


class Contacts:
    """All contacts by address, each as the API gives it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._by_email: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}

    def all(self) -> list[dict[str, Any]]:
        """Every contact, oldest first."""
        with self._lock:
            return list(self._by_email.values())

    def get(self, email: str) -> dict[str, Any] | None:
        """The contact with this address."""
        with self._lock:
            return self._by_email.get(email.lower())

    def create(self, properties: dict[str, str]) -> dict[str, Any] | None:
        """A new contact; None where the address is taken."""
        with self._lock:
            email = properties["email"].lower()
            if email in self._by_email:
                return None
            return self._keep(email, {"id": str(len(self._by_email) + 1), "properties": properties})

    def update(self, email: str, properties: dict[str, str]) -> dict[str, Any] | None:
        """The contact with these properties changed; None where there is none."""
        with self._lock:
            contact = self._by_email.get(email.lower())
            if contact is None:
                return None
            return self._keep(email.lower(), {**contact, "properties": {**contact["properties"], **properties}})

    def _keep(self, email: str, contact: dict[str, Any]) -> dict[str, Any]:
        self._by_email[email] = contact
        draft = self._file.with_suffix(".draft")
        draft.write_text(json.dumps(self._by_email))
        draft.replace(self._file)
        return contact


class Handler(BaseHTTPRequestHandler):
    """Answers as the API does. Reading needs no token: it is for the person at this machine."""

    protocol_version = "HTTP/1.1"
    contacts: Contacts
    token: str

    def do_GET(self) -> None:  # its name
        """One contact by its address, or all."""
        if (email := self._email()) is None:
            self._answer(HTTPStatus.OK, {"results": self.contacts.all()})
        else:
            self._found(self.contacts.get(email))

    def do_POST(self) -> None:  # its name
        """A new contact."""
        properties = self._properties()
        if properties is None:
            return
        if "email" not in properties:
            self._answer(HTTPStatus.BAD_REQUEST, {"status": "error", "message": "Property email is missing"})
        elif contact := self.contacts.create(properties):
            self._answer(HTTPStatus.CREATED, contact)
        else:
            known = self.contacts.get(properties["email"]) or {}
            message = f"Contact already exists. Existing ID: {known.get('id')}"
            self._answer(HTTPStatus.CONFLICT, {"status": "error", "category": "CONFLICT", "message": message})

    def do_PATCH(self) -> None:  # its name
        """A changed contact."""
        properties = self._properties()
        if properties is not None:
            self._found(self.contacts.update(self._email() or "", properties))

    def _email(self) -> str | None:
        path = urlsplit(self.path).path
        return unquote(path.removeprefix(f"{CONTACTS}/")) if path.startswith(f"{CONTACTS}/") else None

    def _properties(self) -> dict[str, str] | None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != f"Bearer {self.token}":
            self._answer(
                HTTPStatus.UNAUTHORIZED, {"status": "error", "message": "Authentication credentials not found"}
            )
            return None
        try:
            return dict(json.loads(body)["properties"])
        except (ValueError, KeyError, TypeError):
            self._answer(HTTPStatus.BAD_REQUEST, {"status": "error", "message": "Invalid input JSON"})
            return None

    def _found(self, contact: dict[str, Any] | None) -> None:
        if contact is None:
            self._answer(HTTPStatus.NOT_FOUND, {"status": "error", "message": "resource not found"})
        else:
            self._answer(HTTPStatus.OK, contact)

    def _answer(self, status: HTTPStatus, body: Any) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def main(arguments: list[str]) -> None:
    """Serves until it is ended."""
    parser = argparse.ArgumentParser(prog="python -m devstack.crm")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--file", type=Path, required=True)
    options = parser.parse_args(arguments)
    Handler.contacts, Handler.token = Contacts(options.file), os.environ[TOKEN_VARIABLE]
    ThreadingHTTPServer((LOOPBACK, options.port), Handler).serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
