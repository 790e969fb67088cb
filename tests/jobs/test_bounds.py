"""How deep a JSON text is, whatever its strings say."""

import json
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from jobs.bounds import depth

texts = st.text(st.sampled_from('\\"[]{}a\n•'), max_size=8)
values = st.recursive(
    st.none() | st.integers() | texts,
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(texts, inside, max_size=3),
    max_leaves=20,
)


def levels(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(levels, value.values()), default=0)
    return 1 + max(map(levels, value), default=0) if isinstance(value, list) else 0


@given(value=values, is_ascii=st.booleans())
def test_brackets_count_outside_of_strings_alone(value: Any, is_ascii: bool) -> None:
    assert depth(json.dumps(value, ensure_ascii=is_ascii)) == levels(value)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 100, 100_000])
def test_however_deep_it_is(count: int) -> None:
    assert depth("[" * count + "]" * count) == count
    assert depth('{"a": ' * count + "1" + "}" * count) == count
