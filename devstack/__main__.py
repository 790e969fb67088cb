"""`python -m devstack up|demo|servers`; bin/up, bin/demo and bin/check call it with the right Python."""

import sys
from importlib import import_module

from devstack.terminal import complain

# Only the module of the command is imported: --status should answer at once.
COMMANDS = {"up": "devstack.up", "demo": "devstack.demo.command", "servers": "devstack.throwaway"}


def main() -> int:
    """Hands over to the command."""
    module = COMMANDS.get(sys.argv[1]) if len(sys.argv) > 1 else None
    if module is None:
        complain(f"usage: python -m devstack {'|'.join(COMMANDS)} …")
        return 2
    status: int = import_module(module).main(sys.argv[2:])
    return status


if __name__ == "__main__":
    sys.exit(main())
