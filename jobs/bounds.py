"""How long, how many and how deep: the limits of what a call may say and of what a run may leave.

`docs/bounds.md` has the table. What a caller has said wrong is refused before anything is written; what a run
has said, when it is too late to refuse it, is cut in the middle.
"""

import re
from datetime import timedelta
from itertools import accumulate

# Of a delay, and of a moment from now on, before or after it.
LONGEST_DELAY = timedelta(days=3653)
MOST_ATTEMPTS = 1_000_000
# Of priorities.
MOST_URGENT, LEAST_URGENT = 0, 9
# Of the keys of limits.
LONGEST_KEY_CHARACTERS = 128
# Lists and objects inside of each other, of an argument, a result or what follows a job.
DEEPEST_NESTING = 100
MESSAGE_BYTES = 8 * 1024
TRACEBACK_BYTES = 64 * 1024
_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"')
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = {**dict.fromkeys(b"[{", 1), **dict.fromkeys(b"]}", -1)}


def depth(text: str) -> int:
    """How many lists and objects of a JSON text stand inside of each other, at most."""
    brackets = _STRINGS.sub("", text).encode().translate(None, _NO_BRACKETS)
    return max(accumulate(map(_STEPS.__getitem__, brackets)), default=0)


def shortened(text: str, most_bytes: int) -> str:
    """The text, or its beginning and its end with a mark between that says how much was left out."""
    if len(text) <= most_bytes // 4:
        return text
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= most_bytes:
        return text
    # For the mark, whatever number is in it.
    half = (most_bytes - 64) // 2
    left_out = len(data) - 2 * half
    begin, end = data[:half].decode("utf-8", "ignore"), data[-half:].decode("utf-8", "ignore")
    return f"{begin}\n… {left_out:,} bytes left out …\n{end}"
