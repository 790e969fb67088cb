"""The compose file as the real docker-compose reads it."""

import json
import os
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from devstack.home import BASE_DIR

FILE = BASE_DIR / "docker-compose.yml"
# All that has no default.
ENV_FILE = {
    "SECRET_KEY": "0123456789abcdef" * 4,
    "SITE_URL": "http://handoff.example",
    "ALLOWED_HOSTS": "handoff.example,127.0.0.1",
    "POSTGRES_PASSWORD": "of-postgres",
    "REDIS_PASSWORD": "of-redis",
    "EMAIL_HOST": "mail",
    "DEFAULT_FROM_EMAIL": "Handoff <hello@handoff.example>",
}


def binary() -> Path:
    """docker-compose itself: the script that its package installs loses the exit status."""
    spec = find_spec("compose")
    if spec is None or spec.origin is None:
        pytest.skip("requirements-dev.in has docker-compose for Linux on x86_64 only")
    return Path(spec.origin).with_name("docker-compose")


def config(
    *arguments: str, file: Path = FILE, variables: dict[str, str] = ENV_FILE, folder: Path
) -> "subprocess.CompletedProcess[str]":
    """`docker compose config …`, with these variables in its .env and none of ours around it."""
    env_file = folder / "env"
    env_file.write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
    return subprocess.run(
        [binary(), "--env-file", env_file, "--file", file, "--profile", "*", "config", *arguments],
        check=False,
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        capture_output=True,
        text=True,
    )


def project(*, folder: Path, **variables: str) -> dict[str, Any]:
    """The whole project, with every anchor and variable in place."""
    done = config("--format=json", variables={**ENV_FILE, **variables}, folder=folder)
    assert done.returncode == 0, done.stderr
    # What it prints could be read by it again, and there a dollar is written twice.
    read: dict[str, Any] = json.loads(done.stdout.replace("$$", "$"))
    return read


def services(*, folder: Path, **variables: str) -> dict[str, dict[str, Any]]:
    """The services by name."""
    found: dict[str, dict[str, Any]] = project(folder=folder, **variables)["services"]
    return found


def is_ours(service: dict[str, Any]) -> bool:
    """Whether it runs the project's own image."""
    return service["image"] == "handoff"
