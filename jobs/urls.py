"""The probes and the operators' pages of the ledger."""

from django.urls import path

from jobs import views
from jobs.admin import queues, statistics

urlpatterns = [
    path("livez", views.show_alive, name="livez"),
    path("readyz", views.show_ready, name="readyz"),
    path("health", views.show_health, name="health"),
    path("admin/queues/", queues.queues_page, name="queues"),
    path("admin/statistics/", statistics.statistics_page, name="statistics"),
    path("admin/queues/<slug:queue>/pause/", queues.pause_queue, name="queue-pause"),
    path("admin/queues/<slug:queue>/resume/", queues.resume_queue, name="queue-resume"),
]
