"""The one error that means "the input was wrong", as opposed to "we have a bug"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Input that cannot work; the message says what came, what was expected and how to mend it.

    The command prints the message on one line and exits with status 2, without a traceback.
    """


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """An error for a name that is not in a table, with the closest known names first.

    Args:
        kind: What the name stands for, such as ``"task"``.
        name: The name that was given.
        known: All names that would have worked.
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return UserError(f"unknown {kind} {name!r}{hint} Known: {', '.join(names)}.")
