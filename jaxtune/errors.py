"""The one exception that means "the user's input", as opposed to a bug."""


class UserError(ValueError):
    """Input that jaxtune cannot use: says what was given, what is allowed, and what to do.

    The command line prints the message alone and exits with code 1; any other exception is a bug
    and keeps its traceback.
    """
