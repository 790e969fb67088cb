"""`python -m devstack up|demo|servers`; bin/up, bin/demo and bin/check call it with the right Python."""

import sys

from devstack import demo, throwaway, up
from devstack.terminal import complain

COMMANDS = {"up": up.main, "demo": demo.main, "servers": throwaway.main}


def main() -> int:
    """Hands over to the command."""
    command = COMMANDS.get(sys.argv[1]) if len(sys.argv) > 1 else None
    if command is None:
        complain(f"usage: python -m devstack {'|'.join(COMMANDS)} …")
        return 2
    return command(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
