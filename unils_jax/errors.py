"""The exception for mistakes of the user: the command line prints it as one line and exits 2."""


class UserError(ValueError):
    """Bad input. The message names the value, the rule and the remedy."""


def install_hint(extra: str = "") -> str:
    """Returns how to install this package, with an extra; it is on no index."""
    what = f"'.[{extra}]'" if extra else "."
    return f"run pip install {what} in a checkout"
