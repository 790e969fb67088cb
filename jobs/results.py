"""What callers are told of many jobs at once: a chain before its last step, or the members of a group."""

from collections.abc import Iterable, Iterator
from typing import Any

from celery.result import AsyncResult, ResultSet


def of_single_jobs(results: Iterable[Any]) -> Iterator[Any]:
    """These results in their order, those of a group in its place."""
    for result in results:
        if isinstance(result, ResultSet):
            yield from of_single_jobs(result.results)
        else:
            yield result


class JobResult(AsyncResult):
    """Celery's, except that those before it are read together."""

    def _maybe_reraise_parent_error(self) -> None:
        before = list(of_single_jobs(reversed(list(self._parents()))))
        self.backend.read_ended(before)
        for result in before:
            if result._cache is not None:
                result.maybe_throw()
