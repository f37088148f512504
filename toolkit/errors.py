"""The one exception for problems that the user can repair."""


class UserError(Exception):
    """One sentence naming the file, line or key and what to do; printed without a traceback, exit status
    1."""
