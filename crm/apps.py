"""Contacts at the CRM."""

from django.apps import AppConfig


class CrmConfig(AppConfig):
    """Keeps the contacts at the CRM like our users; off until the CRM is configured."""

    name = "crm"
    verbose_name = "CRM"
