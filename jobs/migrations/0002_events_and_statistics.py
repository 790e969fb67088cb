import django.contrib.postgres.fields
import django.db.models.functions.datetime
import jobs.models
import kombu.utils.json
from django.conf import settings
from django.db import migrations, models


# Every way in which a run or a job can end passes here, whoever writes it, and none can be forgotten. What it appends is
# folded into jobs_stat by the dispatcher, so that two runs never wait for each other on a common counter.
NOTE_EVENTS = """
CREATE FUNCTION jobs_note_event() RETURNS trigger LANGUAGE plpgsql AS $$
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
CREATE TRIGGER jobs_note_event AFTER UPDATE OF state ON jobs_job FOR EACH ROW
WHEN (OLD.state <> NEW.state AND (
    NEW.state IN ('completed', 'failed', 'cancelled')
    OR (OLD.state = 'active' AND NEW.state = 'delayed')
    OR (OLD.state = 'active' AND NEW.state = 'waiting' AND NEW.stalled_count > OLD.stalled_count)))
EXECUTE FUNCTION jobs_note_event();
"""
FORGET_EVENTS = "DROP TRIGGER jobs_note_event ON jobs_job; DROP FUNCTION jobs_note_event();"


class Migration(migrations.Migration):

    dependencies = [
        ('jobs', '0001_initial'),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name='DedupWindow',
            fields=[
                ('key', models.CharField(max_length=255, primary_key=True, serialize=False)),
                ('job_id', models.UUIDField()),
                ('until', models.DateTimeField()),
            ],
        ),
        migrations.CreateModel(
            name='JobEvent',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('queue', models.CharField(max_length=64)),
                ('task', models.CharField(max_length=255)),
                ('kind', models.CharField(choices=[('completed', 'Completed'), ('failed', 'Failed'), ('retried', 'Retried'), ('stalled', 'Stalled'), ('cancelled', 'Cancelled')], max_length=10)),
                ('at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ('wait_seconds', models.FloatField(blank=True, help_text='From the moment it was due to its start', null=True)),
                ('run_seconds', models.FloatField(blank=True, null=True)),
            ],
        ),
        migrations.CreateModel(
            name='Stat',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('queue', models.CharField(max_length=64)),
                ('task', models.CharField(max_length=255)),
                ('minute', models.DateTimeField(help_text='Its beginning')),
                ('completed_count', models.PositiveIntegerField(default=0)),
                ('failed_count', models.PositiveIntegerField(default=0)),
                ('retried_count', models.PositiveIntegerField(default=0)),
                ('stalled_count', models.PositiveIntegerField(default=0)),
                ('cancelled_count', models.PositiveIntegerField(default=0)),
                ('wait_seconds_sum', models.FloatField(default=0)),
                ('run_seconds_sum', models.FloatField(default=0)),
                ('wait_buckets', django.contrib.postgres.fields.ArrayField(base_field=models.PositiveIntegerField(), help_text='Counts per bound of jobs.statistics', size=None)),
                ('run_buckets', django.contrib.postgres.fields.ArrayField(base_field=models.PositiveIntegerField(), help_text='Counts per bound of jobs.statistics', size=None)),
            ],
        ),
        migrations.RemoveConstraint(
            model_name='job',
            name='job_one_live_per_dedup_key',
        ),
        migrations.AddField(
            model_name='job',
            name='refused_count',
            field=models.PositiveIntegerField(default=0, help_text='Times that no worker at hand knew its task'),
        ),
        migrations.AddField(
            model_name='job',
            name='successor',
            field=models.JSONField(blank=True, decoder=jobs.models.PayloadDecoder, encoder=kombu.utils.json.JSONEncoder, help_text='The job to insert when this one ends: what came with its key meanwhile', null=True),
        ),
        migrations.AddField(
            model_name='queuecontrol',
            name='keep_completed_count',
            field=models.PositiveIntegerField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name='queuecontrol',
            name='keep_failed_count',
            field=models.PositiveIntegerField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name='worker',
            name='pid_space',
            field=models.CharField(blank=True, default='', help_text='Boot and PID namespace in which the pid means something', max_length=128),
        ),
        migrations.AddField(
            model_name='worker',
            name='pid_started_ticks',
            field=models.BigIntegerField(blank=True, help_text='Tells the process from a later one', null=True),
        ),
        migrations.AddField(
            model_name='worker',
            name='stuck_count',
            field=models.PositiveIntegerField(default=0, help_text="Threads that outlived their job's time limit"),
        ),
        migrations.AddConstraint(
            model_name='job',
            constraint=models.UniqueConstraint(condition=models.Q(('dedup_key__isnull', False), ('state__in', ['delayed', 'waiting', 'active'])), fields=('dedup_key',), name='job_one_live_per_dedup_key'),
        ),
        migrations.AddIndex(
            model_name='dedupwindow',
            index=models.Index(fields=['until'], name='dedupwindow_until'),
        ),
        migrations.AddIndex(
            model_name='stat',
            index=models.Index(fields=['minute'], name='stat_minute'),
        ),
        migrations.AddConstraint(
            model_name='stat',
            constraint=models.UniqueConstraint(fields=('queue', 'task', 'minute'), name='stat_one_per_task_and_minute'),
        ),
        migrations.RunSQL(NOTE_EVENTS, FORGET_EVENTS),
    ]
