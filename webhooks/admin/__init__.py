"""The admin pages of webhooks. Importing this package registers them."""

from webhooks.admin import incoming, outgoing

__all__ = ["incoming", "outgoing"]
