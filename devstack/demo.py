"""`bin/demo`."""


def main(arguments: list[str]) -> int:
    """Placeholder."""
    return 1
