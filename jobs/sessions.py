"""What a task's body has done to its connections, and how they come back clean.

A run's end, the next job and the ledger's own statements use the connection that the body had. So a transaction that
the body has left open is rolled back, and a connection whose session the body has changed is closed: Django opens
another, with the state that the settings describe, when it is needed. Nothing is discarded in place: behind a pooler
of transactions, that would be somebody else's.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import psycopg
from django.db import DatabaseError, InterfaceError, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg import sql
from psycopg.pq import TransactionStatus

# Comments, and what is quoted; names in quotes. https://www.postgresql.org/docs/current/sql-syntax-lexical.html
# A name may contain dollars, so none of these begins in the middle of one.
_IN_A_NAME = r"[A-Za-z0-9_$\x80-\U0010ffff]"
_LINE = r"--[^\n\r]*"
_ESCAPED = r"'[^'\\]*(?:(?:''|\\.)[^'\\]*)*'"
_NO_STATEMENT = re.compile(
    rf"(?P<block>/\*)|{_LINE}|"
    # Text that goes on in another line has the escapes of its beginning.
    rf"(?<!{_IN_A_NAME})[eE]{_ESCAPED}(?:[ \t\f\v]*(?:{_LINE})?[\n\r](?:\s|{_LINE}[\n\r])*{_ESCAPED})*|"
    r"'[^']*(?:''[^']*)*'|"
    rf"(?<!{_IN_A_NAME})\$(?P<tag>(?:(?![0-9$]){_IN_A_NAME}(?:(?!\$){_IN_A_NAME})*)?)\$.*?\$(?P=tag)\$|"
    r'(?P<name>"[^"]*(?:""[^"]*)*")',
    re.DOTALL,
)
_EDGE_OF_A_COMMENT = re.compile(r"/\*|\*/")
# A function in SQL, whose body ends as a transaction may.
_FUNCTION = re.compile(
    r"((?:^|;)\s*CREATE\s+(?:OR\s+REPLACE\s+)?(?:FUNCTION|PROCEDURE)\b[^;]*?)"
    r"\bBEGIN\s+ATOMIC\b(?:\s*|.*?;\s*)END\b",
    re.DOTALL | re.IGNORECASE,
)
_AT_THE_BEGINNING = re.compile(
    r"(?:^|;)\s*(?:"
    r"(?P<local>SET\s+(?:LOCAL|TRANSACTION|CONSTRAINTS)\b)|"
    r"(?P<ends>(?:COMMIT|END|ROLLBACK(?!\s+(?:WORK\s+|TRANSACTION\s+)?TO\b)|ABORT|PREPARE\s+TRANSACTION)\b)|"
    r"(?P<session>(?:SET|RESET|LISTEN|UNLISTEN|PREPARE|DECLARE|DISCARD|LOAD|DO|CALL|"
    r"CREATE\s+(?:(?:GLOBAL|LOCAL|OR\s+REPLACE)\s+)*TEMP(?:ORARY)?)\b))",
    re.IGNORECASE,
)
_ANYWHERE = re.compile(
    r'(?P<local>\bset_config"?\s*\([^()]*,\s*true\s*\))|'
    r'(?P<session>\bset_config"?\s*\(|\bsetseed"?\s*\(|\bpg_(?:try_)?advisory_lock|\bpg_temp\b|\bdblink_connect|'
    r"\bINTO\s+(?:(?:GLOBAL|LOCAL)\s+)?TEMP)",
    re.IGNORECASE,
)
# Parameters of the session that somebody has set go back to what the connection began with, for this transaction.
_SET_BACK = """
SELECT set_config(name, reset_val, true) FROM pg_catalog.pg_settings
WHERE source = 'session' AND context = 'user' AND setting IS DISTINCT FROM reset_val AND name NOT LIKE 'transaction%'
"""
_ENDED = "The body has tried to end the transaction around it: nothing that it wrote is kept."
# Attributes of a psycopg connection that may be set inside a transaction as well.
_FACTORIES = ("row_factory", "cursor_factory", "server_cursor_factory")


class TransactionBroken(RuntimeError):
    """The body of an atomic task has done something to the transaction around it, which therefore does not stand."""


class Change(NamedTuple):
    """What a statement does beyond its rows: to the session, to the transaction around it, or it ends that."""

    session: bool
    local: bool
    ends: bool


@dataclass(slots=True)
class Session:
    """What is known of a physical connection since it was opened."""

    attributes: tuple[Any, ...]
    is_changed: bool = False
    is_changed_locally: bool = False
    is_ended: bool = False
    # Its transaction is the ledger's, and the body inside of it may not end it.
    is_guarded: bool = False

    def end(self) -> None:
        """Somebody is about to end its transaction. Raises TransactionBroken, before that is done, where nobody may."""
        self.is_ended = True
        if self.is_guarded:
            raise TransactionBroken(_ENDED)


class _Noticing:
    """A psycopg cursor that notes what changes its connection's session, whoever executes it."""

    connection: Any

    def execute(self, query: Any, *args: Any, **options: Any) -> Any:
        _note(self.connection, query)
        return super().execute(query, *args, **options)  # type: ignore[misc]

    def executemany(self, query: Any, *args: Any, **options: Any) -> Any:
        _note(self.connection, query)
        return super().executemany(query, *args, **options)  # type: ignore[misc]

    def stream(self, query: Any, *args: Any, **options: Any) -> Any:
        _note(self.connection, query)
        return super().stream(query, *args, **options)  # type: ignore[misc]


@lru_cache(maxsize=64)
def _noticing(factory: Any) -> Any:
    return factory if issubclass(factory, _Noticing) else type(factory.__name__, (_Noticing, factory), {})


def watch(connection: BaseDatabaseWrapper, **_: Any) -> None:
    """Receiver of `connection_created`: from now on, changes of this connection's session are noted."""
    physical: Any = connection.connection
    if isinstance(physical, psycopg.Connection) and _session(physical) is None:
        factory: Any = physical.cursor_factory
        physical.cursor_factory = _noticing(factory)
        physical.__dict__["handoff_session"] = Session(_attributes(physical))


def _session(physical: Any) -> Session | None:
    return physical.__dict__.get("handoff_session") if isinstance(physical, psycopg.Connection) else None


def _attributes(physical: Any) -> tuple[Any, ...]:
    return tuple(getattr(physical, name) for name in (*_FACTORIES, "isolation_level", "read_only", "deferrable"))


def _note(physical: Any, query: Any) -> None:
    session = _session(physical)
    if session is None:
        return
    if isinstance(query, bytes):
        query = query.decode(errors="replace")
    elif isinstance(query, sql.Composable):
        query = query.as_string(physical)
    change = change_by(str(query))
    session.is_changed |= change.session
    session.is_changed_locally |= change.local
    if change.ends:
        session.end()


@lru_cache(maxsize=1024)
def change_by(statement: str) -> Change:
    """What a statement changes, as far as its text tells. What a function of the database's own does is not seen."""
    text = _FUNCTION.sub(r"\1", _statements_of(statement))
    found = {match.lastgroup for pattern in (_AT_THE_BEGINNING, _ANYWHERE) for match in pattern.finditer(text)}
    return Change(*(name in found for name in ("session", "local", "ends")))


def _statements_of(statement: str) -> str:
    """The text without comments and what is quoted; in names nothing reads like a statement."""
    parts, begin = [], 0
    while hidden := _NO_STATEMENT.search(statement, begin):
        parts.append(statement[begin : hidden.start()])
        name = hidden["name"]
        parts.append(" " if name is None else re.sub(r"\W", "_", name[1:-1]).join('""'))
        begin = hidden.end() if hidden["block"] is None else _end_of_comment(statement, hidden.end())
    return "".join([*parts, statement[begin:]])


def _end_of_comment(statement: str, begin: int) -> int:
    """Where a comment between `/*` and `*/` ends, in which there may be others."""
    depth = 1
    for edge in _EDGE_OF_A_COMMENT.finditer(statement, begin):
        depth += 1 if edge[0] == "/*" else -1
        if depth == 0:
            return edge.end()
    return len(statement)


def is_changed(connection: Any) -> bool:
    """Whether the session of this connection is not as the settings describe it, as far as was noted."""
    session = _session(connection.connection)
    return session is not None and (session.is_changed or session.is_changed_locally)


class Mark(NamedTuple):
    """How a connection was before a body: its transactions, and the wrappers around its statements."""

    depth: int
    wrapper_count: int


def mark() -> dict[str, Mark]:
    """Each connection of this thread before a body."""
    for connection in _open_ones():
        session = _session(connection.connection)
        if session is not None:
            session.is_changed_locally = session.is_ended = False
    return {
        connection.alias: Mark(len(connection.atomic_blocks), len(connection.execute_wrappers))
        for connection in _open_ones()
    }


@contextmanager
def guarded(connection: Any) -> Iterator[None]:
    """In the block, nobody ends the transaction of this connection, neither by a statement nor below Django."""
    physical = connection.connection
    session = _session(physical)
    if session is None or session.is_guarded:
        yield
        return
    session.is_guarded = True
    physical.commit = physical.rollback = session.end
    try:
        yield
    finally:
        session.is_guarded = False
        del physical.commit, physical.rollback


def clean(before: dict[str, Mark]) -> list[str]:
    """After a body: each connection of this thread is as it was, or closed. Returns what the body has left open."""
    left = []
    for connection in _open_ones():
        was = before.get(connection.alias, Mark(0, 0))
        del connection.execute_wrappers[was.wrapper_count :]
        if _unwind(connection, was.depth):
            left.append(f"a transaction on the database {connection.alias!r}")
        if was.depth == 0 and connection.connection is not None:
            if _is_in_transaction(connection):
                left.append(f"a transaction on the database {connection.alias!r}")
                _discard(connection)
            elif _is_other_than_it_was(connection):
                _discard(connection)
    return left


def _open_ones() -> Iterator[Any]:
    yield from connections.all(initialized_only=True)


def _unwind(connection: Any, depth: int) -> bool:
    """Rolls back the blocks that were entered and not left; True where there were any."""
    blocks = connection.atomic_blocks[depth:]
    for block in reversed(blocks):
        error = RuntimeError("The body has left it open.")
        try:
            block.__exit__(type(error), error, None)
        except (DatabaseError, InterfaceError):
            connection.close()
    return bool(blocks)


def _is_in_transaction(connection: Any) -> bool:
    physical = connection.connection
    if isinstance(physical, psycopg.Connection):
        # Of a connection that is broken nothing is known: Django finds that out by itself.
        return physical.info.transaction_status not in (TransactionStatus.IDLE, TransactionStatus.UNKNOWN)
    return bool(connection.autocommit != connection.settings_dict["AUTOCOMMIT"])


def _is_other_than_it_was(connection: Any) -> bool:
    if connection.autocommit != connection.settings_dict["AUTOCOMMIT"]:
        return True
    physical = connection.connection
    session = _session(physical)
    return session is not None and (session.is_changed or session.attributes != _attributes(physical))


def _discard(connection: Any) -> None:
    """Closes a connection itself, also where Django would give it back to a pool."""
    physical = connection.connection
    if isinstance(physical, psycopg.Connection):
        physical.close()
    connection.close()


def whole(connection: Any, *, depth: int, before: dict[str, Mark]) -> None:
    """After the body of an atomic task: lets the rest of its transaction run as the settings describe.

    Raises TransactionBroken where the transaction is not the one that was begun before the body.
    """
    physical = connection.connection
    is_closed = isinstance(physical, psycopg.Connection) and physical.closed and not physical.broken
    if connection.closed_in_transaction or physical is None or is_closed:
        raise TransactionBroken("The body of an atomic task has closed its connection: nothing that it wrote is kept.")
    if _unwind(connection, depth):
        raise TransactionBroken("The body has left a transaction open: nothing that it wrote is kept.")
    del connection.execute_wrappers[before[connection.alias].wrapper_count if connection.alias in before else 0 :]
    session = _session(connection.connection)
    if session is None:
        return
    for name, value in zip(_FACTORIES, session.attributes, strict=False):
        setattr(connection.connection, name, value)
    if session.is_ended:
        raise TransactionBroken(_ENDED)
    if connection.connection.info.transaction_status is TransactionStatus.ACTIVE:
        raise TransactionBroken(
            "The body has gone on after its time limit had interrupted a query: nothing that it wrote is kept."
        )
    if session.is_changed or session.is_changed_locally:
        _set_back_inside(connection)


def _set_back_inside(connection: Any) -> None:
    """The session's first parameters, role and time zone, until the current transaction ends."""
    role = connection.settings_dict["OPTIONS"].get("assume_role")
    with connection.cursor() as cursor:
        # First, so that none of these is too slow for a time-out of the body's.
        cursor.execute("SET LOCAL statement_timeout = 0")
        cursor.execute("SET LOCAL SESSION AUTHORIZATION DEFAULT")
        cursor.execute(connection.ops.compose_sql("SET LOCAL ROLE %s", [role]) if role else "SET LOCAL ROLE NONE")
        cursor.execute(_SET_BACK)
