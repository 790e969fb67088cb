"""Which parts of a statement's text are statements, compared with what PostgreSQL itself makes of them."""

import re
from typing import Any

import hypothesis.strategies as st
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from psycopg.pq import TransactionStatus

from jobs.sessions import change_by
from tests.processes import database_url
from tests.variants import examples

# What opens and closes, escapes and separates; and what must not be seen inside of it.
PIECES = ("'", '"', "\\", "/*", "*/", "--", "\n", "\r", "$$", "$a$", "$", ";", " ", "E", "a", "é", ";COMMIT;", "END")
CONTENT = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)
DELIMITERS = ("$$", "$a$", "$é$", "$E_1$")


def quoted(content: str) -> str:
    return "'" + content.replace("'", "''") + "'"


def escaped(content: str) -> str:
    return "'" + content.replace("\\", r"\\").replace("'", r"\'") + "'"


def in_dollars(delimiter: str, content: str) -> str:
    # A content in which the delimiter would end is another one.
    is_cut = (content + delimiter).find(delimiter) != len(content)
    return delimiter + ("" if is_cut else content) + delimiter


def commented(inner: list[str]) -> str:
    return f"/*{' '.join(inner)}*/"


WITHOUT_COMMENTS = CONTENT.map(lambda content: re.sub(r"[/*]", "", content))
BLOCKS = st.recursive(
    WITHOUT_COMMENTS.map(lambda content: f"/*{content}*/"), lambda inner: st.lists(inner, max_size=3).map(commented)
)
LINES = st.builds(lambda content, end: re.sub(r"[\r\n]", "", f"--{content}") + end, CONTENT, st.sampled_from("\r\n"))
GAPS = st.one_of(st.just(" "), st.just("\n"), BLOCKS, LINES)
VALUES = st.one_of(
    CONTENT.map(quoted),
    CONTENT.map(lambda content: "N" + quoted(content)),
    CONTENT.map(lambda content: "U&" + quoted(content.replace("\\", r"\\"))),
    CONTENT.map(lambda content: "e" + escaped(content)),
    # Text goes on in another line, with the escapes of its beginning.
    st.builds(lambda one, line, two: f"E{escaped(one)} {line}{escaped(two)}", CONTENT, LINES, CONTENT),
    st.builds(lambda one, two: f"{quoted(one)}\n{quoted(two)}", CONTENT, CONTENT),
    st.builds(in_dollars, st.sampled_from(DELIMITERS), CONTENT),
)
NAMES = st.one_of(
    st.sampled_from(["a$$", "b$a$", "é$$", "begin", "e"]),
    CONTENT.map(lambda content: '"x' + content.replace('"', '""') + '"'),
    CONTENT.map(lambda content: 'U&"x' + content.replace("\\", r"\\").replace('"', '""') + '"'),
)
QUERIES = st.builds(lambda value, gap, name: f"SELECT{gap}{value}{gap}AS{gap}{name}", VALUES, GAPS, NAMES)
STATEMENTS = st.lists(
    st.tuples(GAPS, st.one_of(QUERIES, QUERIES, QUERIES, st.sampled_from(["COMMIT", "end", "Rollback"])), GAPS).map(
        "".join
    ),
    min_size=1,
    max_size=3,
).map(";".join)


# PostgreSQL is asked for each example.
@pytest.mark.timeout(600)
@pytest.mark.django_db
def test_the_end_of_a_transaction_is_seen_where_postgresql_sees_one_and_nowhere_else() -> None:
    with psycopg.connect(database_url()) as connection:

        @settings(max_examples=examples(share=0.1), deadline=None, suppress_health_check=list(HealthCheck))
        @given(statement=STATEMENTS)
        def holds(statement: str) -> None:
            connection.rollback()
            connection.execute("SET LOCAL client_min_messages = error")
            connection.execute(statement.encode())
            is_ended = connection.info.transaction_status is TransactionStatus.IDLE
            assert change_by(statement).ends is is_ended

        holds()
        connection.rollback()


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("/* /* */ SET x */ SET statement_timeout = 1", "session"),
        ("/* /* */ */ SET statement_timeout = 1", "session"),
        ("/* /* */ SET x; COMMIT; */ SELECT 1", ""),
        ("/*/ SET x */ SELECT 1", ""),
        ("-- /*\nLISTEN gossip -- */", "session"),
        ("SELECT '/*'; LISTEN gossip; SELECT '*/'", "session"),
        ("SELECT '--'; LISTEN gossip", "session"),
        ("SELECT 1 AS a$$; LISTEN gossip; SELECT 2 AS b$$", "session"),
        ("SELECT $a$ $$; LISTEN gossip; $b$ $A$; LISTEN gossip; $a$", ""),
        ("SELECT E'a'\n'\\'; LISTEN gossip; '", ""),
        ('SELECT 1 AS U&"; LISTEN gossip; "', ""),
        ("""SELECT "set_config"('statement_timeout', '1h', false)""", "session"),
        ("""SELECT pg_catalog."set_config"('statement_timeout', '1h', true)""", "local"),
        ("SELECT set_config/* so */('statement_timeout', '1h', false)", "session"),
        ('SELECT "setseed"(0.5)', "session"),
        ("SELECT 1 AS one INTO LOCAL TEMP mine", "session"),
        ("SELECT 1 AS one INTO GLOBAL /* so */ TEMPORARY mine", "session"),
    ],
)
def test_what_a_statement_changes_is_seen_behind_what_hides_it(statement: str, found: str) -> None:
    change: Any = change_by(statement)
    assert [name for name in change._fields if getattr(change, name)] == ([found] if found else [])
