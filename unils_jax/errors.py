"""The exception for mistakes of the user: the command line prints it as one line and exits 2."""


def shown(text: object) -> str:
    """Returns text of strangers, as a path, for messages: one line of printable characters.

    New lines, escape codes of terminals and bytes that are not UTF-8 are spelled out.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(text))


def one_line(error: Exception | str, length: int = 200) -> str:
    """Returns the text of an error in one line, or its type where it has no text."""
    return " ".join(str(error).split())[:length] or type(error).__name__


def counted(number: int, noun: str) -> str:
    """Returns "1 store" or "3 stores"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


class UserError(ValueError):
    """Bad input. The message names the value, the rule and the remedy."""


def install_hint(extra: str = "") -> str:
    """Returns how to install this package, with an extra; it is on no index."""
    what = f"'.[{extra}]'" if extra else "."
    return f"run pip install {what} in a checkout"
