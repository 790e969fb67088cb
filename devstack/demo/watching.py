"""Watches one job until it has ended, and shows each step of its progress."""

from collections.abc import Callable
from typing import Any

from devstack.demo.report import Report, patiently

# Most jobs take a second or two, but a worker may have others before it; the first report loads the machine's fonts.
PATIENCE_SECONDS = 90


def watched(report: Report, look: Callable[[], dict[str, Any]], *, what: str) -> dict[str, Any]:
    """The job as `look` sees it in the end, in the shape of `GET /api/jobs/{id}`. Raises LookupError if none comes."""
    shown: set[str] = set()

    def ended() -> dict[str, Any] | None:
        job = look()
        line = f"{job['state']}, {job['progress']['percent']} %  {job['progress']['message']}".rstrip()
        if line not in shown:
            shown.add(line)
            report.step(f"  {what}: {line}")
        return job if job["state"] in ("completed", "failed", "cancelled") else None

    job = patiently(ended, seconds=PATIENCE_SECONDS)
    if job is None:
        raise LookupError(f"The job of {what} has not ended within {PATIENCE_SECONDS} s.")
    return job
