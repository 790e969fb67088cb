"""The WSGI application that the web server runs."""

import os

from django.core.wsgi import get_wsgi_application

from config.celery import app
from config.checks import refuse_old_servers
from config.chunked import DeclaredLength
from config.unread import ClosesAfterUnread

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

application = ClosesAfterUnread(DeclaredLength(get_wsgi_application()))

# Tasks and their routes are loaded now, not in the first request that enqueues one.
app.finalize(auto=True)
app.loader.import_default_modules()
refuse_old_servers()
