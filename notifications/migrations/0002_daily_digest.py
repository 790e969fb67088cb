"""Plans the daily digest at 08:00 UTC. What an operator has edited since is never overwritten."""

from django.apps.registry import Apps
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

TASK = "notifications.tasks.send_digest"
NAME = "Daily digest"


def plan(apps: Apps, schema_editor: BaseDatabaseSchemaEditor | None) -> None:
    """Creates the row unless the digest is planned already, under whatever name."""
    crontabs = apps.get_model("django_celery_beat", "CrontabSchedule").objects
    periodic_tasks = apps.get_model("django_celery_beat", "PeriodicTask").objects
    if periodic_tasks.filter(task=TASK).exists() or periodic_tasks.filter(name=NAME).exists():
        return
    at_eight = {"minute": "0", "hour": "8", "day_of_week": "*", "day_of_month": "*", "month_of_year": "*"}
    crontab = crontabs.filter(timezone="UTC", **at_eight).first() or crontabs.create(timezone="UTC", **at_eight)
    periodic_tasks.create(
        name=NAME,
        task=TASK,
        crontab=crontab,
        description="Mails each user who wishes it a summary of the day before.",
    )


def unplan(apps: Apps, schema_editor: BaseDatabaseSchemaEditor | None) -> None:
    """Removes the row; the schedule may serve others."""
    apps.get_model("django_celery_beat", "PeriodicTask").objects.filter(task=TASK).delete()


class Migration(migrations.Migration):
    dependencies = [
        ("notifications", "0001_initial"),
        ("django_celery_beat", "0019_alter_periodictasks_options"),
    ]
    operations = [migrations.RunPython(plan, unplan)]
