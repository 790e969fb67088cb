import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models

# As before, and with the job's owner and, where it failed, why: digests and reports are counted by owner.
NOTE_EVENTS = """
CREATE OR REPLACE FUNCTION jobs_note_event() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO jobs_jobevent (queue, task, kind, at, wait_seconds, run_seconds, owner_id, error)
    VALUES (
        OLD.queue, OLD.task,
        CASE NEW.state WHEN 'delayed' THEN 'retried' WHEN 'waiting' THEN 'stalled' ELSE NEW.state END,
        statement_timestamp(),
        CASE OLD.state WHEN 'active' THEN GREATEST(0, EXTRACT(EPOCH FROM OLD.started_at - OLD.run_at)) END,
        CASE OLD.state WHEN 'active' THEN GREATEST(0, EXTRACT(EPOCH FROM statement_timestamp() - OLD.started_at)) END,
        OLD.owner_id,
        CASE WHEN NEW.state = 'failed' AND OLD.owner_id IS NOT NULL THEN left(NEW.error, 200) ELSE '' END);
    RETURN NULL;
END
$$;
"""
NOTE_EVENTS_AS_BEFORE = """
CREATE OR REPLACE FUNCTION jobs_note_event() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO jobs_jobevent (queue, task, kind, at, wait_seconds, run_seconds)
    VALUES (
        OLD.queue, OLD.task,
        CASE NEW.state WHEN 'delayed' THEN 'retried' WHEN 'waiting' THEN 'stalled' ELSE NEW.state END,
        statement_timestamp(),
        CASE OLD.state WHEN 'active' THEN GREATEST(0, EXTRACT(EPOCH FROM OLD.started_at - OLD.run_at)) END,
        CASE OLD.state WHEN 'active' THEN GREATEST(0, EXTRACT(EPOCH FROM statement_timestamp() - OLD.started_at)) END);
    RETURN NULL;
END
$$;
"""


class Migration(migrations.Migration):

    dependencies = [
        ('jobs', '0002_events_and_statistics'),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name='OwnerStat',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('quarter', models.DateTimeField(help_text='Its beginning')),
                ('task', models.CharField(max_length=255)),
                ('completed_count', models.PositiveIntegerField(default=0)),
                ('failed_count', models.PositiveIntegerField(default=0)),
                ('cancelled_count', models.PositiveIntegerField(default=0)),
                ('error', models.TextField(blank=True, default='', help_text='Why the last of those that failed did')),
            ],
        ),
        migrations.AddField(
            model_name='jobevent',
            name='error',
            field=models.TextField(blank=True, default='', help_text="Why an owner's job failed: its first 200 characters"),
        ),
        migrations.AddField(
            model_name='jobevent',
            name='owner',
            field=models.ForeignKey(blank=True, db_constraint=False, db_index=False, null=True, on_delete=django.db.models.deletion.DO_NOTHING, related_name='+', to=settings.AUTH_USER_MODEL),
        ),
        migrations.AddIndex(
            model_name='job',
            index=models.Index(condition=models.Q(('parent_id__isnull', False)), fields=['parent_id'], name='job_children'),
        ),
        migrations.AddField(
            model_name='ownerstat',
            name='owner',
            field=models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name='+', to=settings.AUTH_USER_MODEL),
        ),
        migrations.AddConstraint(
            model_name='ownerstat',
            constraint=models.UniqueConstraint(fields=('owner', 'quarter', 'task'), name='ownerstat_one_per_task_and_quarter'),
        ),
        migrations.RunSQL(NOTE_EVENTS, NOTE_EVENTS_AS_BEFORE),
    ]
