"""The page of figures, from benchmarks/results/: every number is read from the file that its script wrote."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pofx.core.likelihood import KINDS, SYMBOL

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
RESULTS = BENCHMARKS / "results"
LONG = 24  # rows of a table beyond which it is folded
LEFT_OUT = {
    "iqr",
    "rounds",
    "difference",
    "machine",
    "bench",
    "recipe",
    "split",
    "quick",
    "seed",
    "valid_nats",
    "score_seconds",
}


def page() -> str:
    """The records, then one section per script."""
    files = sorted(RESULTS.glob("*.json"))
    return "\n\n".join([records(), *map(section, files)])


def records() -> str:
    """Held-out likelihoods of ``pofx fit`` commands: the answers that records.py kept."""
    rows, commands = [], []
    for file in sorted((RESULTS / "records").glob("*.json")):
        r = json.loads(file.read_text())
        rate, bits = r["test"]["text"], [r["test"]["bits_text"]]
        if "end_to_end" in r:  # windows of a text that do not overlap, as others report it
            bits.append(f"{r['end_to_end']['bits_text']} in windows end to end")
        rows.append(
            (
                whole(rate),
                "; ".join(map(whole, bits)),
                time(r["seconds"]),
                f"{r['parameters']:,}",
                f"`records.py DATA {file.stem}`",
            )
        )
        commands.append(f"- *{file.stem}*: `{r['command'].replace('{data}', 'DATA')}`")
    head = ["log p(x) per datum", "bits", "fit", "fitted numbers", "command"]
    about = (
        "Each is the answer of one `pofx fit` command on the held-out test part, seed 0: the mean over all its rows "
        "and the data's standard error. DATA is the folder that holds the public data sets."
    )
    return "\n\n".join(
        ["## Likelihoods", about, table(head, rows), folded("The commands in full", "\n".join(commands))]
    )


def section(file: Path) -> str:
    """What one script printed: its own words, its command, and a table for each kind of row."""
    title, command = words(script_of(file))
    found = json.loads(file.read_text())
    rows = [found] if isinstance(found, dict) else found
    kinds: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    machine = []
    for row in rows:
        if row.get("what") == "environment":
            machine = [f"{k} {v}" for k, v in row.items() if k not in ("what", "quick", "load")]
            continue
        row = readable(row)
        kinds.setdefault(tuple(row), []).append(row)
    parts = [f"## {file.stem}", f"{title}", f"`{command}`" + (f" ({', '.join(machine)})" if machine else "")]
    for heads, same in kinds.items():
        shown = table(list(heads), [tuple(map(cell, row.values())) for row in same])
        parts.append(folded(f"{len(same)} rows", shown) if len(same) > LONG else shown)
    return "\n\n".join(parts)


def script_of(file: Path) -> Path:
    """The script that wrote a file of results: its name, or the name before what tells several of one apart."""
    name = file.stem
    while not (BENCHMARKS / f"{name}.py").exists():
        assert name, f"no script wrote {file.name}"
        name = name.rpartition("_")[0]
    return BENCHMARKS / f"{name}.py"


def words(script: Path) -> tuple[str, str]:
    """The first paragraph of a script's docstring, and the command that stands in it."""
    text = ast.get_docstring(ast.parse(script.read_text())) or ""
    command = re.search(r"python (benchmarks/\S+\.py.*)", text)
    return text.partition("\n\n")[0].replace("\n", " "), command[1] if command else script.name


def readable(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what only a reader of the file wants; a likelihood with its symbol and error as one entry."""
    row = {k: v for k, v in row.items() if k not in LEFT_OUT and v not in (None, {})}
    for value, error in (("test_nats", "data_se"), ("nats", "se")):
        if value in row and error in row:
            likelihood = f"{SYMBOL[KINDS[row.pop('kind')]]} {row.pop(value)} ± {row.pop(error):.3f} nats"
            row = {"log p(x) per datum": whole(likelihood)} | row
    first = {k: row.pop(k) for k in ("what", "task", "family", "order", "data") if k in row}
    return first | row


def cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {cell(v)}" for k, v in value.items())
    return f"{value:.6g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def time(seconds: float) -> str:
    return whole(f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min")


def whole(text: str) -> str:
    """A number with its error and unit, not broken over lines."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def folded(summary: str, content: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{content}\n\n</details>"


def table(head: list[str], rows: list[tuple[str, ...]]) -> str:
    """A table of Markdown."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |"

    return "\n".join([line(head), line("---" for _ in head), *map(line, rows)])
