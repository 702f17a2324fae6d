"""Emoji and their names: which picture is meant by a name, and which name by a picture, told by likelihood.

    python benchmarks/emoji.py OUT [--seconds 1200] [--seed 0] [--threads 1] [--font FILE] [--names FILE] [--quick]

The pictures are those of Debian's package fonts-noto-color-emoji (found by fc-match unless --font says where), 32x32 on
white; the texts the English names and keywords of the Unicode CLDR (package unicode-cldr-core): "grapes: fruit, grape".
One character in ten is held out, none of whose pictures or words training sees; the others are shown moved, mirrored
and in other sizes, with their keywords in any order, some of them left out.

retrieval   ``gpt`` of texts given pictures, with context dropout, for the seconds. Every held-out text is scored given
            every held-out picture: log p(text | picture) - log p(text), both of the same weights. It is the pointwise
            mutual information, and so also log p(picture | text) - log p(picture): one number ranks the pictures of a
            text (``picture of a text``) and the texts of a picture (``text of a picture``). Recall at 1, 5, 10, against
            that of chance; with names alone as texts, too. The likelihood of the true texts and its kind.
pictures    ``flow-matching`` of pictures given texts, for the seconds: OUT/emoji.png, for held-out names the true
            picture above three drawn ones, guided by 2.

Prints one JSON object a line and writes all to results/emoji.json.
"""

from __future__ import annotations

import math
import random
import subprocess
import time
import xml.etree.ElementTree as Xml
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont, ImageOps
from torch import Tensor

from fitted import arguments, fitted, generator, parsed, picture
from pofx.core.likelihood import mean, number
from pofx.core.requests import DpmSolver
from pofx.data.options import Options
from pofx.data.parts import Data, Part
from pofx.data.text import from_documents
from pofx.spaces import Image, Text
from timing import Results

SIDE, GLYPH, HELD_OUT = 32, 109, 10  # pixels; the size that the font's bitmaps have; one character in so many
SPACE = Image(SIDE, SIDE, 3, 256)
NAMES = Path("/usr/share/unicode/cldr/common/annotations/en.xml")
RECALLS = (1, 5, 10)


def font_file(given: Path | None) -> Path:
    """Where the font is. Stops where there is none."""
    if given is not None:
        return given
    found = subprocess.run(
        ["fc-match", "-f", "%{file}", "Noto Color Emoji"], capture_output=True, text=True, check=True
    )
    if "NotoColorEmoji" not in found.stdout:
        raise SystemExit("There is no Noto Color Emoji font: install fonts-noto-color-emoji, or give --font FILE.")
    return Path(found.stdout)


def words(path: Path) -> dict[str, tuple[str, list[str]]]:
    """Each character's name and keywords."""
    if not path.exists():
        raise SystemExit(f"{path} is not there: install unicode-cldr-core, or give --names FILE.")
    names, keywords = {}, {}
    for entry in Xml.parse(path).getroot().iter("annotation"):
        into, text = (names if entry.get("type") == "tts" else keywords), (entry.text or "").strip()
        into[entry.get("cp", "")] = text
    return {c: (name, [w.strip() for w in keywords.get(c, "").split("|")]) for c, name in names.items() if len(c) == 1}


def drawn(character: str, font: Any) -> Picture.Image | None:
    """The picture on white, cut to its frame; None where the font has none in colour."""
    canvas = Picture.new("RGBA", (160, 160), (255, 255, 255, 0))
    ImageDraw.Draw(canvas).text((12, 12), character, font=font, embedded_color=True)
    frame = canvas.getbbox()
    if frame is None:
        return None
    glyph = canvas.crop(frame)
    if np.asarray(glyph)[..., :3][np.asarray(glyph)[..., 3] > 128].max(initial=0) == 0:  # a black outline: no colour
        return None
    return glyph


def placed(glyph: Picture.Image, chance: random.Random | None) -> Tensor:
    """uint8 [3, 32, 32]: in the middle and as large as fits, or by chance moved, mirrored, smaller."""
    most = SIDE if chance is None else chance.randint(SIDE * 3 // 4, SIDE)
    small = glyph.copy()
    small.thumbnail((most, most), Picture.Resampling.LANCZOS)
    if chance is not None and chance.random() < 0.5:
        small = ImageOps.mirror(small)
    free = SIDE - small.width, SIDE - small.height
    at = tuple(f // 2 if chance is None else chance.randint(0, f) for f in free)
    canvas = Picture.new("RGBA", (SIDE, SIDE), (255, 255, 255, 255))
    canvas.alpha_composite(small, at)
    return torch.from_numpy(np.asarray(canvas.convert("RGB")).copy()).permute(2, 0, 1)


def told(name: str, keywords: list[str], chance: random.Random | None) -> str:
    """The name and its keywords; by chance some of these, in any order."""
    some = list(keywords)
    if chance is not None:
        chance.shuffle(some)
        some = some[: chance.randint(0, len(some))]
    return f"{name}: {', '.join(some)}" if some else name


Entry = tuple[str, list[str], Picture.Image]


def entries(args: Any) -> list[Entry]:
    font = ImageFont.truetype(str(font_file(args.font)), GLYPH)
    made = [(name, keys, drawn(c, font)) for c, (name, keys) in sorted(words(args.names).items())]
    return [(name, keys, glyph) for name, keys, glyph in made if glyph is not None]


def rows_of(some: list[Entry], copies: int, seed: int) -> tuple[Tensor, list[str]]:
    chance = [random.Random(1000 * seed + k) if copies > 1 else None for k in range(copies)]
    x = torch.stack([placed(glyph, c) for c in chance for _, _, glyph in some])
    return x, [told(name, keys, c) for c in chance for name, keys, _ in some]


def data_of(parts: dict[str, tuple[Tensor, list[str]]], to_text: bool, alphabet: str) -> Data:
    longest = max(len(t) for _, texts in parts.values() for t in texts)
    space, made = Text(alphabet, True, longest), {}
    for name, (x, texts) in parts.items():
        rows = from_documents(texts, Options(like=space)).rows
        made[name] = Part(rows, x) if to_text else Part(x, rows)
    both = (space, SPACE) if to_text else (SPACE, space)
    return Data("emoji", "memory", both[0], context=both[1], **made)


def ranks(scores: Tensor) -> Tensor:
    """Of each row [N, N] how many others come before the true one, which is on the diagonal."""
    return (scores > scores.diagonal()[:, None]).sum(1)


@torch.no_grad()
def retrieval(results: Results, model: Any, x: Tensor, texts: list[str], what: str) -> None:
    started, rows, n = time.perf_counter(), model.space.parse(texts), len(x)
    none = number(model.given(null=True).log_prob(rows)).nats
    columns = []
    for image in x:  # one context at a time, encoded once
        columns.append(number(model.given(image).log_prob(rows)).nats - none)
    scores = torch.stack(columns, 1)  # [texts, pictures]
    lik = mean(number(model.given(x).log_prob(rows)))
    results.emit(
        what="likelihood of texts", texts=what, kind=lik.kind.__name__, nats=lik.nats, se=lik.se, n=n,
        nats_without_picture=float(none.mean()), seconds=time.perf_counter() - started,
    )  # fmt: skip
    for way, table in (("picture of a text", scores), ("text of a picture", scores.T)):
        place = ranks(table)
        recall = {f"recall_at_{k}": float((place < k).double().mean()) for k in RECALLS}
        p = recall[f"recall_at_{RECALLS[-1]}"]
        se = math.sqrt(p * (1 - p) / n)
        results.emit(what=way, texts=what, candidates=n, **recall, se_at_10=se, chance_at_10=min(1.0, 10 / n))


def main() -> None:
    parser = arguments(__doc__, 1200.0, source="")
    parser.add_argument("--font", type=Path, help="NotoColorEmoji.ttf")
    parser.add_argument("--names", type=Path, default=NAMES)
    parser.add_argument("--copies", type=int, default=40, help="of each picture for training")
    args = parsed(parser)
    results = Results(args.quick, seconds=args.seconds, seed=args.seed, threads=args.threads)
    every = entries(args)
    order = torch.randperm(len(every), generator=generator(args.seed)).tolist()
    some = [[every[i] for i in order[k::HELD_OUT]] for k in range(HELD_OUT)]
    test, valid, train = some[0], some[1], [e for part in some[2:] for e in part]
    parts = {
        "train": rows_of(train, 2 if args.quick else args.copies, args.seed), "valid": rows_of(valid, 1, args.seed),
        "test": rows_of(test, 1, args.seed),
    }  # fmt: skip
    alphabet = "".join(sorted({c for _, texts in parts.values() for t in texts for c in t}))
    results.emit(what="data", characters=len(every), train=len(train), valid=len(valid), test=len(test))
    x, texts = parts["test"]
    n = 6 if args.quick else len(x)
    if args.only is None or "retrieval" in args.only:
        run = fitted(
            args.out / "retrieval", data_of(parts, True, alphabet), "gpt", args.seconds, args.seed,
            options={"width": 96, "layers": 2, "n_heads": 4, "block": 160, "context_dropout": 0.1, "dropout": 0.1},
            recipe={"batch": 32, "lr": 2e-3}, valid_rows=len(valid),
        )  # fmt: skip
        retrieval(results, run.model, x[:n], texts[:n], "names and keywords")
        retrieval(results, run.model, x[:n], [name for name, _, _ in test[:n]], "names")
    if args.only is None or "pictures" in args.only:
        run = fitted(
            args.out / "pictures", data_of(parts, False, alphabet), "flow-matching", args.seconds, args.seed,
            options={"context_dropout": 0.1, "attend": 1}, recipe={"batch": 32}, valid_rows=20,
        )  # fmt: skip
        c = run.model.context.parse(texts[:10])
        drawn_ones = run.model.given(c).sample(3, sampler=DpmSolver(20, guidance=2.0), generator=generator(args.seed))
        picture(torch.cat([x[None, :10], drawn_ones]), args.out / "emoji.png")
        (args.out / "emoji.txt").write_text("\n".join(texts[:10]) + "\n")
    results.keep("what")
    results.save()


if __name__ == "__main__":
    main()
