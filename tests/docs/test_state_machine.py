import inspect
from io import StringIO

import pytest
from django.core.management import call_command
from django.utils.module_loading import import_string

from devstack.home import BASE_DIR
from jobs.management.commands.state_machine import CAUSE_MEANINGS, STATE_MEANINGS
from jobs.states import END_STATES, LIVE_STATES, TRANSITIONS, Cause, State


def test_the_page_equals_the_table_of_transitions() -> None:
    printed = StringIO()
    call_command("state_machine", stdout=printed)
    assert (BASE_DIR / "docs" / "state_machine.md").read_text() == printed.getvalue(), (
        "python manage.py state_machine > docs/state_machine.md"
    )


def test_every_state_and_every_cause_is_explained() -> None:
    assert set(STATE_MEANINGS) == set(State) == {*LIVE_STATES, *END_STATES}
    assert set(CAUSE_MEANINGS) == set(Cause) == {transition.cause for transition in TRANSITIONS}


@pytest.mark.parametrize("cause", Cause, ids=lambda cause: cause.name)
def test_the_function_that_is_named_as_the_writer_of_a_cause_writes_it(cause: Cause) -> None:
    writer = CAUSE_MEANINGS[cause][1]
    if writer.startswith("jobs.claims."):
        assert callable(import_string(writer))
    else:
        assert f"Cause.{cause.name}" in inspect.getsource(import_string(writer))
