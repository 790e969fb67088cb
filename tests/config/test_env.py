"""The environment: what it must hold, where it may come from, and what is said when it is wrong."""

from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured
from pydantic_core import PydanticUndefined

from config import env
from devstack.home import BASE_DIR

EXAMPLE = BASE_DIR / ".env.example"


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    for name in env.Environment.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HANDOFF_HOME", str(tmp_path))
    monkeypatch.setenv("SECRET_KEY", "k" * 32)
    monkeypatch.setenv("DATABASE_URL", "postgres://user:password@host:5432/name")
    monkeypatch.setenv("REDIS_URL", "redis://:password@host:6379/0")
    return monkeypatch


def described() -> str:
    """What `.env.example` must say: each variable with its purpose and its default, all switched off."""
    paragraphs = [
        "# Copy to .env and set what differs. In containers: variables, or NAME_FILE with the path of a file."
    ]
    for name, field in env.Environment.model_fields.items():
        default = "" if field.default in (PydanticUndefined, None) else field.default
        text = getattr(default, "get_secret_value", lambda default=default: str(default))()
        paragraphs.append(f"# {field.description}\n# {name.upper()}={text}".rstrip())
    return "\n\n".join(paragraphs) + "\n"


def test_the_example_lists_what_is_read() -> None:
    assert EXAMPLE.read_text() == described()


def test_a_complete_environment_is_taken(complete: pytest.MonkeyPatch) -> None:
    assert env.read().database_url.endswith("/name")


def test_each_missing_variable_is_named_with_what_it_should_hold(complete: pytest.MonkeyPatch) -> None:
    for name in ("SECRET_KEY", "DATABASE_URL", "REDIS_URL"):
        complete.delenv(name)
    with pytest.raises(ImproperlyConfigured) as caught:
        env.read()
    said = str(caught.value)
    assert "SECRET_KEY: it is not set. Expected: Signs sessions and tokens" in said
    assert "DATABASE_URL: it is not set. Expected: postgres://" in said
    assert "bin/up" in said


def test_redis_must_be_named_one_way_or_the_other(complete: pytest.MonkeyPatch) -> None:
    complete.delenv("REDIS_URL")
    with pytest.raises(ImproperlyConfigured, match=r"REDIS_URL \(or REDIS_HOST\)"):
        env.read()
    complete.setenv("REDIS_HOST", "redis.internal")
    assert env.read().redis_host == "redis.internal"


@pytest.mark.parametrize(
    ("name", "value"),
    [("SECRET_KEY", "short"), ("DATABASE_URL", "mysql://host/name"), ("EMAIL_PORT", "0"), ("LOG_LEVEL", "LOUD")],
)
def test_a_wrong_value_is_refused_by_name(complete: pytest.MonkeyPatch, name: str, value: str) -> None:
    complete.setenv(name, value)
    with pytest.raises(ImproperlyConfigured, match=name):
        env.read()


def test_a_secret_may_come_from_a_mounted_file(complete: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secret = tmp_path / "key"
    secret.write_text("m" * 40 + "\n")
    complete.delenv("SECRET_KEY")
    complete.setenv("SECRET_KEY_FILE", str(secret))
    assert env.read().secret_key.get_secret_value() == "m" * 40


def test_a_mounted_file_that_is_not_there_is_named(complete: pytest.MonkeyPatch) -> None:
    complete.setenv("SECRET_KEY_FILE", "/nowhere/key")
    with pytest.raises(ImproperlyConfigured, match="SECRET_KEY_FILE: cannot read /nowhere/key"):
        env.read()


def test_what_the_local_stack_wrote_comes_last(complete: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "env").write_text(f"SECRET_KEY={'w' * 40}\nEMAIL_PORT=2525\n")
    assert env.read().email_port == 2525
    assert env.read().secret_key.get_secret_value() == "k" * 32


def test_a_redis_that_a_person_names_in_parts_comes_before_that_of_the_local_stack(
    complete: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "env").write_text("REDIS_URL=redis://:local@127.0.0.1:8002/0\n")
    complete.delenv("REDIS_URL")
    assert str(env.read().redis_url) == "redis://:local@127.0.0.1:8002/0"
    complete.setenv("REDIS_HOST", "redis.internal")
    assert env.read().redis_url is None
