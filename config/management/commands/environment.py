"""`manage.py environment` prints `docs/environment.md` from what `config.env` reads; a test compares the two."""

from typing import Any

from django.core.management.base import BaseCommand
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from config.env import Environment

_HEAD = """\
# Environment variables

Made from `config/env.py` by `python manage.py environment > docs/environment.md`; a test compares them.

A variable comes from the process environment, else from the file that `NAME_FILE` names (a mounted secret), else from
`.env` beside `manage.py`, else from what `bin/up` has written. A process that misses one, or finds one that makes no
sense, does not start and says which. Locally, `bin/up` sets all that are required. `HANDOFF_HOME` is `.handoff` beside
`manage.py` where nothing else is said.

| Variable | Default | Meaning |
| --- | --- | --- |
"""


class Command(BaseCommand):
    """Prints every variable that the project reads, as a table in Markdown."""

    help = "Prints docs/environment.md, made from config/env.py."

    def handle(self, *args: Any, **options: Any) -> None:
        self.stdout.write(page(), ending="")


def page() -> str:
    """The whole page. The same declarations give the same text."""
    rows = [
        f"| `{name.upper()}` | {_default(field)} | {field.description} |\n"
        for name, field in Environment.model_fields.items()
    ]
    return _HEAD + "".join(rows)


def _default(field: FieldInfo) -> str:
    default = field.default
    if field.is_required():
        return "required"
    if default in ("", None, PydanticUndefined) or (
        hasattr(default, "get_secret_value") and not default.get_secret_value()
    ):
        return "–"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"
