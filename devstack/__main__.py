"""`python -m devstack up` and `python -m devstack demo`; bin/up and bin/demo call it with the right Python."""

import sys

from devstack import demo, up
from devstack.terminal import complain

COMMANDS = {"up": up.main, "demo": demo.main}


def main() -> int:
    """Hands over to the command."""
    command = COMMANDS.get(sys.argv[1]) if len(sys.argv) > 1 else None
    if command is None:
        complain(f"usage: python -m devstack {'|'.join(COMMANDS)} …")
        return 2
    return command(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
