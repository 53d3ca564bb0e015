"""What goes wrong because of input or environment, told in one line each."""


class UserError(Exception):
    """Bad input or environment. Its text is one clear line (or more): what, where, and what to do."""


def printable(text: str) -> str:
    """Return *text* fit for one line of a terminal or a log: what cannot be printed is escaped."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text
    )
