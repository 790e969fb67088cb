"""`manage.py jobs pause QUEUE` and `manage.py jobs resume QUEUE`."""

from typing import Any

from django.core.management.base import CommandParser

from jobs import services
from jobs.management.subcommands import DONE, NOT_FOUND, Output, actors
from jobs.queues import UnknownQueue


class Pause:
    """Pauses queues."""

    name = "pause"
    help = "Lets nothing of a queue start until it is resumed; what runs goes on, and jobs may be enqueued."
    _action = staticmethod(services.pause_queue)
    _done, _idle = "is paused: running jobs end, no new one starts", "was paused already"

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("queues", nargs="+", metavar="QUEUE")
        actors.add_argument(parser)

    def run(self, options: dict[str, Any], output: Output) -> int:
        status = DONE
        actor = actors.named(options["actor"])
        for queue in options["queues"]:
            try:
                changed = self._action(queue=queue, actor=actor)
            except UnknownQueue as error:
                output.tell(str(error), queue=queue, error=str(error))
                status = NOT_FOUND
            else:
                output.tell(f"Queue {queue} {self._done if changed else self._idle}.", queue=queue, changed=changed)
        return status


class Resume(Pause):
    """Resumes queues."""

    name = "resume"
    help = "Lets a paused queue run again."
    _action = staticmethod(services.resume_queue)
    _done, _idle = "runs again", "was not paused"
