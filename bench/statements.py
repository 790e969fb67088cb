"""Which kinds of statements PostgreSQL spends its time on, by its own extension pg_stat_statements."""

import re
from dataclasses import dataclass
from typing import Any

import psycopg

from bench.bystanders import MARK
from devstack.postgres import Postgres
from devstack.throwaway import Servers

_LONGEST = 110
_SLOWEST = """
SELECT query, calls, mean_exec_time, max_exec_time, total_exec_time / sum(total_exec_time) OVER ()
FROM pg_stat_statements JOIN pg_database ON pg_database.oid = dbid
WHERE datname = current_database() AND query NOT LIKE %s
ORDER BY total_exec_time DESC LIMIT %s
"""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of statement: all those that differ in their values alone."""

    text: str
    calls: int
    mean_ms: float
    max_ms: float
    share: float


def load_extension(servers: Servers) -> None:
    """Lets the server count its statements. To be called before it starts."""
    assert servers.postgres is not None
    assert isinstance(servers.postgres.engine, Postgres)
    engine = servers.postgres.engine
    engine.settings = {
        **engine.settings,
        "shared_preload_libraries": "pg_stat_statements",
        "pg_stat_statements.track_planning": "off",
    }


def begin_to_count(connection: "psycopg.Connection[Any]") -> None:
    """Forgets what was counted so far."""
    connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
    connection.execute("SELECT pg_stat_statements_reset()")


def slowest(connection: "psycopg.Connection[Any]", count: int = 8) -> list[Kind]:
    """Those that took the most time in all, without those of bystanders."""
    rows = connection.execute(_SLOWEST, [f"%{MARK}%", count]).fetchall()
    return [
        Kind(text=_short(text), calls=calls, mean_ms=mean, max_ms=most, share=float(share))
        for text, calls, mean, most, share in rows
    ]


def _short(text: str) -> str:
    """The beginning of a statement in one line, without its lists of columns."""
    words = " ".join(text.split())
    words = re.sub(r'SELECT ("?\w+"?\.)?"?\w+"?(, [^()]*?)+ FROM', "SELECT … FROM", words)
    words = re.sub(r"(INSERT INTO \S+) \([^)]*\)", r"\1 (…)", words)
    return words if len(words) <= _LONGEST else words[: _LONGEST - 2] + " …"
