"""Texts of any origin as a screen may show them."""

from __future__ import annotations

import csv
import difflib
import io
import shlex
import unicodedata
from collections.abc import Iterable, Sequence

END = "∎"


def visible(text: str) -> str:
    """The text with ``\\x1b``, ``\\u202e`` and the like in place of characters that steer a screen.

    Example:
        >>> visible("red:" + chr(27) + "[31m") == "red:" + chr(92) + "x1b[31m"
        True
    """
    return "".join(c if c in "\n\t" or not _steers(c) else _escape(c) for c in text)


def shown(text: str) -> str:
    """A stretch of text of which every character can be seen; the empty one is the end of a text."""
    seen = ({"\n": "↵\n", "\t": "⇥\t"}.get(c) or (_escape(c) if _steers(c) else c) for c in text)
    return "".join(seen) or END


def join(values: Iterable[str]) -> str:
    """A list as options take it: a,b, where quotes stand around what holds a comma."""
    page = io.StringIO()
    csv.writer(page, lineterminator="").writerow(values)
    return page.getvalue()


def listed(values: Iterable[str]) -> str:
    """A list as it is typed after an option."""
    return shlex.quote(join(values))


def abridged(values: Sequence[str], most: int = 6) -> str:
    """The first values and how many there are, where they are more than ``most``."""
    if len(values) <= most:
        return ", ".join(values)
    return f"{', '.join(values[: most - 1])}, … ({len(values)})"


def meant(name: str, known: Iterable[str], otherwise: str) -> str:
    """The remedy for a name that is not among the known ones: those spelled alike, or what to say without any.

    Capitals make no difference.

    Example:
        >>> meant("gnn", ["gmm", "gan", "nsf"], "Known: gmm, gan, nsf.")
        'Did you mean gan?'
    """
    by_lower = {each.lower(): each for each in known}
    near = [by_lower[each] for each in difflib.get_close_matches(name.lower(), list(by_lower))]
    return f"Did you mean {' or '.join(near)}?" if near else otherwise


def _steers(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs")


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode()
