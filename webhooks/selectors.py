"""Reads of webhooks."""

from typing import Any

from django.db.models import Q, QuerySet

from webhooks.models import Endpoint


def endpoints_for(*, event_type: str, user: Any) -> QuerySet[Endpoint]:
    """The endpoints that hear of this event of this user: the user's own, and those of staff that hear of everybody."""
    entitled = Q(owner=user) | Q(hears_everybody=True, owner__is_staff=True)
    return Endpoint.objects.filter(
        entitled, is_active=True, owner__is_active=True, event_types__contains=[event_type]
    ).order_by("pk")


def endpoints_of(*, owner: Any) -> QuerySet[Endpoint]:
    """A user's endpoints, newest first."""
    return Endpoint.objects.filter(owner=owner).order_by("-created_at", "-pk")
