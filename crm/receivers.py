"""What other apps' events cause here. Each runs inside the transaction of the event."""

from typing import Any

from crm import services
from crm.syncing import is_configured


def user_created(sender: Any, *, user: Any, **_: Any) -> None:
    """Plans the contact of a new user, where a CRM is configured."""
    if is_configured():
        services.sync_user(user=user)
