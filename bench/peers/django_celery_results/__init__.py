"""A minimal Django project with Celery and django-celery-results, as their documentation sets them up:

https://docs.celeryq.dev/en/stable/django/first-steps-with-django.html and
https://django-celery-results.readthedocs.io/en/latest/getting_started.html
"""

from bench.peers.django_celery_results.celery import app as celery_app

__all__ = ["celery_app"]
