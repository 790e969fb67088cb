"""All URLs."""

from django.contrib import admin
from django.urls import include, path

from config.api import api
from config.flower import flower

urlpatterns = [
    path("", include("jobs.urls")),
    path("admin/flower/", flower, name="flower"),
    path("admin/flower/<path:path>", flower),
    path("admin/", admin.site.urls),
    path("unsubscribe/", include("notifications.urls")),
    path("", api.urls),
]
