"""What other apps' events cause here: endpoints are told. Each runs inside the transaction of the event."""

from typing import Any

from webhooks import services


def user_created(sender: Any, *, user: Any, **_: Any) -> None:
    """Tells of a new user. Only endpoints that hear of everybody can have been there before."""
    services.publish(
        event_type="user.created",
        user=user,
        subject=f"user-{user.pk}",
        data={"id": user.pk, "email": user.email, "name": user.name},
    )


def report_ready(sender: Any, *, report: Any, **_: Any) -> None:
    """Tells of a report that can be downloaded."""
    services.publish(
        event_type="report.ready", user=report.owner, subject=f"report-{report.pk}", data={"id": str(report.pk)}
    )


def media_ready(sender: Any, *, media: Any, **_: Any) -> None:
    """Tells of a picture or video of which everything was made."""
    services.publish(
        event_type="media.ready",
        user=media.owner,
        subject=f"{media.kind}-{media.pk}",
        data={"id": media.pk, "kind": media.kind},
    )
