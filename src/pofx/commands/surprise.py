"""Texts on a terminal, symbols coloured by their surprise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from pofx.core.spelling import shown

if TYPE_CHECKING:
    from rich.console import Console

    from pofx.evaluate.text import Mark

# bits up to which a colour goes, and the colour (ColorBrewer's YlOrRd): less than one bit is the plain text
COLOURS = (
    (1.0, ""), (2.0, "black on #ffffcc"), (4.0, "black on #fed976"), (6.0, "black on #feb24c"),
    (8.0, "black on #fd8d3c"), (12.0, "white on #e31a1c"), (float("inf"), "white on #800026"),
)  # fmt: skip


def show(console: Console, marks: Sequence[Mark]) -> None:
    """Print a text coloured by the surprise of its symbols, and their sum; a list where there are no colours."""
    if console.color_system is None:
        for mark in marks:
            console.print(f"{mark.bits:8.3f}  '{shown(mark.text).strip()}'")
    else:
        line = Text()
        for mark in marks:
            line.append(shown(mark.text), style_of(mark.bits))
        console.print(line)
    bits, count = sum(m.bits for m in marks), sum(m.symbols for m in marks)
    most = max(marks, key=lambda m: m.bits)
    console.print(
        f"{bits:.2f} bits over {count} symbols{', the end included' if marks[-1].text == '' else ''}, "
        f"{bits / count:.3f} each; the most surprising is '{shown(most.text).strip()}' with {most.bits:.2f}"
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
