"""Domain events of accounts. Each is sent inside the transaction that causes it: what a receiver writes stands or falls
with it, and a receiver that raises rolls it back. Receivers are connected in `config.subscriptions`."""

from django.dispatch import Signal

# Arguments: user, the accounts.models.User that was just inserted.
user_created = Signal()
