"""How long, how many and how deep: the limits of what a call may say and of what a run may leave.

`docs/bounds.md` has the table. What a caller has said wrong is refused before anything is written; what a run
has said, when it is too late to refuse it, is cut in the middle.
"""

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
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_OF_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_OPENS = ord("[")
# So many levels are peeled off from inside: few texts have more, and each takes a walk through the text.
_PEELED_LEVELS = 16


def depth(text: str) -> int:
    """How many lists and objects of a JSON text stand inside of each other, at most."""
    # Without escapes, every second part between quotes is a string.
    outside = "".join(text.replace("\\\\", "").replace('\\"', "").split('"')[::2])
    brackets = outside.encode("utf-8", "replace").translate(_OF_ONE_KIND, _NO_BRACKETS)
    levels = 0
    while brackets and levels < _PEELED_LEVELS:
        brackets = brackets.replace(b"[]", b"")
        levels += 1
    return levels + max(accumulate(1 if bracket == _OPENS else -1 for bracket in brackets), default=0)


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
