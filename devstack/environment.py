"""What the environment gives, and the file of variables that the local stack adds to it."""

import os
from pathlib import Path

from dotenv import dotenv_values

from devstack.home import BASE_DIR, Home
from devstack.ports import LOOPBACK, Ports

REDIS_NAMES = ("REDIS_URL", "REDIS_HOST")


def given(*names: str) -> str | None:
    """The first of these variables that a person has set, as `config.env` reads them: in the environment, in a mounted
    file, or in `.env`. What it names is used, and no server of our own is started for it."""
    written = dotenv_values(BASE_DIR / ".env")
    for name in names:
        if value := os.environ.get(name):
            return value
        if path := os.environ.get(f"{name}_FILE"):
            return Path(path).read_text().strip()
        if value := written.get(name):
            return value
    return None


def write(home: Home, ports: Ports, *, database_url: str | None, redis_url: str | None) -> None:
    """Writes `.handoff/env`: by it `manage.py`, `celery` and `bin/demo` find what runs here. It comes last: what
    a person has set wins."""
    variables = {
        "SECRET_KEY": home.secret("secret_key"),
        "ALLOWED_HOSTS": "localhost,127.0.0.1,[::1]",
        "SITE_URL": site_url(ports),
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "EMAIL_HOST": LOOPBACK,
        "EMAIL_PORT": str(ports.smtp),
        "FLOWER_URL": f"http://{LOOPBACK}:{ports.flower}",
        # Receivers on this machine, like that of the demo.
        "WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8,::1/128",
        # Address and token belong together: a CRM of somebody's own must never get our token, nor ours his.
        "CRM_BASE_URL": None if given("CRM_BASE_URL", "CRM_TOKEN") else crm_url(ports),
        "CRM_TOKEN": None if given("CRM_BASE_URL", "CRM_TOKEN") else home.secret("crm"),
    }
    lines = [f"{name}={value}" for name, value in variables.items() if value is not None]
    home.write_private(
        home.env, "# Written by bin/up at each start; put your own values into .env.\n" + "\n".join(lines) + "\n"
    )


def crm_url(ports: Ports) -> str:
    """Where the stand-in for the CRM listens."""
    return f"http://{LOOPBACK}:{ports.crm}"


def site_url(ports: Ports) -> str:
    """Where a browser on this machine finds the web."""
    return f"http://{LOOPBACK}:{ports.web}"
