"""Texts on a terminal: control characters made visible, symbols coloured by their surprise."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console

    from pofx.evaluate.text import Mark

KEPT = "\n\t"  # control characters that a terminal may obey
END = "␄"
# bits up to which a colour goes, and the colour (ColorBrewer's YlOrRd): less than one bit is the plain text
COLOURS = (
    (1.0, ""), (2.0, "black on #ffffcc"), (4.0, "black on #fed976"), (6.0, "black on #feb24c"),
    (8.0, "black on #fd8d3c"), (12.0, "white on #e31a1c"), (float("inf"), "white on #800026"),
)  # fmt: skip


def visible(text: str) -> str:
    """The text with ``\\x1b``, ``\\u202e`` and the like in place of characters that steer a terminal."""
    return "".join(c if c in KEPT or not _steers(c) else _escape(c) for c in text)


def show(console: Console, marks: Sequence[Mark]) -> None:
    """Print a text coloured by the surprise of its symbols, and their sum; a list where there are no colours."""
    if console.color_system is None:
        for mark in marks:
            console.print(f"{mark.bits:8.3f}  '{spelt(mark).strip(KEPT)}'", highlight=False, markup=False)
    else:
        line = Text()
        for mark in marks:
            line.append(spelt(mark), style_of(mark.bits))
        console.print(line)
    bits, count = sum(m.bits for m in marks), sum(m.symbols for m in marks)
    most = max(marks, key=lambda m: m.bits)
    console.print(
        f"{bits:.2f} bits over {count} symbols{', the end included' if marks[-1].text == '' else ''}, "
        f"{bits / count:.3f} each; the most surprising is '{spelt(most).strip(KEPT)}' with {most.bits:.2f}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def legend() -> Text:
    """Which colour is how much surprise."""
    line, low = Text("bits: "), 0.0
    for high, style in COLOURS:
        line.append(f" {low:g}–{high:g} " if high < float("inf") else f" {low:g} or more ", style)
        low = high
    return line


def style_of(bits: float) -> str:
    return next(style for high, style in COLOURS if bits < high or high == float("inf"))


def spelt(mark: Mark) -> str:
    """A mark's text, every character of which can be seen."""
    shown = "".join({"\n": "↵\n", "\t": "⇥\t"}.get(c) or (_escape(c) if _steers(c) else c) for c in mark.text)
    return shown or END


def _steers(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs")


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode()
