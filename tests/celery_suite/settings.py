"""A Django project that keeps Celery's results by django-celery-results, as its documentation says."""

import os

import dj_database_url

SECRET_KEY = os.environ["SECRET_KEY"]
USE_TZ = True
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "django_celery_results"]
DATABASES = {"default": dj_database_url.parse(os.environ["DATABASE_URL"])}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
