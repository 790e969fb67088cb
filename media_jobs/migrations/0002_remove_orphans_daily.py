"""Plans the removal of orphaned files at 03:30 UTC. What an operator has edited since is never overwritten."""

from django.apps.registry import Apps
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

TASK = "media_jobs.tasks.remove_orphans"
NAME = "Orphaned media files"


def plan(apps: Apps, schema_editor: BaseDatabaseSchemaEditor | None) -> None:
    """Creates the row unless it is planned already, under whatever name."""
    crontabs = apps.get_model("django_celery_beat", "CrontabSchedule").objects
    periodic_tasks = apps.get_model("django_celery_beat", "PeriodicTask").objects
    if periodic_tasks.filter(task=TASK).exists() or periodic_tasks.filter(name=NAME).exists():
        return
    at_night = {"minute": "30", "hour": "3", "day_of_week": "*", "day_of_month": "*", "month_of_year": "*"}
    crontab = crontabs.filter(timezone="UTC", **at_night).first() or crontabs.create(timezone="UTC", **at_night)
    periodic_tasks.create(
        name=NAME,
        task=TASK,
        crontab=crontab,
        description="Removes the files of uploads that are no more.",
    )


def unplan(apps: Apps, schema_editor: BaseDatabaseSchemaEditor | None) -> None:
    """Removes the row; the schedule may serve others."""
    apps.get_model("django_celery_beat", "PeriodicTask").objects.filter(task=TASK).delete()


class Migration(migrations.Migration):
    dependencies = [
        ("media_jobs", "0001_initial"),
        ("django_celery_beat", "0019_alter_periodictasks_options"),
    ]
    operations = [migrations.RunPython(plan, unplan)]
