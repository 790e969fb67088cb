"""A steady load: `python -m bench.load PER_SECOND SECONDS OPTIONS`, where the options are those of `apply_async`, as
JSON. Each job does nothing and is committed by itself.

Jobs are enqueued at their moments by the clock, so what is slow for a while is caught up with; but it ends when the
time is over, also where fewer were enqueued.
"""

import json
import sys
import time

import django

django.setup()

from bench.tasks import noop  # noqa: E402
from config.celery import app  # noqa: E402


def main() -> None:
    """Enqueues until the time is over."""
    per_second, seconds, options = float(sys.argv[1]), float(sys.argv[2]), json.loads(sys.argv[3])
    app.finalize()
    begin = time.monotonic()
    for number in range(int(per_second * seconds)):
        pause = begin + number / per_second - time.monotonic()
        if pause > 0:
            time.sleep(pause)
        elif time.monotonic() - begin > seconds:
            break
        noop.apply_async(**options)


if __name__ == "__main__":
    main()
