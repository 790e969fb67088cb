"""`manage.py jobs retry`, `edit`, `cancel` and `promote`: on jobs by their ids, or on all that match a filter."""

import json
from argparse import ArgumentTypeError
from collections.abc import Callable
from typing import Any

from django.core.management.base import CommandError, CommandParser

from jobs import bulk_actions, services
from jobs.job_filter import JobFilter, preview
from jobs.management.subcommands import DONE, NOT_FOUND, REFUSED, USAGE, Output, actors, filters, job_id
from jobs.models import BulkAction, Job
from jobs.payloads import PayloadDecoder


class Retry:
    """Runs jobs again."""

    name = "retry"
    help = "Runs ended jobs again, from their first attempt."
    kind: BulkAction.Kind = BulkAction.Kind.RETRY
    done = "run again"
    _act: Callable[..., None] = staticmethod(services.retry_job)

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("job_ids", nargs="*", type=job_id, metavar="ID", help="jobs; or give a filter")
        filters.add_arguments(parser)
        parser.add_argument("--all", action="store_true", dest="all_jobs", help="needed where the filter is empty")
        parser.add_argument("--dry-run", action="store_true", help="only say how many match, and show the newest")
        actors.add_argument(parser)

    def run(self, options: dict[str, Any], output: Output) -> int:
        wanted = filters.given(options)
        by_filter = options["all_jobs"] or options["dry_run"] or not wanted.is_empty
        if bool(options["job_ids"]) == by_filter:
            raise CommandError("Give either ids of jobs, or a filter (or --all).", returncode=USAGE)
        if options["dry_run"]:
            return self._look(wanted, output)
        actor = actors.named(options["actor"])
        given = self._given(options)
        if by_filter:
            return self._act_on_all(wanted, output, actor=actor, all_jobs=options["all_jobs"], **given)
        statuses = {self._act_on_one(one, output, actor=actor, **given) for one in options["job_ids"]}
        return next((status for status in (REFUSED, NOT_FOUND) if status in statuses), DONE)

    def _given(self, options: dict[str, Any]) -> dict[str, Any]:
        """What else the action needs."""
        return {}

    def _act_on_one(self, one: Any, output: Output, **given: Any) -> int:
        try:
            self._act(job_id=one, **given)
        except services.ActionRefused as refusal:
            output.tell(str(refusal), job=str(one), done=False, reason=str(refusal))
            return NOT_FOUND if isinstance(refusal, services.NoSuchJob) else REFUSED
        output.tell(f"Job {one} was {self.done}.", job=str(one), done=True)
        return DONE

    def _look(self, wanted: JobFilter, output: Output) -> int:
        found = preview(self.kind, wanted)
        lines = [f"{found.count} jobs would be {self.done}: {wanted.in_words()}."]
        lines += [
            f"  {job.pk}  {job.state:9}  {job.queue:10}  {job.task}  {job.error[:60]}".rstrip() for job in found.sample
        ]
        if found.count > len(found.sample):
            lines.append(f"  … and {found.count - len(found.sample)} more.")
        output.tell("\n".join(lines), count=found.count, sample=[_facts(job) for job in found.sample])
        return DONE

    def _act_on_all(self, wanted: JobFilter, output: Output, **given: Any) -> int:
        try:
            action = bulk_actions.request(kind=self.kind, wanted=wanted, **given)
        except services.ActionRefused as refusal:
            output.tell(str(refusal), requested=False, reason=str(refusal))
            return REFUSED
        output.tell(
            f"{action.target_count} jobs are being {self.done}, by job {action.job_id}.",
            requested=True,
            bulk_action=action.pk,
            job=str(action.job_id),
            count=action.target_count,
        )
        return DONE


class Edit(Retry):
    """Sets arguments of jobs."""

    name = "edit"
    help = "Sets arguments of jobs: ended ones run again with them, those that wait will run with them."
    kind = BulkAction.Kind.EDIT
    done = "edited"
    _act = staticmethod(services.change_job)

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--set",
            action="append",
            type=_argument,
            required=True,
            dest="changes",
            metavar="NAME=VALUE",
            help="an argument and its new value, JSON or else text; may be given several times",
        )

    def _given(self, options: dict[str, Any]) -> dict[str, Any]:
        return {"changes": dict(options["changes"])}


class Cancel(Retry):
    """Cancels jobs."""

    name = "cancel"
    help = "Cancels jobs that have not ended. Running ones are told, and ended after a grace period."
    kind = BulkAction.Kind.CANCEL
    done = "cancelled"
    _act = staticmethod(services.cancel_job)


class Promote(Retry):
    """Makes jobs due."""

    name = "promote"
    help = "Makes delayed jobs due now, also those that wait for a retry."
    kind = BulkAction.Kind.PROMOTE
    done = "made due"
    _act = staticmethod(services.promote_job)


def _argument(text: str) -> tuple[str, Any]:
    name, is_given, value = text.partition("=")
    if not is_given or not name.isidentifier():
        raise ArgumentTypeError(f"{text!r}: expected NAME=VALUE, as in user_id=7")
    try:
        return name, json.loads(value, cls=PayloadDecoder)
    except (ValueError, RecursionError):
        return name, value


def _facts(job: Job) -> dict[str, Any]:
    return {"job": str(job.pk), "state": job.state, "queue": job.queue, "task": job.task, "error": job.error}
