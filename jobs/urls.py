"""The probes and the operators' pages of the ledger."""

from django.urls import path

from jobs import views

urlpatterns = [
    path("livez", views.show_alive, name="livez"),
    path("readyz", views.show_ready, name="readyz"),
    path("health", views.show_health, name="health"),
]
