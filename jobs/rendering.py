"""How the admin shows the values of a job: states, progress, payloads, durations."""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from django.template.loader import render_to_string
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from kombu.utils import json as kombu_json

from jobs.redaction import redact
from jobs.states import State

PAUSED = "paused"
# The colours of unfold's labels.
STATE_COLOURS = {
    State.DELAYED.value: "",
    State.WAITING.value: "info",
    State.ACTIVE.value: "primary",
    State.COMPLETED.value: "success",
    State.FAILED.value: "danger",
    State.CANCELLED.value: "",
    PAUSED: "warning",
}
_SHOWN_CHARACTERS = 20_000


def badge(state: str, colours: Mapping[str, str] | None = None) -> SafeString:
    """A state as a coloured label."""
    colours = STATE_COLOURS if colours is None else colours
    return render_to_string("unfold/helpers/label.html", {"text": state, "type": colours.get(state, "")})


def payload(value: Any) -> SafeString:
    """A value as indented JSON, secrets hidden, cut after 20,000 characters."""
    text = json.dumps(redact(value), indent=2, ensure_ascii=False, cls=kombu_json.JSONEncoder)
    return preformatted(text)


def preformatted(text: str) -> SafeString:
    """A text with its line breaks, in a box that scrolls and can be reached by keyboard."""
    cut = len(text) - _SHOWN_CHARACTERS
    if cut > 0:
        text = f"{text[:_SHOWN_CHARACTERS]}\n… {cut} more characters"
    return format_html('<pre class="jobs-text" tabindex="0">{}</pre>', text)


def progress(percent: int | None, message: str = "") -> SafeString | str:
    """A bar with its percentage, and what the job said last."""
    if percent is None:
        return "–"
    return format_html(
        '<div class="jobs-progress"><progress max="100" value="{0}" aria-label="Progress">{0}%</progress>'
        "<span>{0}%</span>{1}</div>",
        percent,
        format_html("<em>{}</em>", message) if message else "",
    )


def moment(value: datetime | None) -> SafeString | str:
    """A time to the second, with its distance from now."""
    if value is None:
        return "–"
    return format_html('<time datetime="{}">{}</time> <small>({})</small>', value.isoformat(), exact(value), ago(value))


def recent(value: datetime | None) -> SafeString | str:
    """How far a time is from now; the exact time on hovering."""
    if value is None:
        return "–"
    return format_html(
        '<time class="jobs-nowrap" datetime="{}" title="{}">{}</time>',
        value.isoformat(),
        exact(value),
        ago(value, units=1),
    )


def exact(value: datetime) -> str:
    """A time to the second, in the zone of the page; as it is kept, where that zone has no such time any more."""
    with suppress(OverflowError):
        value = timezone.localtime(value)
    return value.strftime("%Y-%m-%d %H:%M:%S %Z")


def ago(value: datetime, *, units: int = 2) -> str:
    """How far a time is from now, in words."""
    distance = timezone.now() - value
    return (
        f"in {duration(-distance, units=units)}"
        if distance < timedelta(0)
        else f"{duration(distance, units=units)} ago"
    )


def between(start: datetime | None, end: datetime | None) -> str:
    """How long something took, where it has begun and ended."""
    return duration(end - start if start and end else None)


def duration(value: timedelta | float | None, *, units: int = 2) -> str:
    """A length of time in its largest one or two units: 340 ms, 4.2 s, 3 min 20 s, 5 h 1 min, 2 d 3 h."""
    if value is None:
        return "–"
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if not math.isfinite(seconds):
        return "without end" if seconds > 0 else "–"
    if seconds < 60:
        return f"{max(0, seconds) * 1000:.0f} ms" if seconds < 1 else f"{seconds:.{units - 1}f} s"
    parts = []
    for size, name in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        count, seconds = divmod(int(seconds), size)
        # The second unit is the one right below the first, and left out where it is zero.
        if count:
            parts.append(f"{count} {name}")
        elif parts:
            break
    return " ".join(parts[:units])


def in_words(task_name: str) -> str:
    """`notifications.tasks.send_welcome` as people say it: Send welcome."""
    words = task_name.rpartition(".")[2].replace("_", " ").replace("-", " ")
    return words[:1].upper() + words[1:]
