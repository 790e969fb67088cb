"""What is in the package of the ledger, and what it says that it needs."""

import ast
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable
from importlib.metadata import packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from devstack.home import BASE_DIR
from tests.embedding.conftest import build

PROJECT = tomllib.loads((BASE_DIR / "pyproject.toml").read_text())["project"]
# What each optional part is for.
EXTRAS = {"jobs/api.py": "api", "jobs/django_tasks.py": "django-tasks"}


def listed(file: str) -> set[str]:
    return {line for line in (BASE_DIR / file).read_text().splitlines() if line and line[0] not in "#-"}


def test_the_wheel_has_every_file_of_the_ledger_and_of_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = {path for path in (BASE_DIR / "jobs").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert names == {path.relative_to(BASE_DIR).as_posix() for path in files}
    assert {"jobs/migrations/0001_initial.py", "jobs/static/jobs/admin.css", "jobs/py.typed"} <= names
    assert any(name.startswith("jobs/templates/") for name in names)


def test_a_wheel_of_the_built_sources_is_the_same(wheel: Path, tmp_path: Path) -> None:
    sources = build("sdist", tmp_path)
    assert sources.name.removesuffix(".tar.gz") == "-".join(wheel.name.split("-")[:2])
    with tarfile.open(sources) as archive:
        archive.extractall(tmp_path, filter="data")
    again = build("wheel", tmp_path / "again", folder=tmp_path / sources.name.removesuffix(".tar.gz"))
    assert zipfile.ZipFile(again).namelist() == zipfile.ZipFile(wheel).namelist()


def test_the_script_builds_as_these_tests_do() -> None:
    assert 'exec .venv/bin/python -m hatchling build "$@"' in (BASE_DIR / "bin" / "build").read_text()


def test_what_the_package_needs_is_what_the_project_is_tested_with() -> None:
    assert set(PROJECT["dependencies"]) - listed("requirements.in") == set()
    extras = {requirement for extra in PROJECT["optional-dependencies"].values() for requirement in extra}
    assert extras - listed("requirements.in") - listed("requirements-dev.in") == set()
    assert set(EXTRAS.values()) == set(PROJECT["optional-dependencies"])


def test_every_import_is_of_something_that_the_package_needs() -> None:
    needed, origins = projects(PROJECT["dependencies"]), packages_distributions()
    # What these bring with them: asgiref, billiard.
    needed |= {name for project in list(needed) for name in projects(requires(project) or [])}
    unmet = set()
    for path in sorted((BASE_DIR / "jobs").rglob("*.py")):
        name = path.relative_to(BASE_DIR).as_posix()
        optional = projects(PROJECT["optional-dependencies"][EXTRAS[name]]) if name in EXTRAS else set()
        for top in imported(path) - sys.stdlib_module_names - {"jobs"}:
            if not {canonicalize_name(origin) for origin in origins[top]} & (needed | optional):
                unmet.add(f"{name}: {top}")
    assert unmet == set()


def projects(requirements: Iterable[str]) -> set[str]:
    return {str(canonicalize_name(Requirement(line).name)) for line in requirements}


def imported(path: Path) -> set[str]:
    """The top-level names of all modules that a file imports, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found
