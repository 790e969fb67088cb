from pathlib import Path

import redis
from django.conf import settings

from devstack.throwaway import Server
from jobs.models import Job
from tests.processes import Processes
from tests.sample_tasks import append_line
from tests.waiting import wait_until


def test_a_hint_that_was_taken_is_nowhere_but_in_its_worker(
    processes: Processes, redis_server: Server, tmp_path: Path
) -> None:
    worker = processes.worker("default")
    job = Job.objects.filter(pk=append_line.delay(str(tmp_path / "lines"), "once", 2).id)
    wait_until(lambda: job.filter(state="active").exists())
    with redis.Redis.from_url(settings.REDIS_URL) as client:
        assert not [key for key in client.scan_iter() if b"unacked" in key or key.startswith(b"default")]
    redis_server.stop()
    wait_until(lambda: "Cannot connect to redis" in worker.output, timeout=20)
    redis_server.start()
    wait_until(lambda: worker.output.count("Connected to redis") == 2, timeout=30)
    wait_until(lambda: job.filter(state="completed").exists(), timeout=20)
    # Kombu's words for putting messages back, and for the file that it leaves where it cannot.
    assert "Restoring" not in worker.output
    assert "EMERGENCY" not in worker.output
