"""What the latents of families know, and what moves in images with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pofx.core.likelihood import with_error
from pofx.core.space import Space
from pofx.evaluate.likelihood import decode
from pofx.evaluate.recommend import get
from pofx.report import plots
from pofx.report.exhibits import beside

Row = Mapping[str, Any]
NONE = "—"


def parts(space: Space, rows: Sequence[Row], samples: Mapping[str, Path]) -> dict[str, Any]:
    """What the page shows: a line of figures for each family, and strips of images."""
    return {"rows": [line for r in rows if (line := _line(r))], "strips": _strips(space, rows, samples)}


def _line(row: Row) -> dict[str, Any] | None:
    found = {k: get(row, "latents", k) or {} for k in ("probe", "usage", "groups", "reconstruction")}
    probe, usage, groups, back = found.values()
    if not ("accuracy" in probe or "kl" in usage or "differing" in back):
        return None
    figures = ("accuracy", "raw", "majority", "active", "rate", "groups", "rms", "approximation", "amortisation")
    line = dict.fromkeys(figures, NONE)
    for part, gap in (get(row, "latents", "inference") or {}).items():
        if part in line:
            line[part] = with_error(decode(gap["nats"]), gap["se"])
    if "accuracy" in probe:
        line["accuracy"] = f"{probe['accuracy']:.1%} ± {probe['se']:.1%}"
        line |= {"raw": f"{probe['raw_accuracy']:.1%}", "majority": f"{probe['majority']:.1%}"}
    if "active" in usage:
        line["active"] = f"{usage['active']} of {usage['dims']}"
    if "rate" in usage:
        line["rate"] = f"{usage['rate']:.3g}"
    if groups.get("agreement") is not None:
        line["groups"] = f"{groups['agreement']:.2f}"
    if back.get("rms") is not None:
        line["rms"] = f"{decode(back['rms']):.3g}"
    kl = sorted((decode(v) for v in usage.get("kl", [])), reverse=True)
    bars = plots.bars(kl, f"KL per dimension, largest {kl[0]:.2g} nats") if kl else None
    dims = probe.get("dims", usage.get("dims"))
    return line | {"family": row["family"], "dims": NONE if dims is None else dims, "bars": bars}


def _strips(space: Space, rows: Sequence[Row], samples: Mapping[str, Path]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Of each family the strips of ``evaluate.latent_space.strips``: what each is, and its images as a data URI."""
    found = []
    for name, arrays in beside(samples, "latents").items():
        names = next((get(r, "latents", "strips", "names") for r in rows if r["family"] == name), None)
        if names:
            x = arrays["x"].reshape(len(names), -1, *arrays["x"].shape[1:])
            pngs = (plots.montage(strip, space.symbols or 2, 1, x.shape[1]) for strip in x)
            found.append((name, list(zip(names, pngs, strict=True))))
    return found
