"""The exceptions that a command line reports as one sentence."""


class UsageError(Exception):
    """A user's mistake: one sentence with what was expected, what came, and what to do.

    Command lines print it on stderr without a traceback and exit with 2; Python callers may catch it.
    """


class Ended(BaseException):
    """Ends the process with ``exit_code``, after one sentence on stderr.

    Not an Exception, so that nothing on the way takes it for a failure that it could handle.
    """

    exit_code = 1


class CheckFailed(Ended):
    """`python -m rept verify` found a fault; its table shows which."""
