"""All URLs."""

from django.contrib import admin
from django.urls import include, path

from config.api import api

urlpatterns = [
    path("", include("jobs.urls")),
    path("admin/", admin.site.urls),
    path("unsubscribe/", include("notifications.urls")),
    path("", api.urls),
]
