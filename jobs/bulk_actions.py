"""What an operator wants for all jobs that match a filter: asked for here, carried out by a job of its own.

See `jobs.job_filter` for the dry run, and `jobs.batches` for how it is carried out.
"""

from collections.abc import Mapping
from typing import Any

from django.template.defaultfilters import pluralize
from django.utils.text import capfirst

from jobs import audit, claims, limits, payloads, selectors, settle
from jobs.audit import Actor
from jobs.ids import new_id
from jobs.job_filter import JobFilter
from jobs.models import BulkAction, QueueControl
from jobs.queues import QUEUES
from jobs.redaction import redact
from jobs.services import ActionRefused
from jobs.tasks import act_on_many

# Before everything else that waits: operators act when something is wrong.
_PRIORITY = 0


def request(
    *,
    kind: str,
    wanted: JobFilter,
    actor: Actor,
    all_jobs: bool = False,
    changes: Mapping[str, Any] | None = None,
) -> BulkAction:
    """Lets an action be done to all jobs that match at this moment, in the background.

    The action, its record and the job that carries it out are one transaction. Jobs that come to match later are not
    touched. Its job runs in the queue `default`, or, where nothing starts there now, in the first declared one that is
    neither paused nor told to wait nor quiet. `changes` are the arguments that an edit sets, by name.
    Raises ActionRefused for an empty filter, unless `all_jobs` says that it is meant, where nothing matches, and where
    changes are no JSON or, for an edit, not there.
    """
    kind = BulkAction.Kind(kind)
    if bool(changes) != (kind == BulkAction.Kind.EDIT):
        raise ActionRefused("Say which arguments an edit sets, by their names; other actions set none.")
    try:
        payloads.as_json(changes, wrapped=1)
    except payloads.NotKept as error:
        raise ActionRefused(f"The arguments cannot be kept: {error}.") from error
    if wanted.is_empty and not all_jobs:
        raise ActionRefused("The filter is empty, so this would be done to all jobs: say that you mean it.")
    with settle.atomic():
        count = wanted.jobs(kind).count()
        if not count:
            raise ActionRefused(f"No job matches: {wanted.in_words()}.")
        action = BulkAction.objects.create(
            kind=kind,
            filter=wanted.as_json(),
            changes=changes,
            actor_id=audit.user_id(actor),
            actor_name=str(actor)[:255],
            job_id=new_id(),
            target_count=count,
        )
        act_on_many.apply_async((action.pk,), task_id=str(action.job_id), queue=_queue(), priority=_PRIORITY)
        what = f"{capfirst(kind)}: {count} job{pluralize(count)} ({wanted.in_words()})."
        details = {"filter": action.filter, **({"changes": redact(changes)} if changes else {})}
        audit.record(actor=actor, thing=action, what=what, details=details, bulk_action=action)
    return action


def _queue() -> str:
    """One where something starts, if there is any."""
    halted = selectors.halted_queues()
    controls, now = QueueControl.objects.in_bulk(), claims.now()

    def is_quiet(name: str) -> bool:
        hours = limits.in_force(name, controls.get(name)).quiet
        return hours is not None and hours.until(now) is not None

    return next((name for name in QUEUES if name not in halted and not is_quiet(name)), "default")
