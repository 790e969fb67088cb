"""The ledger's wheel, built as `bin/build` builds it."""

import subprocess
import sys
from pathlib import Path

import pytest

from devstack.home import BASE_DIR


def build(kind: str, target: Path, *, folder: Path = BASE_DIR) -> Path:
    """Builds a wheel or an sdist without the network; returns its path."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", str(target)]
    subprocess.run(command, check=True, cwd=folder, capture_output=True)
    (built,) = target.glob("handoff_jobs-*")
    return built


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("dist"))
