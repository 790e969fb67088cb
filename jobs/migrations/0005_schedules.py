import django.core.validators
import django.db.models.deletion
import django.db.models.functions.datetime
from django.db import migrations, models


# What a schedule's ticks depend on. Moments as numbers: their text depends on the session's time zone.
DEFINITION = """
CREATE FUNCTION jobs_schedule_definition(task django_celery_beat_periodictask) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object(
        'enabled', task.enabled,
        'start', EXTRACT(EPOCH FROM task.start_time),
        'interval', (SELECT to_jsonb(i) - 'id' FROM django_celery_beat_intervalschedule i WHERE i.id = task.interval_id),
        'crontab', (SELECT to_jsonb(c) - 'id' FROM django_celery_beat_crontabschedule c WHERE c.id = task.crontab_id),
        'solar', (SELECT to_jsonb(s) - 'id' FROM django_celery_beat_solarschedule s WHERE s.id = task.solar_id),
        'clocked', (SELECT EXTRACT(EPOCH FROM m.clocked_time) FROM django_celery_beat_clockedschedule m
                    WHERE m.id = task.clocked_id));
$$;
"""

# Locks: the periodic task first, its state after it. Beat takes both or none, and waits for neither.
NOTE_TASKS = """
CREATE FUNCTION jobs_note_periodic_task() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    now_defined jsonb;
BEGIN
    IF TG_OP = 'DELETE' THEN
        DELETE FROM jobs_tick WHERE schedule_id = OLD.id;
        DELETE FROM jobs_catchup WHERE periodic_task_id = OLD.id;
        DELETE FROM jobs_schedulestate WHERE periodic_task_id = OLD.id;
        RETURN NULL;
    END IF;
    now_defined := jobs_schedule_definition(NEW);
    UPDATE jobs_schedulestate SET definition = now_defined, since_at = clock_timestamp()
        WHERE periodic_task_id = NEW.id AND definition IS DISTINCT FROM now_defined;
    INSERT INTO jobs_schedulestate (periodic_task_id, definition, since_at, error)
        VALUES (NEW.id, now_defined, clock_timestamp(), '') ON CONFLICT DO NOTHING;
    RETURN NULL;
END
$$;
CREATE TRIGGER jobs_note_periodic_task AFTER INSERT OR UPDATE OR DELETE ON django_celery_beat_periodictask
    FOR EACH ROW EXECUTE FUNCTION jobs_note_periodic_task();
"""

NOTE_SCHEDULES = """
CREATE FUNCTION jobs_note_schedule() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format(
        'SELECT 1 FROM django_celery_beat_periodictask WHERE %I = $1 ORDER BY id FOR NO KEY UPDATE', TG_ARGV[0]
    ) USING NEW.id;
    EXECUTE format(
        'UPDATE jobs_schedulestate state SET definition = task.defined, since_at = clock_timestamp()
         FROM (SELECT t.id, jobs_schedule_definition(t) AS defined
               FROM django_celery_beat_periodictask t WHERE t.%I = $1) task
         WHERE state.periodic_task_id = task.id AND state.definition IS DISTINCT FROM task.defined', TG_ARGV[0]
    ) USING NEW.id;
    RETURN NULL;
END
$$;
"""
KINDS = ("interval", "crontab", "solar", "clocked")
TRIGGERS = "".join(
    f"CREATE TRIGGER jobs_note_schedule AFTER UPDATE ON django_celery_beat_{kind}schedule FOR EACH ROW "
    f"WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION jobs_note_schedule('{kind}_id');\n"
    for kind in KINDS
)
# Schedules that are there already count from now on.
KNOWN = """
INSERT INTO jobs_schedulestate (periodic_task_id, definition, since_at, error)
    SELECT t.id, jobs_schedule_definition(t), clock_timestamp(), '' FROM django_celery_beat_periodictask t;
"""
UNDONE = (
    "".join(f"DROP TRIGGER jobs_note_schedule ON django_celery_beat_{kind}schedule;\n" for kind in KINDS)
    + "DROP TRIGGER jobs_note_periodic_task ON django_celery_beat_periodictask;\n"
    + "DROP FUNCTION jobs_note_schedule(); DROP FUNCTION jobs_note_periodic_task();\n"
    + "DROP FUNCTION jobs_schedule_definition(django_celery_beat_periodictask);"
)


class Migration(migrations.Migration):

    dependencies = [
        ('django_celery_beat', '0019_alter_periodictasks_options'),
        ('jobs', '0004_flows'),
    ]

    operations = [
        migrations.CreateModel(
            name='ScheduleState',
            fields=[
                ('periodic_task', models.OneToOneField(on_delete=django.db.models.deletion.CASCADE, primary_key=True, related_name='ledger_state', serialize=False, to='django_celery_beat.periodictask')),
                ('definition', models.JSONField(help_text='When it ticks, as the triggers saw it last', null=True)),
                ('since_at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), help_text='Ticks so since this moment; no earlier tick counts')),
                ('decided_until', models.DateTimeField(help_text='The last tick that is decided, and with it all before', null=True)),
                ('error', models.TextField(default='', help_text='Why it cannot tick, or its job cannot be made')),
                ('error_at', models.DateTimeField(null=True)),
            ],
        ),
        migrations.CreateModel(
            name='CatchUp',
            fields=[
                ('periodic_task', models.OneToOneField(on_delete=django.db.models.deletion.CASCADE, primary_key=True, related_name='catch_up', serialize=False, to='django_celery_beat.periodictask')),
                ('policy', models.CharField(choices=[('skip', 'Skip: none of them runs'), ('once', 'Once: the last one runs'), ('all', 'All: each of them runs')], default='once', max_length=4, verbose_name='missed ticks')),
                ('within_minutes', models.PositiveIntegerField(default=360, help_text='Minutes. A tick that was missed longer ago is skipped.', validators=[django.core.validators.MinValueValidator(1), django.core.validators.MaxValueValidator(527040)], verbose_name='not later than')),
                ('most_count', models.PositiveIntegerField(default=100, help_text='With “All”: no more than so many, the last ones.', validators=[django.core.validators.MinValueValidator(1), django.core.validators.MaxValueValidator(1000)], verbose_name='at most')),
            ],
            options={
                'verbose_name': 'catching up',
                'verbose_name_plural': 'catching up',
                'constraints': [models.CheckConstraint(condition=models.Q(('policy__in', ['skip', 'once', 'all']), ('within_minutes__gte', 1)), name='catchup_policy_is_known'), models.CheckConstraint(condition=models.Q(('most_count__range', (1, 1000))), name='catchup_most_1_to_1000')],
            },
        ),
        migrations.CreateModel(
            name='Tick',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('scheduled_for', models.DateTimeField()),
                ('outcome', models.CharField(choices=[('enqueued', 'Enqueued'), ('skipped', 'Skipped')], max_length=8)),
                ('job_id', models.UUIDField(null=True)),
                ('note', models.CharField(default='', help_text='Why it was skipped, or how late it was', max_length=200)),
                ('decided_at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ('schedule', models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name='ticks', to='django_celery_beat.periodictask')),
            ],
            options={
                'constraints': [models.UniqueConstraint(fields=('schedule', 'scheduled_for'), name='tick_one_per_schedule_and_moment'), models.CheckConstraint(condition=models.Q(models.Q(('job_id__isnull', False), ('outcome', 'enqueued')), models.Q(('job_id__isnull', True), ('outcome', 'skipped')), _connector='OR'), name='tick_has_a_job_iff_enqueued')],
            },
        ),
        migrations.RunSQL(DEFINITION + NOTE_TASKS + NOTE_SCHEDULES + TRIGGERS + KNOWN, reverse_sql=UNDONE),
    ]
