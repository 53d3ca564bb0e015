"""What goes wrong because of input or environment, told in one line each."""

import errno

# What is short at the moment. It says nothing about what was being done.
_REMEDIES = {
    errno.EMFILE: "raise the limit of open files (LimitNOFILE=)",
    errno.ENFILE: "raise the machine's limit of open files (sysctl fs.file-max)",
    errno.ENOMEM: "allow the daemon more memory, "
    "or lower limits.sockets, limits.connections, limits.cgroups and limits.label_sets",
}


class UserError(Exception):
    """Bad input or environment. Its text is one clear line (or more): what, where, and what to do."""


def remedy(error: Exception) -> str | None:
    """Return what to do about an error for want of memory or file descriptors, None if it is another one."""
    return _REMEDIES.get(getattr(error, "errno", None) or 0)


def printable(text: str) -> str:
    """Return *text* fit for one line of a terminal or a log: what cannot be printed is escaped."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text
    )
