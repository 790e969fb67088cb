"""What happens once a transaction has committed."""

from collections.abc import Callable

from django.db import router, transaction

from jobs.models import Job


def then(act: Callable[[], object], *, using: str | None = None) -> None:
    """Calls `act` once the current transaction has committed; at once where there is none.

    An error of it is logged, and what else waits for the commit goes on. `using`: another database than the ledger's.
    """

    # Django names a callback that has failed by its `__qualname__`, which a partial has not: it would fail once more.
    def after_the_commit() -> None:
        act()

    after_the_commit.__wrapped__ = act  # type: ignore[attr-defined]
    after_the_commit.__qualname__ = getattr(act, "__qualname__", None) or repr(getattr(act, "func", act))
    transaction.on_commit(after_the_commit, using=using or router.db_for_write(Job), robust=True)
