"""Who did what to the ledger, when, and to which jobs: entries of its own, shown in the admin.

Django's own log of the admin would need a user for each entry; an operator at a terminal may be none.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from django.contrib.auth.models import AbstractBaseUser
from django.db import models

from jobs.models import AuditEntry, BulkAction

logger = logging.getLogger(__name__)

# What is said of a queue; `jobs.why` finds by it who paused one.
PAUSED, RESUMED = "Paused.", "Resumed."
# A user of the site, or the name of somebody who acts at a terminal.
Actor = AbstractBaseUser | str


def record(
    *,
    actor: Actor,
    thing: models.Model,
    what: str,
    details: dict[str, Any] | None = None,
    bulk_action: BulkAction | None = None,
) -> None:
    """Notes an operator's action, in the transaction that carries it out: one is never stored without the other.

    `what` is a sentence about `thing`. `details` are kept for ever: hide the secrets of payloads first.
    """
    _entry(actor, thing, what, details=details, bulk_action=bulk_action).save(force_insert=True)
    if bulk_action is None or thing == bulk_action:
        logger.info("%s by %s: %s", thing, actor, what)


def record_each(*, actor: Actor, things: Mapping[models.Model, str], bulk_action: BulkAction) -> None:
    """Notes what was done to each of many, in the transaction that does it, by one statement."""
    AuditEntry.objects.bulk_create(
        _entry(actor, thing, what, bulk_action=bulk_action) for thing, what in things.items()
    )


def record_removal(*, actor: Actor, job_ids: Sequence[UUID], reason: str) -> None:
    """Notes, in the transaction that removes them, which jobs somebody has removed."""
    what = f"Removed {len(job_ids)} jobs ({reason})."
    AuditEntry.objects.create(
        actor_id=user_id(actor),
        actor_name=str(actor)[:255],
        thing_type="job",
        thing="jobs that are gone",
        what=what,
        details={"jobs": [str(job_id) for job_id in job_ids]},
    )
    logger.info("%s by %s", what, actor)


def is_noted(thing: models.Model) -> bool:
    """Whether anybody has done anything to it. The index `auditentry_thing` serves it."""
    return AuditEntry.objects.filter(thing_type=thing._meta.model_name, thing_id=str(thing.pk)).exists()


def user_id(actor: Actor) -> Any:
    """The key of the user that an actor is, or None."""
    return actor.pk if isinstance(actor, AbstractBaseUser) else None


def _entry(actor: Actor, thing: models.Model, what: str, **part: Any) -> AuditEntry:
    return AuditEntry(
        actor_id=user_id(actor),
        actor_name=str(actor)[:255],
        thing_type=thing._meta.model_name or "",
        thing_id=str(thing.pk),
        thing=str(thing)[:300],
        what=what,
        **part,
    )
