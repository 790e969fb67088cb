"""A Django project on the ledger, as `docs/embedding.md` says, with the one queue that Celery's tests know."""

import os

from kombu import Queue as KombuQueue

from jobs.queues import Queue, declare
from tests.celery_suite.settings import DATABASES as DATABASES
from tests.celery_suite.settings import DEFAULT_AUTO_FIELD as DEFAULT_AUTO_FIELD
from tests.celery_suite.settings import SECRET_KEY as SECRET_KEY
from tests.celery_suite.settings import USE_TZ as USE_TZ

INSTALLED_APPS = [
    "unfold",
    "django.contrib.admin",
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.postgres",
    "django_celery_beat",
    "django_celery_results",
    "jobs",
]
CELERY_BROKER_URL = os.environ["TEST_BROKER"]
CELERY_TASK_DEFAULT_QUEUE = "celery"
CELERY_TASK_QUEUES = [KombuQueue("celery")]
# A task of Celery's that declares nothing is tried four times.
declare(
    Queue(name="default", purpose="What the ledger itself does"),
    Queue(name="celery", purpose="What Celery's tests do", max_attempts=4, backoff_seconds=0),
)
