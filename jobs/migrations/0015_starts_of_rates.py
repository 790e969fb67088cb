from django.conf import settings
from django.db import migrations, models

# Claims jobs with limits, each of them only if its limits let it start; `jobs.limited_claims` calls it and says how.
# `wanted` is an array of objects with the keys that the loop names; `rates` in it are those of `jobs.limits.Limits`.
# Each statement below sees what was committed before it began, so after the wait for the limits. Their plans are kept
# for as long as a connection lives: made when the tables were small, they must not read these as a whole.
CLAIM_LIMITED = """
CREATE FUNCTION jobs_claim_limited(wanted jsonb, locks text[], worker uuid, tasks text[]) RETURNS SETOF jobs_job
LANGUAGE plpgsql SET enable_seqscan = off SET plan_cache_mode = force_generic_plan SET lock_timeout = '250ms' AS $$
DECLARE
    one record;
    rate record;
    other record;
    moment timestamptz;
    is_free boolean;
    earliest timestamptz;
    last_number bigint;
    held text[] := locks;
BEGIN
    -- Locks: the rows of the limits in the order of their keys, until the end of the transaction. Index: primary key.
    -- Two at once: the second waits at the first row that both need. A transaction that holds a limit waits for
    -- nothing else, so none waits in a circle. A row is locked, and seldom written: as long as somebody holds an old
    -- snapshot, each version of it would be in the way of all later claims. Claims hold it for milliseconds; where
    -- somebody else has locked it for longer, jobs of that limit are passed over, and the others start.
    BEGIN
        INSERT INTO jobs_limit AS own (key, used_at)
        SELECT key, statement_timestamp() FROM unnest(locks) AS key ORDER BY key
        ON CONFLICT (key) DO UPDATE SET used_at = EXCLUDED.used_at
        WHERE own.used_at < EXCLUDED.used_at - INTERVAL '1 hour';
    EXCEPTION WHEN lock_not_available THEN
        SELECT COALESCE(array_agg(own.key), '{}') INTO held
        FROM (SELECT key FROM jobs_limit WHERE key = ANY (locks) ORDER BY key FOR UPDATE SKIP LOCKED) AS own;
    END;

    FOR one IN
        SELECT * FROM jsonb_to_recordset(wanted) AS job (
            job_id uuid, token text, queue text, lane text, loud_until timestamptz, locks text[], rates jsonb,
            concurrency_key text, concurrency_lock text, concurrency int, queue_lock text, queue_concurrency int)
    LOOP
        -- Read after the wait: the starts under a key are in the order of their times and numbers.
        moment := clock_timestamp();
        CONTINUE WHEN NOT one.locks <@ held;
        CONTINUE WHEN one.loud_until <= moment;
        CONTINUE WHEN EXISTS (
            SELECT FROM jobs_queuecontrol AS control
            WHERE control.name = one.queue AND (control.paused_at IS NOT NULL OR control.rate_limited_until > moment));
        CONTINUE WHEN NOT EXISTS (
            SELECT FROM jobs_worker AS living WHERE living.id = worker AND living.dead_at IS NULL);

        -- Locks: nothing. Index: primary keys, of which the last start of a rate and one other are read.
        -- Two at once: the lock of the limit lets one of them go first.
        is_free := TRUE;
        FOR rate IN SELECT * FROM jsonb_to_recordset(one.rates) AS limited (key text, count int, period interval)
        LOOP
            IF EXISTS (SELECT FROM jobs_limit AS own WHERE own.key = rate.key AND own.rate_limited_until > moment) THEN
                is_free := FALSE;
            END IF;
            SELECT start.number INTO last_number
            FROM jobs_ratestart AS start WHERE start.key = rate.key ORDER BY start.number DESC LIMIT 1;
            -- The start before so many others; where that is kept no more, because a faster rate needed fewer of them,
            -- the oldest that is kept.
            IF last_number >= rate.count AND (
                SELECT start.started_at > moment - rate.period FROM jobs_ratestart AS start
                WHERE start.key = rate.key AND start.number > last_number - rate.count
                ORDER BY start.number LIMIT 1) THEN
                is_free := FALSE;
            END IF;
        END LOOP;
        CONTINUE WHEN NOT is_free;

        -- Locks: nothing but the limits, whose rows it holds. Index: job_active_of_key and job_active, from the moment
        -- before which nothing that runs was started, which moves on every few seconds.
        -- Two at once: as above.
        FOR other IN
            SELECT own.key, own.running_since, limited.most, limited.is_queue
            FROM (VALUES (one.concurrency_lock, one.concurrency, FALSE), (one.queue_lock, one.queue_concurrency, TRUE))
                AS limited (key, most, is_queue)
            JOIN jobs_limit AS own ON own.key = limited.key
            WHERE limited.most IS NOT NULL
        LOOP
            IF other.running_since > moment THEN
                -- The clock was put back: what is started now would not be counted.
                UPDATE jobs_limit SET running_since = NULL WHERE key = other.key;
                other.running_since := NULL;
            END IF;
            IF other.is_queue THEN
                SELECT count(*) < other.most, min(job.started_at) INTO is_free, earliest
                FROM jobs_worker AS any_worker
                CROSS JOIN LATERAL (
                    SELECT started_at FROM jobs_job
                    WHERE state = 'active' AND worker_id = any_worker.id AND queue = one.queue
                      AND started_at >= COALESCE(other.running_since, '-infinity')
                    OFFSET 0) AS job
                WHERE any_worker.settled_at IS NULL;
            ELSE
                SELECT count(*) < other.most, min(started_at) INTO is_free, earliest FROM jobs_job
                WHERE state = 'active' AND concurrency_key = one.concurrency_key
                  AND started_at >= COALESCE(other.running_since, '-infinity');
            END IF;
            -- A claim of a queue that had no limit a moment ago may not be committed yet.
            earliest := LEAST(earliest, moment - INTERVAL '1 second');
            IF COALESCE(other.running_since, '-infinity') < earliest - INTERVAL '4 seconds' THEN
                UPDATE jobs_limit SET running_since = earliest WHERE key = other.key;
            END IF;
            EXIT WHEN NOT is_free;
        END LOOP;
        CONTINUE WHEN NOT is_free;

        -- Locks: the job's row, until the end of the transaction; one that somebody else has locked stays as it is.
        -- Index: primary key.
        -- Two at once: one of them gets the row, and the other passes over it.
        RETURN QUERY
        UPDATE jobs_job AS job
        SET state = 'active', worker_id = worker, claim_token = one.token, started_at = moment,
            progress_percent = NULL, progress_message = '', custom_state = '', custom_meta = NULL
        WHERE job.id = (
            SELECT id FROM jobs_job
            WHERE id = one.job_id
              AND CASE state WHEN 'waiting' THEN claim_token <> one.token ELSE FALSE END
              AND queue = one.queue AND lane = one.lane AND (tasks IS NULL OR task = ANY (tasks))
              AND (expires_at IS NULL OR expires_at > moment)
            FOR UPDATE SKIP LOCKED)
        RETURNING job.*;
        CONTINUE WHEN NOT FOUND;

        -- Locks: nothing but the limits, whose rows it holds. Index: primary keys.
        -- Two at once: as above.
        FOR rate IN
            SELECT * FROM jsonb_to_recordset(one.rates) AS limited (key text, count int) WHERE limited.count IS NOT NULL
        LOOP
            UPDATE jobs_limit SET kept_count = rate.count WHERE key = rate.key AND kept_count < rate.count;
            INSERT INTO jobs_ratestart AS start (key, number, started_at)
            SELECT rate.key, COALESCE(
                (SELECT number FROM jobs_ratestart WHERE key = rate.key ORDER BY number DESC LIMIT 1), 0) + 1, moment
            RETURNING number INTO last_number;
            DELETE FROM jobs_ratestart AS start
            WHERE start.key = rate.key
              AND start.number = last_number - (SELECT kept_count FROM jobs_limit WHERE key = rate.key);
        END LOOP;
    END LOOP;
END $$
"""


class Migration(migrations.Migration):

    dependencies = [
        ('jobs', '0014_rings'),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name='RateStart',
            fields=[
                ('pk', models.CompositePrimaryKey('key', 'number', blank=True, editable=False, primary_key=True, serialize=False)),
                ('key', models.CharField(help_text='That of the limit', max_length=160)),
                ('number', models.PositiveBigIntegerField()),
                ('started_at', models.DateTimeField()),
            ],
        ),
        migrations.RemoveIndex(
            model_name='job',
            name='job_active',
        ),
        migrations.RemoveIndex(
            model_name='job',
            name='job_active_of_key',
        ),
        migrations.RemoveField(
            model_name='limit',
            name='starts',
        ),
        migrations.AddField(
            model_name='limit',
            name='running_since',
            field=models.DateTimeField(blank=True, help_text='Nothing that runs under the key was started earlier; empty where unknown', null=True),
        ),
        migrations.AddIndex(
            model_name='job',
            index=models.Index(condition=models.Q(('state', 'active')), fields=['worker_id', 'started_at'], name='job_active'),
        ),
        migrations.AddIndex(
            model_name='job',
            index=models.Index(condition=models.Q(('concurrency_key__isnull', False), ('state', 'active')), fields=['concurrency_key', 'started_at'], name='job_active_of_key'),
        ),
        migrations.RunSQL(CLAIM_LIMITED, "DROP FUNCTION jobs_claim_limited"),
    ]
