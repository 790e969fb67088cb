"""The ledger's wheel, built as `bin/build` builds it, and a database for a project that takes it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from devstack.home import BASE_DIR
from tests.embedding.project import DATABASE, connected


def build(kind: str, target: Path, *, folder: Path = BASE_DIR) -> Path:
    """Builds a wheel or an sdist without the network; returns its path."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", str(target)]
    subprocess.run(command, check=True, cwd=folder, capture_output=True)
    (built,) = target.glob("handoff_jobs-*")
    return built


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("dist"))


@pytest.fixture
def database() -> Iterator[dict[str, Any]]:
    """An empty database on the PostgreSQL of this test run: what Django's settings say of it."""
    own: dict[str, Any] = connection.settings_dict
    facts = {name: own[name] for name in ("ENGINE", "HOST", "PORT", "USER", "PASSWORD")}
    with connected(facts, "postgres") as server:
        server.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
        server.execute(f"CREATE DATABASE {DATABASE}")
        yield {**facts, "NAME": DATABASE}
        server.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)")
