"""The base of admin pages that only show."""

from typing import Any

from django.http import HttpRequest

from jobs.admin.lists import ListAdmin


class ReadOnlyAdmin(ListAdmin):
    """Rows that people look at but never add, edit or delete by hand. Viewing needs the model's view permission."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Nobody."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody: the page has no form."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody."""
        return False
