"""System checks of the servers that the project stands on."""

import re
from collections.abc import Sequence
from typing import Any

import redis
from django.core.checks import CheckMessage, Error, Tags, register, run_checks
from django.core.management.base import SystemCheckError
from django.db import DatabaseError, InterfaceError, connections

from jobs.doorbell import client_within

# SKIP LOCKED and multi-row claims are older; 14 is what Django 5.2 supports.
OLDEST_POSTGRESQL = 14
# Valkey reports the Redis version it is compatible with.
OLDEST_REDIS = (6, 2)


@register(Tags.database)
def check_postgresql(databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """PostgreSQL is new enough. One that is away is no error: web and workers wait for it."""
    messages: list[CheckMessage] = []
    for alias in databases or []:
        connection = connections[alias]
        try:
            with connection.cursor() as cursor:
                cursor.execute("SHOW server_version_num")
                version = int(cursor.fetchone()[0]) // 10_000
        except (DatabaseError, InterfaceError):
            continue
        if version < OLDEST_POSTGRESQL:
            messages.append(
                Error(
                    f"PostgreSQL {version} is too old: {OLDEST_POSTGRESQL} or newer is needed.",
                    hint="Upgrade the server that DATABASE_URL names, or name another.",
                    id="config.E001",
                )
            )
    return messages


@register(Tags.database)
def check_redis(databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """Redis, or Valkey, is new enough. One that is away is no error: jobs wait in the database."""
    if not databases:
        return []
    try:
        with client_within(2) as client:
            found = str(client.info("server")["redis_version"])
    except (redis.RedisError, OSError, ValueError):
        # A URL that names no Redis is told by the ledger's own check.
        return []
    version = tuple(int(part) for part in re.findall(r"\d+", found)[:2])
    if version >= OLDEST_REDIS:
        return []
    needed = ".".join(str(part) for part in OLDEST_REDIS)
    return [
        Error(
            f"Redis {found} is too old: {needed} or newer (or Valkey) is needed.",
            hint="Upgrade the server that REDIS_URL names, or name another.",
            id="config.E002",
        )
    ]


def refuse_old_servers() -> None:
    """At the start of a web process, worker or beat: raises SystemCheckError with the sentences of the checks above."""
    errors = [message for message in run_checks(tags=[Tags.database], databases=["default"]) if message.is_serious()]
    connections.close_all()
    if errors:
        raise SystemCheckError("\n".join(f"{error}" for error in errors))
