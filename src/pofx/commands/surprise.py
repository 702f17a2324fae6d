"""Texts on a terminal: control characters made visible, symbols coloured by their surprise."""

from __future__ import annotations

import unicodedata

KEPT = "\n\t"  # control characters that a terminal may obey


def visible(text: str) -> str:
    """The text with ``\\x1b``, ``\\u202e`` and the like in place of characters that steer a terminal."""
    return "".join(c if c in KEPT or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else _escape(c) for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode()
