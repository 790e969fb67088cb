"""Cron (G09): what is due by django-celery-beat's schedules, decided and enqueued in one transaction per schedule."""
