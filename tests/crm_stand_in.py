"""The local stack's stand-in for the CRM, running inside the tests."""

import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from devstack.crm import Contacts, Handler

TOKEN = "a token"


class CrmStandIn:
    """A CRM on a free port, and what to tell workers about it."""

    def __init__(self, folder: Path) -> None:
        self.contacts = contacts = Contacts(folder / "contacts.json")

        class OwnHandler(Handler):
            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        OwnHandler.contacts, OwnHandler.token = contacts, TOKEN
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), OwnHandler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.env = {"CRM_BASE_URL": self.url, "CRM_TOKEN": TOKEN}


@pytest.fixture
def crm(tmp_path: Path) -> Iterator[CrmStandIn]:
    """A CRM for one test. Who is to sync with it gets its `env`."""
    stand_in = CrmStandIn(tmp_path)
    threading.Thread(target=stand_in.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield stand_in
    stand_in.server.shutdown()
    stand_in.server.server_close()
