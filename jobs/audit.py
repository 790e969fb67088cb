"""Who did what to the ledger: entries in the admin's own log, shown as the history of the job or queue."""

import logging

from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth.models import AbstractBaseUser
from django.contrib.contenttypes.models import ContentType
from django.db import models

logger = logging.getLogger(__name__)


def record(*, actor: AbstractBaseUser, thing: models.Model, what: str) -> None:
    """Notes an operator's action, in the transaction that carries it out: one is never stored without the other."""
    LogEntry.objects.create(
        user_id=actor.pk,
        content_type=ContentType.objects.get_for_model(thing),
        object_id=str(thing.pk),
        object_repr=str(thing)[:200],
        action_flag=CHANGE,
        change_message=what,
    )
    logger.info("%s by %s: %s", thing, actor, what)
