"""Which tasks the jobs are of that start next: where a worker knows one of these not, its jobs stay at the head."""

from collections.abc import Sequence

from jobs.statements import rows_of

# The tasks of the first jobs of each priority of a queue, and of the first jobs with limits of their own.
# Locks: nothing. Index: job_waiting, so many entries of each priority of each queue, and some of each of so many lanes.
# Two at once: they read.
FIRST_TASKS = """
WITH RECURSIVE level AS (
    SELECT wanted.queue, first.lane, first.priority, 1 AS number
    FROM unnest(%(queues)s::text[]) AS wanted (queue)
    CROSS JOIN LATERAL (
        SELECT lane, priority FROM jobs_job
        WHERE state = 'waiting' AND jobs_job.queue = wanted.queue AND lane > ''
        ORDER BY lane, priority, run_at, id LIMIT 1) AS first
    UNION ALL
    SELECT level.queue, following.lane, following.priority, level.number + 1
    FROM level CROSS JOIN LATERAL (
        SELECT lane, priority FROM jobs_job
        WHERE state = 'waiting' AND jobs_job.queue = level.queue
          AND (lane, priority) > (level.lane, level.priority)
        ORDER BY lane, priority, run_at, id LIMIT 1) AS following
    WHERE level.number < %(levels)s
), place AS (
    SELECT queue, lane, priority, %(of_lane)s AS most FROM level
    UNION ALL
    SELECT queue, '', priority, %(limit)s
    FROM unnest(%(queues)s::text[]) AS queue CROSS JOIN generate_series(0, 9) AS priority
)
SELECT DISTINCT place.queue, job.task
FROM place CROSS JOIN LATERAL (
    SELECT task FROM jobs_job
    WHERE state = 'waiting' AND jobs_job.queue = place.queue AND lane = place.lane AND priority = place.priority
    ORDER BY run_at, id LIMIT place.most) AS job
"""


def first_tasks(queues: Sequence[str], *, limit: int = 200, levels: int = 50, of_lane: int = 40) -> dict[str, set[str]]:
    """The tasks of each queue's first jobs: of so many of each priority, and of some of each of so many lanes."""
    found: dict[str, set[str]] = {}
    parameters = {"queues": list(queues), "limit": limit, "levels": levels, "of_lane": of_lane}
    for queue, task in rows_of(FIRST_TASKS, parameters):
        found.setdefault(queue, set()).add(task)
    return found
