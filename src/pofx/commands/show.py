"""``pofx families`` and ``pofx data``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pofx.commands.shared import Column, Output, Source, load_source, out, parse, print_json

if TYPE_CHECKING:
    from pofx.core.model import Model


@dataclass(kw_only=True)
class Families(Output):
    """The families: their place in the taxonomy, what each claims, what it can do."""


def families(argv: list[str]) -> int:
    args = parse(Families, argv, "families")
    from pofx.core.abilities import titles
    from pofx.core.likelihood import SYMBOL
    from pofx.core.registry import families as known
    from pofx.core.registry import family

    classes = [family(name) for name in known()]
    if args.json:
        print_json([_about(cls) for cls in classes])
        return 0
    ranks = {"family": 0, "log p(x)": 1, "can also": 3, "taxonomy": 5, "how it models p(x)": 2}
    columns = [Column(name, rank, wraps=name in ("can also", "how it models p(x)")) for name, rank in ranks.items()]
    rows = []
    for cls in sorted(classes, key=lambda c: c.taxonomy):
        symbols = " ".join(SYMBOL[k] for k in SYMBOL if k in cls.claims())
        rows.append((cls.name, symbols, ", ".join(titles(cls)), cls.taxonomy, cls.summary))
    out.table(columns, rows, "--json has it all")
    legend = {"=": "exact", "≥": "lower bound", "≤": "upper bound", "≈": "estimate", "—": "no likelihood"}
    out.print("  ".join(f"{symbol} {word}" for symbol, word in legend.items()))
    out.print("'pofx fit SOURCE FAMILY --help' shows a family's options.")
    return 0


def _about(cls: type[Model]) -> dict[str, Any]:
    from pofx.core.abilities import titles

    return {
        "name": cls.name,
        "summary": cls.summary,
        "taxonomy": cls.taxonomy,
        "paper": cls.paper,
        "claims": sorted(k.__name__ for k in cls.claims()),
        "estimators": [k.name for k in cls.estimators],
        "samplers": [k.name for k in cls.samplers],
        "abilities": titles(cls),
        "options": dataclasses.asdict(cls.Config()),
    }


@dataclass(kw_only=True)
class ShowData(Source, Output):
    """What a source holds: column types, ranges, missing values, splits, and what pofx decided about them."""


def data(argv: list[str]) -> int:
    args = parse(ShowData, argv, "data")
    loaded = load_source(args)
    rows = loaded.describe()
    counts = {part: len(getattr(loaded, part)) for part in ("train", "valid", "test")}
    if args.json:
        about = {"name": loaded.name, "space": loaded.space.to_json(), "rows": counts, "split": loaded.split}
        given_json = None if loaded.context is None else loaded.context.to_json()
        print_json(about | {"given": given_json, "notes": list(loaded.notes), "columns": rows})
        return 0
    out.print(f"{loaded.name}: {loaded.space}")
    given = "" if loaded.context is None else f", given {loaded.context}"
    out.print(f"measure: {loaded.space.measure}{given}")
    out.print(", ".join(f"{n} {part}" for part, n in counts.items()) + f" rows; {loaded.split}")
    if rows:
        ranks = {"column": 0, "role": 5, "type": 1, "values": 2, "missing": 3, "note": 4}
        columns = [Column(name, ranks[name], wraps=name in ("column", "values", "note")) for name in rows[0]]
        out.table(columns, [list(row.values()) for row in rows], "--json has it all")
    for note in loaded.notes:
        out.print(f"· {note}")
    return 0
