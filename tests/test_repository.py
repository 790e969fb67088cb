"""What holds of the repository itself: its files, its names, its locks, and what its tasks declare."""

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from celery import current_app
from django.apps import apps

from devstack.home import BASE_DIR
from jobs.queues import QUEUES
from jobs.task import JobTask

LONGEST_FILE_LINES = 600
# The longest lock is 200 kB; packages and films belong elsewhere.
LARGEST_FILE_BYTES = 500_000
# Names that say nothing: whatever has no better name lands there.
BANNED_MODULE_NAMES = {"utils", "helpers", "common", "core", "base", "misc"}
LOCKS = {
    "requirements.txt",
    "requirements-local.txt",
    "requirements-dev.txt",
    "requirements-uv.txt",
    "requirements-django-6.0.txt",
}
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(<?([^)\s>]+)>?[^)]*\)")
PAGE = re.compile(r"\bdocs/[\w/-]+\.md\b")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@cache
def files() -> tuple[Path, ...]:
    """Every file that belongs to the project."""
    # The checkout may belong to somebody else than who runs the tests, as in CI.
    command = ["git", "-c", f"safe.directory={BASE_DIR}", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=BASE_DIR, check=True, capture_output=True, text=True).stdout
    return tuple(path for name in listed.split("\0") if name and (path := BASE_DIR / name).is_file())


def named(path: Path) -> str:
    return path.relative_to(BASE_DIR).as_posix()


def with_suffix(*suffixes: str) -> list[Path]:
    return [path for path in files() if path.suffix in suffixes]


def our_packages() -> set[str]:
    """The top-level names of our own code."""
    return {named(path).partition("/")[0] for path in files() if path.name == "__init__.py"}


# -- Files and names ---------------------------------------------------------------------------------------------------
def test_what_a_server_keeps_beside_the_project_is_never_committed() -> None:
    secret = [".env", "docker-compose.override.yml", "handoff.dump", "media.tar", ".handoff/env"]
    command = ["git", "-c", f"safe.directory={BASE_DIR}", "check-ignore", "--no-index", *secret]
    ignored = subprocess.run(command, cwd=BASE_DIR, check=False, capture_output=True, text=True).stdout
    assert ignored.split() == secret


def test_no_file_is_longer_than_people_can_follow() -> None:
    texts = with_suffix(".py", ".html", ".css", ".js", ".md", ".sh", ".toml", ".yml", ".in")
    lengths = {named(path): len(path.read_text().splitlines()) for path in texts}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE_LINES} == {}


def test_no_file_is_larger_than_a_clone_should_carry() -> None:
    sizes = {named(path): path.stat().st_size for path in files()}
    assert {name: size for name, size in sizes.items() if size > LARGEST_FILE_BYTES} == {}


def test_every_module_has_a_name_that_says_something() -> None:
    nothing_said = [
        named(path) for path in with_suffix(".py", ".html", ".css", ".js") if path.stem in BANNED_MODULE_NAMES
    ]
    packages = [named(path) for path in with_suffix(".py") if path.parent.name in BANNED_MODULE_NAMES]
    assert nothing_said + packages == []


def test_every_module_says_what_it_is_for() -> None:
    silent = []
    for path in with_suffix(".py"):
        source = path.read_text()
        if "tests" in path.parts or "migrations" in path.parts or path.name == "manage.py" or not source.strip():
            continue
        if not ast.get_docstring(ast.parse(source)):
            silent.append(named(path))
    assert silent == []


def test_every_installed_app_of_ours_has_a_sentence_of_its_own() -> None:
    ours = [config for config in apps.get_app_configs() if config.name.partition(".")[0] in our_packages()]
    assert {"jobs", "accounts", "notifications"} <= {config.name for config in ours}
    assert [config.name for config in ours if not type(config).__doc__] == []


# -- Documents ---------------------------------------------------------------------------------------------------------
def links() -> Iterator[tuple[Path, str]]:
    for page in with_suffix(".md"):
        for link in LINK.findall(FENCE.sub("", page.read_text())):
            if not re.match(r"[a-z]+:", link):
                yield page, link


def anchors(page: Path) -> set[str]:
    """The anchors that the headings of a page get: lower case, no punctuation, dashes for blanks."""
    headings = HEADING.findall(FENCE.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def test_every_link_and_picture_in_the_documents_is_there() -> None:
    broken = []
    for page, link in links():
        target, _, anchor = link.partition("#")
        found = (page.parent / target).resolve() if target else page
        if not found.exists() or (anchor and found.suffix == ".md" and anchor not in anchors(found)):
            broken.append(f"{named(page)}: {link}")
    assert broken == []


def test_every_page_that_code_refers_to_is_there() -> None:
    referred = {(named(path), page) for path in with_suffix(".py") for page in PAGE.findall(path.read_text())}
    assert referred
    assert sorted((name, page) for name, page in referred if not (BASE_DIR / page).is_file()) == []


def test_every_package_has_its_line_in_the_architecture() -> None:
    text = (BASE_DIR / "docs" / "architecture.md").read_text()
    assert sorted(name for name in our_packages() if f"| `{name}/` |" not in text) == []


def test_every_page_of_the_documents_can_be_reached_from_the_readme() -> None:
    reached = {BASE_DIR / "README.md"}
    while True:
        found = {(page.parent / link.partition("#")[0]).resolve() for page, link in links() if page in reached}
        if found <= reached:
            break
        reached |= found
    pages = {path for path in with_suffix(".md") if (BASE_DIR / "docs") in path.parents}
    # A link to the folder of decision records reaches them all.
    reached |= {page for page in pages if page.parent in reached}
    assert sorted(named(page) for page in pages - reached) == []


def test_decision_records_are_numbered_without_gaps_and_titled_so() -> None:
    records = sorted(path for path in with_suffix(".md") if path.parent == BASE_DIR / "docs" / "adr")
    numbers = [int(record.name[:4]) for record in records]
    assert numbers == list(range(1, len(records) + 1))
    for number, record in zip(numbers, records, strict=True):
        assert record.read_text().startswith(f"# {number}. "), named(record)
        assert {"Context", "Decision", "Consequences"} <= set(HEADING.findall(record.read_text())), named(record)


# -- Guarantees --------------------------------------------------------------------------------------------------------
def guarantee_blocks() -> dict[str, str]:
    text = (BASE_DIR / "docs" / "guarantees.md").read_text()
    parts = re.split(r"^## (G\d\d): ", text, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def guarantee_tests() -> dict[str, Path]:
    return {path.name[5:8].upper(): path for path in (BASE_DIR / "tests" / "guarantees").glob("test_g[0-9][0-9]_*.py")}


def test_every_guarantee_is_tested_and_every_tested_guarantee_is_written_down() -> None:
    assert sorted(guarantee_blocks()) == sorted(guarantee_tests())


@pytest.mark.parametrize("number", sorted(guarantee_tests()))
def test_the_block_of_a_guarantee_names_its_limits_its_mechanism_and_its_tests(number: str) -> None:
    block, file = guarantee_blocks()[number], guarantee_tests()[number]
    for label in ("Holds when", "Within", "Limits", "Not promised", "Mechanism", "Tests"):
        assert f"\n* **{label}**: " in block
    assert named(file) in block
    claims = {node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)}
    told = set(re.findall(r"`(test_\w+)`", block))
    assert told
    assert told <= claims


@pytest.mark.parametrize("number", sorted(guarantee_tests()))
def test_the_mechanism_of_a_guarantee_exists(number: str) -> None:
    (mechanism,) = re.findall(r"^\* \*\*Mechanism\*\*: (.+?)(?=^\* |\Z)", guarantee_blocks()[number], re.M | re.S)
    names = re.findall(rf"`((?:{'|'.join(our_packages())})\.[\w.]+)`", mechanism)
    assert names
    for name in names:
        assert is_defined(name), name


def is_defined(name: str) -> bool:
    """Whether `package.module.name` or `package.module.Class.name` is in the source."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        file = BASE_DIR.joinpath(*parts[:length]).with_suffix(".py")
        if file.is_file():
            return all(re.search(rf"^\s*((def|class) )?{part}\b", file.read_text(), re.M) for part in parts[length:])
    return False


# -- Dependencies ------------------------------------------------------------------------------------------------------
def test_every_dependency_has_a_line_of_reason_above_it() -> None:
    bare = []
    for path in with_suffix(".in"):
        above = ""
        for line in path.read_text().splitlines():
            is_same_again = requirement(above) == requirement(line) != ""
            if requirement(line) and not above.startswith("#") and not is_same_again:
                bare.append(f"{path.name}: {line}")
            above = line
    assert bare == []


def requirement(line: str) -> str:
    found = re.match(r"[A-Za-z][\w.-]*", line)
    return found.group() if found else ""


def test_every_list_of_dependencies_has_a_lock() -> None:
    assert {path.with_suffix(".txt").name for path in with_suffix(".in")} == LOCKS
    assert all((BASE_DIR / name).is_file() for name in LOCKS)


@pytest.mark.parametrize("name", sorted(LOCKS))
def test_a_lock_has_a_hash_for_everything_and_names_no_registry(name: str) -> None:
    text = (BASE_DIR / name).read_text()
    assert "://" not in text
    assert "index-url" not in text
    entries = re.split(r"^(?=\S+==)", text, flags=re.MULTILINE)[1:]
    assert entries
    assert [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry] == []


@pytest.mark.parametrize("name", sorted(LOCKS))
def test_a_lock_holds_what_its_list_names(name: str) -> None:
    listed = (BASE_DIR / name).with_suffix(".in").read_text().splitlines()
    locked = set(re.findall(r"^([\w.-]+)==", (BASE_DIR / name).read_text(), re.MULTILINE))
    wanted = {normalized(requirement(line)) for line in listed if requirement(line)}
    assert wanted - {normalized(entry) for entry in locked} == set()


def normalized(project: str) -> str:
    return re.sub(r"[-_.]+", "-", project).lower()


# -- Tasks -------------------------------------------------------------------------------------------------------------
def our_tasks() -> list[JobTask]:
    current_app.loader.import_default_modules()
    packages = our_packages() - {"tests"}
    return [task for name, task in sorted(current_app.tasks.items()) if name.partition(".")[0] in packages]


def test_our_tasks_are_jobs_of_the_ledger() -> None:
    assert "notifications.tasks.send_welcome" in [task.name for task in our_tasks()]
    assert [task.name for task in our_tasks() if not isinstance(task, JobTask)] == []


def test_every_task_states_its_queue_its_retries_and_its_limits() -> None:
    wanted = {"queue", "autoretry_for", "retry_backoff", "max_retries", "soft_time_limit", "time_limit"}
    # What a task declares is in its own class, or where the ledger keeps what it reads through properties.
    missing = {task.name: wanted - (task._declared.keys() | vars(type(task)).keys()) for task in our_tasks()}
    assert {name: sorted(names) for name, names in missing.items() if names} == {}


def test_every_task_names_a_declared_queue_and_limits_that_follow_each_other() -> None:
    for task in our_tasks():
        assert task.queue in QUEUES, task.name
        assert 0 < task.soft_time_limit < task.time_limit, task.name


def test_every_task_says_in_a_sentence_what_it_does() -> None:
    assert [task.name for task in our_tasks() if not (task.run.__doc__ or "").strip()] == []
