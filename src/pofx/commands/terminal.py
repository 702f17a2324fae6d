"""What commands write: lines and tables that fit a terminal and part no number; plain lines in a pipe."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.text import Text

from pofx.core.spelling import visible

GAP = 2  # spaces between columns
NARROWEST = 24  # of a column whose cells break over lines
# Spaces at which no line breaks: inside 'log p(x)', and inside a number with its symbol, its error and its unit.
INSIDE = re.compile(
    r"(?<=log) (?=p\()|(?<=[=≥≤≈±<>]) (?=\S)| (?=±)|(?<=[\d∞]) (?=[a-zµ])|(?<=\d[kMGT%]) (?=[a-zµ])|(?<=\(mc) (?=\d)"
)


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        rank: the higher it is, the earlier the column is left out where there is no room; one of rank 0 never is.
        right: numbers stand at the right.
        wraps: cells are words, which break over lines.
    """

    name: str
    rank: int = 0
    right: bool = False
    wraps: bool = False


class Terminal(Console):
    """Words as they are: brackets are no markup, and what would steer the screen is spelt out.

    On a terminal lines break between words, of which '= -3.21 ± 0.04 nats' is one, and a table has the columns that
    fit. In a pipe or a file every line and every row of a table stands on one line, whole.
    """

    def __init__(self, **how: Any) -> None:
        super().__init__(markup=False, highlight=False, **how)

    def render_str(self, text: str, **how: Any) -> Text:
        return super().render_str(visible(text), **how)

    def print(self, *objects: Any, **how: Any) -> None:
        if len(objects) != 1 or not isinstance(objects[0], str):
            return super().print(*objects, **how)
        lines = visible(objects[0]).split("\n")
        if self.is_terminal:
            lines = [piece for line in lines for piece in fold(line, self.width)]
        super().print(Text("\n".join(lines)), soft_wrap=True, **how)

    def rule(self, *title: Any, **how: Any) -> None:
        if self.is_terminal:
            super().rule(*title, **how)
        else:
            self.print("")

    def table(self, columns: Sequence[Column], rows: Iterable[Sequence[Any]], elsewhere: str) -> None:
        """A table of all columns that fit; ``elsewhere`` says where the others are."""
        cells = [[visible(str(cell)).replace("\n", " ") for cell in row] for row in rows]
        if not self.is_terminal:
            for line in _lines(columns, [[c.name for c in columns], *([v or "—" for v in row] for row in cells)]):
                self.print(line)
            return
        shown = list(range(len(columns)))
        widths = _widths(columns, cells, self.width)
        while widths is None and columns[last := max(reversed(shown), key=lambda k: columns[k].rank)].rank:
            shown.remove(last)
            widths = _widths([columns[k] for k in shown], [[row[k] for k in shown] for row in cells], self.width)
        kept = [columns[k] for k in shown]
        if widths is None:
            self._stacked(kept, [[row[k] for k in shown] for row in cells])
        else:
            for number, row in enumerate([[c.name for c in columns], *cells]):
                folded = [_fit(row[k], width) for k, width in zip(shown, widths, strict=True)]
                for pieces in zip_longest(*folded, fillvalue=""):
                    super().print(Text(_line(kept, pieces, widths), "" if number else "bold"), soft_wrap=True)
        if left := [c.name for k, c in enumerate(columns) if k not in shown]:
            self.print(f"· no room here for {', '.join(left)}: {elsewhere}")

    def _stacked(self, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
        """Each row as lines of a name and a value, where not even the columns of rank 0 stand side by side."""
        for row in rows:
            self.print(row[0])
            for column, cell in zip(columns[1:], row[1:], strict=True):
                self.print(f"  {column.name}: {cell}")


def fold(text: str, width: int) -> list[str]:
    """The lines of at most ``width`` cells that one line breaks into; a longer word stands whole."""
    if cell_len(text) <= width:
        return [text]
    start = len(text) - len(text.lstrip(" "))
    hang = " " * (start + 2 if start or text.startswith("· ") else 0)
    lines, line = [], text[:start]
    for word in _words(text[start:]):
        if line.strip() and cell_len((line + word).rstrip()) > width:
            lines.append(line.rstrip())
            line = hang
        line += word
    return [*lines, line.rstrip()]


def _words(text: str) -> list[str]:
    """The words of a text, each with the spaces after it; a number with its symbol, error and unit is one."""
    return [word.replace("\0", " ") for word in re.findall(r"\S+ *", INSIDE.sub("\0", text))]


def _fit(cell: str, width: int) -> list[str]:
    """The lines of a cell of this width; a longer word breaks anywhere."""
    return [piece for line in fold(cell, width) for piece in chop_cells(line, width) or [""]]


def _widths(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> list[int] | None:
    """The widths of columns that together fit; None where they do not."""
    least, most = [], []
    for k, column in enumerate(columns):
        heading = max(cell_len(word.rstrip()) for word in _words(column.name))
        longest = max([heading, *(cell_len(row[k]) for row in rows)])
        most.append(max(longest, cell_len(column.name)))
        least.append(max(heading, min(longest, NARROWEST)) if column.wraps else longest)
    room = width - sum(least) - GAP * (len(columns) - 1)
    if room < 0:
        return None
    while room and least != most:  # what is left goes to the columns that would use it, in equal parts
        for k in range(len(columns)):
            if room and least[k] < most[k]:
                least[k], room = least[k] + 1, room - 1
    return least


def _lines(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(cell_len(row[k]) for row in rows) for k in range(len(columns))]
    return (_line(columns, row, widths) for row in rows)


def _line(columns: Sequence[Column], cells: Sequence[str], widths: Sequence[int]) -> str:
    """One line of a table, at whose end there are no spaces."""
    padded = []
    for column, cell, width in zip(columns, cells, widths, strict=True):
        space = " " * (width - cell_len(cell))
        padded.append(space + cell if column.right else cell + space)
    return (" " * GAP).join(padded).rstrip()
