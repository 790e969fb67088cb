"""Imported by a process that others fork from: the project as a worker has it before it connects to anything."""

import gc
from importlib import import_module

import django
from celery import current_app
from django.conf import settings

import config  # noqa: F401  # the Celery app

django.setup()
current_app.loader.import_default_modules()
# A worker looks at the URLs too, by Django's system checks.
import_module(settings.ROOT_URLCONF)
# The children share the memory of what is there already, as long as no garbage collection writes to it.
gc.freeze()
