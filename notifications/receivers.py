"""What other apps' events cause here. Each runs inside the transaction of the event."""

from typing import Any

from notifications.tasks import send_welcome

# People are still looking at the page that signed them up: ahead of everything of less urgency.
WELCOME_PRIORITY = 1
WELCOME_DELAY_SECONDS = 2


def welcome(sender: Any, *, user: Any, **_: Any) -> None:
    """Enqueues the welcome e-mail of a new user. The dedup key makes it one job however often this runs."""
    send_welcome.apply_async(
        kwargs={"user_id": user.pk},
        priority=WELCOME_PRIORITY,
        countdown=WELCOME_DELAY_SECONDS,
        dedup_key=f"welcome-{user.pk}",
        owner_id=user.pk,
    )
