"""The errors of the embedded stack. Their text says what was expected, what was found, and the next step."""


class LocalError(Exception):
    """Bad input: settings, ports, disk, Python. Exit code 2."""

    exit_code = 2


class PartFailed(LocalError):
    """A part of the stack did not get healthy. Exit code 1."""

    exit_code = 1
