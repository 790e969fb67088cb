"""`manage.py state_machine` prints `docs/state_machine.md` from the table of transitions; a test compares the two."""

from typing import Any

from django.core.management.base import BaseCommand

from jobs.states import END_STATES, LIVE_STATES, TRANSITIONS, Cause, State

STATE_MEANINGS = {
    State.DELAYED: "It is not due before `run_at`: a delay that the caller asked for, or the wait before a retry. "
    "Or it is held until the members of its flow have ended.",
    State.WAITING: "It may start as soon as a worker is free. In a paused queue it is counted as *paused*.",
    State.ACTIVE: "One run owns it, by its claim token.",
    State.COMPLETED: "The task returned.",
    State.FAILED: "It will not run again by itself. `error` says why, in words.",
    State.CANCELLED: "Somebody cancelled it, it expired, or an earlier step of its chain failed.",
}
# What a cause means, and the function that writes it.
CAUSE_MEANINGS = {
    Cause.DUE: ("`run_at` has come.", "jobs.claims.promote_due"),
    Cause.PROMOTED: ("An operator wants it now. The attempts stay as they are.", "jobs.services.promote_job"),
    Cause.CLAIMED: ("A worker has a free slot for it.", "jobs.claims.claim_next"),
    Cause.COMPLETED: ("The task returned.", "jobs.settle.complete"),
    Cause.FAILED: (
        "The task raised and has no run left, raised `Permanent`, or its worker died too often.",
        "jobs.settle.fail",
    ),
    Cause.RETRIED: ("The run failed and another one follows. Counts the attempt.", "jobs.settle.retry"),
    Cause.STALLED: ("Its worker died. Counts the stall, not the attempt.", "jobs.settle.lose"),
    Cause.HANDED_BACK: ("Its worker shut down before the run ended. Counts nothing.", "jobs.settle.hand_back"),
    Cause.RATE_LIMITED: (
        "The task raised `RateLimited`: its rate key or queue pauses. Counts nothing.",
        "jobs.settle.rate_limit",
    ),
    Cause.REPLACED: ("The task called `self.replace`: the job goes on as another task's.", "jobs.replacing.replace"),
    Cause.RENEWED: ("A newer call with `dedup_latest` took its place, for now.", "jobs.dedup.renew"),
    Cause.POSTPONED: ("A newer call with `dedup_latest` took its place, for later.", "jobs.dedup.renew"),
    Cause.EXPIRED: ("`expires_at` came before a worker could start it.", "jobs.claims.cancel_expired"),
    Cause.CANCELLED: ("An operator or the task's own worker ended it.", "jobs.services.cancel_locked"),
    Cause.HELD: ("The task goes on as a flow: it waits for jobs that it has enqueued.", "jobs.flows.hold"),
    Cause.RELEASED: ("The members of the flow that it waited for have ended.", "jobs.flows.release"),
    Cause.MEMBER_FAILED: (
        "A member of the flow that it waited for did not complete, and the flow's policy is to fail; or the results "
        "cannot be handed to it.",
        "jobs.flows.fail_held",
    ),
    Cause.SET_ASIDE: (
        "A duty of the dispatcher could not process it, five times, and its neighbours could be processed.",
        "jobs.dispatcher.set_aside.fail",
    ),
    Cause.REOPENED: ("An operator runs members of its flow again.", "jobs.flows._hold_again"),
    Cause.RUN_AGAIN: (
        "An operator wants it once more. Attempts and stalls start over.",
        "jobs.services.run_again_locked",
    ),
}


class Command(BaseCommand):
    """Prints the states of a job and the ways between them, as Markdown with a Mermaid diagram."""

    help = "Prints docs/state_machine.md, made from jobs/states.py."

    def handle(self, *args: Any, **options: Any) -> None:
        self.stdout.write(page(), ending="")


def page() -> str:
    """The whole page. The same table gives the same text."""
    lines = [
        "# The states of a job",
        "",
        "Made from `jobs/states.py` by `python manage.py state_machine > docs/state_machine.md`; a test compares them.",
        "Outside of this table no state changes: `jobs/claims.py` and `jobs/transitions.py` are the only writers.",
        "",
        "```mermaid",
        "stateDiagram-v2",
        f"    [*] --> {State.DELAYED}: enqueued with a delay",
        f"    [*] --> {State.WAITING}: enqueued",
        *[f"    {source} --> {target}: {cause}" for source, cause, target in TRANSITIONS],
        "```",
        "",
        *_table(
            ["State", "Kind", "Meaning"],
            [[f"`{state}`", _kind(state), meaning] for state, meaning in STATE_MEANINGS.items()],
        ),
        "",
        *_table(
            ["From", "Cause", "To", "When", "Written by"],
            [
                [f"`{source}`", str(cause), f"`{target}`", CAUSE_MEANINGS[cause][0], f"`{CAUSE_MEANINGS[cause][1]}`"]
                for source, cause, target in TRANSITIONS
            ],
        ),
    ]
    return "\n".join(lines) + "\n"


def _kind(state: State) -> str:
    return "live" if state in LIVE_STATES else "end" if state in END_STATES else "unknown"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
