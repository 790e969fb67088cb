"""All URLs."""

from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView

from config.api import api
from config.flower import flower

urlpatterns = [
    # There is no page for end users: whoever opens the address that `bin/up` prints is an operator.
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path("", include("jobs.urls")),
    path("admin/flower/", flower, name="flower"),
    path("admin/flower/<path:path>", flower),
    path("admin/", admin.site.urls),
    path("unsubscribe/", include("notifications.urls")),
    path("", api.urls),
]
