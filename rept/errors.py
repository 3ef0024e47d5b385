"""The one exception for a user's mistake."""


class UsageError(Exception):
    """Something the user can mend: one sentence with what was expected, what came, and what to do.

    Command lines print it on stderr without a traceback and exit with 2; Python callers may catch it.
    """


class CheckFailed(Exception):
    """What `python -m rept verify` looked at is not as it should be; the table says what. The exit code is 1."""

    exit_code = 1
