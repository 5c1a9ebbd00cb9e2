"""The exception for mistakes of the user: the command line prints it as one line and exits 2."""


class UserError(ValueError):
    """Bad input. The message names the value, the rule and the remedy."""
