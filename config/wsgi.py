"""The WSGI application that the web server runs."""

import os

from django.core.wsgi import get_wsgi_application

from config.celery import app

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

application = get_wsgi_application()

# Tasks and their routes are loaded now, not in the first request that enqueues one.
app.finalize(auto=True)
app.loader.import_default_modules()
