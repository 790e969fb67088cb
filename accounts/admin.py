"""Users, their groups and their API tokens in the admin."""

from typing import Any

from django import forms
from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin as BaseGroupAdmin
from django.contrib.auth.admin import UserAdmin as BaseUserAdmin
from django.contrib.auth.models import Group
from django.http import HttpRequest
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

from accounts.models import User
from jobs.admin.lists import ListAdmin

admin.site.unregister(Group)


class NewUserForm(UserCreationForm):
    """A new user: address, name and password. The address is kept as people's own sign-up keeps it."""

    class Meta:
        model = User
        fields = ("email", "name")
        field_classes = {"email": forms.EmailField}


class EditUserForm(UserChangeForm):
    """A user's fields, with a link to a form for the password."""

    class Meta:
        model = User
        fields = "__all__"
        field_classes = {"email": forms.EmailField}


@admin.register(User)
class UserAdmin(BaseUserAdmin, ListAdmin):  # type: ignore[type-arg]  # generic in the stubs alone
    """Users, who sign in with their e-mail address."""

    form = EditUserForm
    add_form = NewUserForm
    change_password_form = AdminPasswordChangeForm
    list_display = ("email", "name", "is_active", "is_staff", "wants_digest", "created_at")
    list_filter = ("is_active", "is_staff", "is_superuser", "wants_digest", "groups")
    search_fields = ("email", "name")
    ordering = ("-created_at",)
    readonly_fields = ("created_at", "last_login")
    fieldsets = (
        (None, {"fields": ("email", "name", "password")}),
        ("Wishes", {"fields": ("timezone", "wants_digest")}),
        ("Permissions", {"fields": ("is_active", "is_staff", "is_superuser", "groups", "user_permissions")}),
        ("Times", {"fields": ("created_at", "last_login")}),
    )
    add_fieldsets = ((None, {"fields": ("email", "name", "password1", "password2")}),)

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """Whoever may delete a user may delete what belongs to that user, also what has no delete button of its own."""
        to_delete, model_count, _, protected = super().get_deleted_objects(objs, request)
        return to_delete, model_count, set(), protected


@admin.register(Group)
class GroupAdmin(BaseGroupAdmin, ListAdmin):
    """Groups of users with the same permissions."""
