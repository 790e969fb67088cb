from django.db import migrations, models

# As before, and with the flow of which the job is a member, whose progress has changed.
NOTE_EVENTS = """
CREATE OR REPLACE FUNCTION jobs_note_event() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO jobs_jobevent (queue, task, kind, at, wait_seconds, run_seconds, owner_id, error, flow_id)
    VALUES (
        OLD.queue, OLD.task,
        CASE NEW.state WHEN 'delayed' THEN 'retried' WHEN 'waiting' THEN 'stalled' ELSE NEW.state END,
        statement_timestamp(),
        CASE OLD.state WHEN 'active' THEN GREATEST(0, EXTRACT(EPOCH FROM OLD.started_at - OLD.run_at)) END,
        CASE OLD.state WHEN 'active' THEN GREATEST(0, EXTRACT(EPOCH FROM statement_timestamp() - OLD.started_at)) END,
        OLD.owner_id,
        CASE WHEN NEW.state = 'failed' AND OLD.owner_id IS NOT NULL THEN left(NEW.error, 200) ELSE '' END,
        OLD.flow_id);
    RETURN NULL;
END
$$;
"""
NOTE_EVENTS_AS_BEFORE = """
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


class Migration(migrations.Migration):

    dependencies = [
        ('jobs', '0018_oldest_threshold'),
    ]

    operations = [
        migrations.AddField(
            model_name='jobevent',
            name='flow_id',
            field=models.UUIDField(blank=True, help_text='The flow of which the job is a member', null=True),
        ),
        migrations.AddField(
            model_name='stat',
            name='arrived_count',
            field=models.PositiveIntegerField(db_default=0, default=0, help_text='Jobs that were made in it'),
        ),
        migrations.AddField(
            model_name='worker',
            name='left_queues',
            field=models.JSONField(blank=True, db_default=[], default=list, help_text='Those that it took from until somebody told it not to'),
        ),
        migrations.AddField(
            model_name='worker',
            name='looked_at',
            field=models.DateTimeField(blank=True, help_text="When it last was seen to look for jobs, by the database's clock", null=True),
        ),
        migrations.RunSQL(NOTE_EVENTS, NOTE_EVENTS_AS_BEFORE),
    ]
