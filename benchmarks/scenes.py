"""Captions and composed scenes of one to three digits: scenes drawn by their caption, captions written of scenes.

    python benchmarks/scenes.py DATA OUT [--seconds 3600] [--seed 0] [--threads 1] [--only PART ...] [--quick]

DATA is the folder of the data sets (images/mnist in it): 60,000 training scenes of its training digits, test scenes of
its test digits, as the built-in source ``scenes`` composes them. OUT keeps the runs.

reader      a plain ConvNet that reads each place of a scene (none, or size, colour and digit), trained on real scenes.
            ``right``: of test scenes, every fact that the caption tells, and no further digit; ``places``: of places.
to-scene    ``flow-matching`` given the caption, for the seconds: the share of 1,000 test captions whose drawn scene
            the reader finds right in every fact, without guidance and with it; the likelihood of test scenes.
to-caption  ``gpt`` given the scene, for the seconds: the share of 1,000 test scenes whose caption by greedy decoding is
            the truth to the letter, and the likelihood of the true captions.

Prints one JSON object a line, writes all to results/scenes.json (what is there of the other way stays), and
docs/_static/scenes.png: captions above scenes.
"""

from __future__ import annotations

import itertools
import math
import textwrap
import time
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

import pofx
from fitted import arguments, fitted, generator, parsed
from pofx.core.likelihood import mean, number
from pofx.core.requests import Decoding, DpmSolver, VariationalBound
from pofx.data.options import Options
from pofx.data.parts import Data, Part
from pofx.data.scenes import COLOURS, MOST, PLACES, SIZES, SPACE, Fact, compose, facts
from pofx.data.text import from_documents
from pofx.spaces import Text
from timing import Results

SCALES, STEPS = (1.0, 2.0, 3.0), 20
OPTIONS = {"blocks": 1, "attend": 1, "context_vocabulary": 256, "context_dropout": 0.1}  # of scenes given captions
WORDS = (list(SIZES), list(COLOURS), [*"0123456789"])
EVERY = [str(Fact(*fact)) for fact in itertools.product(*WORDS, PLACES)]
CAPTIONS = Text("".join(sorted({*"".join(EVERY), *", and"})), True, MOST * max(map(len, EVERY)) + len(",  and "))
SHOWN = 10


def digits(folder: Path, test: bool) -> tuple[Tensor, Tensor]:
    """MNIST's digits without their border [N, 20, 20], from 0 to 1, and which they are."""
    rows = pofx.load(folder / "images" / "mnist", target="label", split=(0.98, 0.01, 0.01))
    part = (rows.test if test else rows.train).read()
    assert part.c is not None
    return part.c[:, 0, 4:24, 4:24].float() / 255, part.x


def scenes(folder: Path, n: int, seed: int) -> tuple[Data, dict[str, list[str]]]:
    """Scenes given nothing yet, and the captions of each part."""
    seen, unseen = digits(folder, False), digits(folder, True)
    sizes = {"train": (n, seen), "valid": (max(20, n // 60), seen), "test": (max(20, n // 30), unseen)}
    parts, told = {}, {}
    for i, (name, (count, some)) in enumerate(sizes.items()):
        x, told[name] = compose(count, *some, generator(1000 * seed + i))
        parts[name] = Part(x)
    return Data("scenes", "<memory>", SPACE, **parts), told


def paired(data: Data, told: dict[str, list[str]], to_scene: bool) -> Data:
    """p(scene | caption), or p(caption | scene)."""

    def part(name: str) -> Part:
        x, c = getattr(data, name).x, from_documents(told[name], Options(like=CAPTIONS)).rows
        return Part(x, c) if to_scene else Part(c, x)

    spaces = (SPACE, CAPTIONS) if to_scene else (CAPTIONS, SPACE)
    return Data("scenes", "<memory>", spaces[0], context=spaces[1], **{k: part(k) for k in told})


# -- an independent reader ------------------------------------------------------------------------------------


class Reader(nn.Module):
    """Each place of scenes [N, 3, 32, 32], by one ConvNet: is there a digit, and which size, colour and digit?"""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
            nn.MaxPool2d(2), nn.Conv2d(64, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU(), nn.Flatten(),
            nn.Dropout(0.3), nn.Linear(128 * 36, 1 + sum(map(len, WORDS))),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """[N, 5, 1 + 2 + 6 + 10]"""
        side = max(SIZES.values())
        cells = torch.stack([x[:, :, a : a + side, b : b + side] for a, b in PLACES.values()], 1)
        y: Tensor = self.body(cells.flatten(0, 1).float() / 255)
        return y.unflatten(0, (-1, len(PLACES)))


def targets(told: list[str]) -> Tensor:
    """What stands in each place [N, 5, 3]: the numbers of size, colour and digit; -1 where there is none."""
    out, places = torch.full((len(told), len(PLACES), 3), -1), list(PLACES)
    for row, text in zip(out, told, strict=True):
        for fact in facts(text):
            place = places.index(fact.place)
            row[place] = torch.tensor([w.index(v) for w, v in zip(WORDS, fact[:3], strict=True)])
    return out


@torch.no_grad()
def read(reader: Reader, x: Tensor) -> Tensor:
    """As ``targets``."""
    reader.eval()
    y = torch.cat([reader(some) for some in x.split(500)])
    each = torch.stack([part.argmax(2) for part in y[..., 1:].split([len(w) for w in WORDS], 2)], 2)
    return torch.where(y[..., :1] > 0, each, -1)


def trained(data: Data, told: dict[str, list[str]], seconds: float, seed: int) -> Reader:
    """A reader after so many seconds of one cycle of Adam."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        reader = Reader().train()
        x, y = data.train.x, targets(told["train"])
        optimizer = torch.optim.Adam(reader.parameters(), 2e-3)
        drawn, started = generator(seed), time.perf_counter()
        while (gone := (time.perf_counter() - started) / seconds) < 1:
            optimizer.param_groups[0]["lr"] = 2e-3 * min(1, 10 * gone + 0.01, 0.01 + 1.5 * (1 - gone))
            rows = torch.randint(len(x), (64,), generator=drawn)
            there, out = y[rows][..., 0] >= 0, reader(x[rows])
            loss = F.binary_cross_entropy_with_logits(out[..., 0], there.float())
            for k, part in enumerate(out[..., 1:].split([len(w) for w in WORDS], 2)):
                loss = loss + F.cross_entropy(part[there], y[rows][there][:, k])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return reader


def shares(found: Tensor, true: Tensor) -> dict[str, float]:
    """Scenes read right in every fact, its standard error, and places; of those with a digit each attribute."""
    right = (found == true).flatten(1).all(1).double()
    there = true[..., 0] >= 0
    each = {
        name: float((found == true)[..., k][there].double().mean())
        for k, name in enumerate(("size", "colour", "digit"))
    }
    se = math.sqrt(float(right.mean()) * (1 - float(right.mean())) / len(right))
    return {"right": float(right.mean()), "se": se, "places": float((found == true).all(2).double().mean()), **each}


# -- both ways ------------------------------------------------------------------------------------------------


def to_scene(results: Results, data: Data, told: dict[str, list[str]], reader: Reader, args: Any) -> tuple[Any, Tensor]:
    n = 20 if args.quick else args.draws
    run = fitted(
        args.out / "to-scene", paired(data, told, True), args.family, args.seconds, args.seed,
        options=OPTIONS | args.options, recipe={"batch": 32, **args.recipe},
        valid_rows=200,
    )  # fmt: skip
    model, true = run.model, targets(told["test"][:n])
    c, drawn = CAPTIONS.parse(told["test"][:n]), torch.empty(0)
    for scale in SCALES[:2] if args.quick else SCALES:
        started = time.perf_counter()
        sampler, noise = DpmSolver(STEPS, guidance=None if scale == 1 else scale), generator(args.seed)
        x = torch.cat([model.given(some).sample(1, sampler=sampler, generator=noise)[0] for some in c.split(100)])
        took = time.perf_counter() - started
        found = shares(read(reader, x), true)
        results.emit(
            part="to-scene",
            what="scene given its caption",
            family=run.model.name,
            guidance=scale,
            n=n,
            **found,
            seconds=took,
        )
        drawn = x if scale == SCALES[1] else drawn
    some = slice(0, 10 if args.quick else 200)
    with torch.no_grad():
        nats = mean(number(model.given(c[some]).log_prob(data.test.x[some], request=VariationalBound(16))))
        none = mean(number(model.given(null=True).log_prob(data.test.x[some], request=VariationalBound(16))))
    for given, found in (("its caption", nats), ("nothing", none)):
        results.emit(
            part="to-scene", what="likelihood of a scene", given=given, kind=found.kind.__name__, nats=found.nats,
            se=found.se, rows=len(c[some]), parameters=model.parameter_count(),
        )  # fmt: skip
    return model, drawn


def to_caption(results: Results, data: Data, told: dict[str, list[str]], args: Any) -> None:
    n = 20 if args.quick else args.draws
    run = fitted(
        args.out / "to-caption", paired(data, told, False), "gpt", args.seconds, args.seed,
        options={"width": 128, "layers": 3, "n_heads": 4, "block": 128}, recipe={"batch": 32}, valid_rows=200,
    )  # fmt: skip
    model, x, started = run.model, data.test.x[:n], time.perf_counter()
    greedy = Decoding(greedy=True)
    found: list[str] = []
    for some in x.split(100):
        drawn = model.given(some).sample(1, sampler=greedy, generator=generator(args.seed))[0]
        found += [CAPTIONS.spell(row) for row in drawn]
    right = torch.tensor([a == b for a, b in zip(found, told["test"], strict=False)]).double()
    share = float(right.mean())
    results.emit(
        part="to-caption", what="caption of a scene", family=model.name, n=n, exact=share,
        se=math.sqrt(share * (1 - share) / n),
        seconds=time.perf_counter() - started, parameters=model.parameter_count(),
    )  # fmt: skip
    with torch.no_grad():
        lik = mean(number(model.given(x).log_prob(CAPTIONS.parse(told["test"][:n]))))
    results.emit(
        part="to-caption", what="likelihood of a caption", kind=lik.kind.__name__, nats=lik.nats, se=lik.se, rows=n
    )
    for said, true in [(a, b) for a, b in zip(found, told["test"], strict=False) if a != b][:5]:
        results.emit(part="to-caption", what="a caption that is not exact", said=said, true=true)


def shown(x: Tensor, told: list[str], path: Path) -> None:
    """Captions above scenes."""
    figure = Figure(figsize=(12, 5.6), layout="constrained")
    for axes, image, text in zip(figure.subplots(2, SHOWN // 2).flat, x, told, strict=False):
        axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set_title("\n".join(textwrap.wrap(text, 26)), fontsize=8)
        axes.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = arguments(__doc__, 3600.0)
    parser.add_argument("--scenes", type=int, default=60_000, help="for training")
    parser.add_argument("--draws", type=int, default=1000, help="test captions, and test scenes")
    parser.add_argument("--family", default="flow-matching", help="of scenes given captions")
    parser.add_argument("--options", type=lambda s: pairs_of(s), default={}, metavar="K=V,...", help="of the family")
    parser.add_argument("--recipe", type=lambda s: pairs_of(s), default={}, metavar="K=V,...", help="of its training")
    parser.add_argument("--reader", type=float, default=400.0, help="seconds of the reader's training")
    args = parsed(parser)
    results = Results(args.quick, **{k: getattr(args, k) for k in ("seconds", "seed", "threads", "scenes")})
    data, told = scenes(args.data, 600 if args.quick else args.scenes, args.seed)
    reader = None
    if args.only is None or {"reader", "to-scene"} & set(args.only):
        reader = trained(data, told, min(args.reader, args.seconds), args.seed)
        found = shares(read(reader, data.test.x), targets(told["test"]))
        results.emit(part="to-scene", what="the reader on real scenes", n=len(data.test), **found)
    if args.only is None or "to-scene" in args.only:
        assert reader is not None
        _, drawn = to_scene(results, data, told, reader, args)
        place = args.out if results.quick else Path(__file__).parent.parent / "docs" / "_static"
        shown(drawn[:SHOWN], told["test"], place / "scenes.png")
    if args.only is None or "to-caption" in args.only:
        to_caption(results, data, told, args)
    results.keep("part")
    results.save()


def pairs_of(text: str) -> dict[str, Any]:
    """a=1,b=x as a dictionary, numbers as numbers."""

    def value(v: str) -> Any:
        for kind in (int, float):
            try:
                return kind(v)
            except ValueError:
                continue
        return v

    return {k: value(v) for k, v in (pair.split("=", 1) for pair in text.split(","))}


if __name__ == "__main__":
    main()
