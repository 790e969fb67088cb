"""The environment, read once. Nothing else in the project looks at `os.environ` for a setting.

Each variable may come, in this order, from the process environment, from a mounted file named by `NAME_FILE` (Docker
and Kubernetes secrets), from `.env` beside `manage.py`, and last from the file that `bin/up` writes while the local
stack runs. `.env.example` lists them all; a test compares the two.
"""

import os
from pathlib import Path
from typing import Any, Self

from django.core.exceptions import ImproperlyConfigured
from pydantic import Field, RedisDsn, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from jobs.defaults import JOBS
from webhooks.addresses import networks

BASE_DIR = Path(__file__).resolve().parent.parent


def handoff_home() -> Path:
    """The data folder of the local stack: `HANDOFF_HOME`, or `.handoff` beside `manage.py`."""
    return Path(os.environ.get("HANDOFF_HOME") or BASE_DIR / ".handoff").expanduser().absolute()


class Environment(BaseSettings):
    """Every variable that the project reads, with its type, its default and what it is for."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore", case_sensitive=False)

    handoff_home: Path = Field(
        default_factory=handoff_home, description="Data folder of the local stack and of uploads"
    )
    secret_key: SecretStr = Field(min_length=32, description="Signs sessions and tokens: at least 32 random characters")
    debug: bool = Field(False, description="Django's debug pages; never in production")
    allowed_hosts: str = Field("", description="Host names that the web answers to, separated by commas")
    site_url: str = Field(
        "http://127.0.0.1:8000", pattern=r"^https?://[^/]+$", description="Address of the site in mails"
    )
    behind_tls_proxy: bool = Field(
        False, description="TLS ends in a proxy that sets X-Forwarded-Proto: secure cookies, HSTS"
    )

    database_url: str = Field(pattern=r"^postgres(ql)?://", description="postgres://user:password@host:5432/name")
    database_password: SecretStr = Field(SecretStr(""), description="Its password, where DATABASE_URL has none")
    redis_url: RedisDsn | None = Field(None, description="redis://:password@host:6379/0, or the three variables below")
    redis_host: str = Field("", description="Redis host, where REDIS_URL is not set")
    redis_port: int = Field(6379, ge=1, le=65535, description="Redis port")
    redis_password: SecretStr = Field(SecretStr(""), description="Redis password")

    email_host: str = Field("127.0.0.1", description="SMTP server")
    email_port: int = Field(25, ge=1, le=65535, description="SMTP port")
    email_host_user: str = Field("", description="SMTP user, where the server wants one")
    email_host_password: SecretStr = Field(SecretStr(""), description="SMTP password")
    email_use_tls: bool = Field(False, description="STARTTLS (port 587)")
    email_use_ssl: bool = Field(False, description="TLS from the first byte (port 465)")
    email_timeout_seconds: float = Field(10, gt=0, description="How long one SMTP step may take")
    default_from_email: str = Field("Handoff <hello@handoff.invalid>", description="Sender of all mail")

    picture_max_bytes: int = Field(20 * 1024**2, ge=1024, description="Largest picture that may be uploaded")
    picture_max_pixels: int = Field(
        50_000_000, ge=1_000_000, description="Largest width × height of a picture: it is decoded in memory"
    )
    video_max_bytes: int = Field(200 * 1024**2, ge=1024, description="Largest video that may be uploaded")
    video_max_pixels: int = Field(
        36_000_000, ge=1_000_000, description="Largest width × height of a video: a frame is decoded in memory"
    )

    webhook_allowed_networks: str = Field(
        "", description="Private networks that webhooks may be sent to, like 10.1.0.0/16, separated by commas"
    )

    crm_base_url: str = Field(
        "", pattern=r"^(https?://\S+[^\s/])?$", description="The CRM's API, like https://api.hubapi.com; empty: no CRM"
    )
    crm_token: SecretStr = Field(SecretStr(""), description="Token of the CRM's API")

    flower_url: str = Field(
        "http://127.0.0.1:5555", pattern=r"^https?://[^/]+$", description="Where Flower listens; never public"
    )
    sentry_dsn: str = Field(
        "",
        pattern=r"^(https?://[^@/\s]+@[^/\s]+/\S+)?$",
        description="Error tracker that hears of jobs that failed for good, like https://key@host/1; empty: none",
    )
    log_level: str = Field("INFO", pattern=r"^(DEBUG|INFO|WARNING|ERROR)$", description="DEBUG, INFO, WARNING or ERROR")

    jobs_lease_seconds: float = Field(
        JOBS["JOBS_LEASE_SECONDS"], gt=0, description="A worker that is silent for so long is given up"
    )
    jobs_heartbeat_seconds: float = Field(
        JOBS["JOBS_HEARTBEAT_SECONDS"], gt=0, description="How often a worker renews its lease"
    )
    jobs_grace_seconds: float = Field(
        JOBS["JOBS_GRACE_SECONDS"], ge=0, description="How long running jobs may take when a worker is stopped"
    )
    jobs_cancel_grace_seconds: float = Field(
        JOBS["JOBS_CANCEL_GRACE_SECONDS"],
        ge=0,
        description="How long the run of a cancelled job may go on before it is ended",
    )
    jobs_dispatch_seconds: float = Field(
        JOBS["JOBS_DISPATCH_SECONDS"], gt=0, description="Pause between two looks of the dispatcher"
    )
    jobs_log_lines: int = Field(
        JOBS["JOBS_LOG_LINES"], ge=0, description="Log lines that are kept of one run of a job, at most"
    )
    jobs_log_bytes: int = Field(JOBS["JOBS_LOG_BYTES"], ge=0, description="The same in bytes")
    jobs_payload_max_bytes: int = Field(
        JOBS["JOBS_PAYLOAD_MAX_BYTES"], ge=1024, description="Largest arguments of one job"
    )
    jobs_result_max_bytes: int = Field(
        JOBS["JOBS_RESULT_MAX_BYTES"], ge=1024, description="Largest result of one job; one with a larger result fails"
    )

    @field_validator("webhook_allowed_networks")
    @classmethod
    def _are_networks(cls, value: str) -> str:
        networks(value)
        return value

    @model_validator(mode="after")
    def _redis_is_named(self) -> Self:
        if self.redis_url is None and not self.redis_host:
            raise ValueError("REDIS_URL (or REDIS_HOST): expected where Redis is, like redis://localhost:6379/0")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (
            env_settings,
            MountedFiles(settings_cls),
            DotEnvSettingsSource(settings_cls, env_file=BASE_DIR / ".env"),
            LocalStack(settings_cls, env_file=handoff_home() / "env"),
        )


class MountedFiles(EnvSettingsSource):
    """`SECRET_KEY_FILE=/run/secrets/key` gives SECRET_KEY the content of that file."""

    def __call__(self) -> dict[str, Any]:
        values = {}
        for name in self.settings_cls.model_fields:
            if path := os.environ.get(f"{name.upper()}_FILE"):
                try:
                    values[name] = Path(path).read_text().strip()
                except OSError as error:
                    raise ImproperlyConfigured(f"{name.upper()}_FILE: cannot read {path}: {error.strerror}") from error
        return values


class LocalStack(DotEnvSettingsSource):
    """What `bin/up` wrote. Its REDIS_URL gives way to a REDIS_HOST that a person has set, which it would otherwise
    outdo: the two names are one thing."""

    def __call__(self) -> dict[str, Any]:
        values = super().__call__()
        if self.current_state.get("redis_host"):
            values.pop("redis_url", None)
        return values


def read() -> Environment:
    """The environment, checked.

    Raises ImproperlyConfigured with a line for each variable that is missing or wrong: its name, and what was expected.
    """
    try:
        return Environment()
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            if not problem["loc"]:
                lines.append(problem["msg"].removeprefix("Value error, "))
                continue
            name = str(problem["loc"][0])
            expected = Environment.model_fields[name].description
            found = "it is not set" if problem["type"] == "missing" else problem["msg"]
            lines.append(f"{name.upper()}: {found}. Expected: {expected}")
        hint = "Set them in the environment or in .env (see .env.example), or start the local stack with bin/up."
        raise ImproperlyConfigured("\n  ".join(["The environment is not complete:", *lines, hint])) from None
