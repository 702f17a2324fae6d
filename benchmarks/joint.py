"""Pairs of a caption and an image by one net: how far p(a) p(b | a) is from p(b) p(a | b), and what each answers.

    python benchmarks/joint.py [--mnist DIR] [--seconds 600] [--rows 2000] [--seed 0] [--quick]

MNIST (IDX files in DIR, such as DATA/images/mnist) at 14×14 pixels, light or dark; without it scikit-learn's digits of
8×8 pixels. A caption says which digit and whether it has more ink than most of its kind: "a bold seven", "a thin two".
`joint-gpt` with its default head and with the diffusion head goes through both; held out:

- the gap in nats between the two factorisations of p(caption, image), its mean and its spread over pairs, and what
  caption and image tell of each other by either (E log p(b | a) - log p(b), and the same of a);
- argmax over all captions of p(caption | image), and of p(image | caption) by Bayes' rule, against the true one;
- draws of p(image | caption), read by an independent `classifier` of digits, beside real images read by it.

One thread. Writes results/joint.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pofx
from pofx.core.likelihood import Available, mean, number
from pofx.core.model import Model
from pofx.core.requests import ByChainRule, VariationalBound
from pofx.data.joint import joined
from pofx.data.parts import Data, Part
from pofx.spaces import Image, Text
from timing import Results

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CAPTIONS = [f"a {ink} {name}" for name in NAMES for ink in ("thin", "bold")]  # caption 2 k + bold
TEXT = Text("".join(sorted(set("".join(CAPTIONS)))), True, max(map(len, CAPTIONS)))
DIGIT = torch.arange(len(CAPTIONS)) // 2


def captioned(data: Data, shrink: bool) -> Data:
    """Images, small and of two levels where they are to be shrunk, given captions, whose numbers ``label`` has."""
    parts = [getattr(data, name).read() for name in ("train", "valid", "test")]

    def image(x: Tensor) -> Tensor:
        return (torch.nn.functional.avg_pool2d(x.double(), 2) >= 128).to(torch.uint8) if shrink else x

    images = [image(p.x) for p in parts]
    ink = [x.flatten(1).double().sum(1) for x in images]
    middle = torch.stack([ink[0][parts[0].c == k].median() for k in range(10)])
    space = Image(14, 14, 1, 2) if shrink else data.space
    made = []
    for p, x, dark in zip(parts, images, ink, strict=True):
        number = 2 * p.c + (dark > middle[p.c]).long()
        made.append(Part(x, TEXT.parse(CAPTIONS)[number], number, rows=p.rows))
    return dataclasses.replace(
        data, space=space, context=TEXT, labels=tuple(CAPTIONS), train=made[0], valid=made[1], test=made[2]
    )


def told(what: Available) -> dict[str, Any]:
    """Mean nats per pair, their standard error, and what they are."""
    found = mean(number(what))
    return {"kind": found.kind.__name__, "nats": found.nats, "se": found.se or 0.0}


def accuracy(right: Tensor) -> dict[str, float]:
    p = float(right.double().mean())
    return {"accuracy": p, "accuracy_se": math.sqrt(p * (1 - p) / len(right))}


@torch.no_grad()
def measured(results: Results, name: str, model: Model, test: Part, reader: Model, draws: int, seed: int) -> None:
    captions = TEXT.parse(CAPTIONS)
    x, text, number_of = test.x, test.c, test.label
    assert number_of is not None
    given = {"image": model.part_model("a", given=True), "caption": model.part_model("b", given=True)}
    bound = model.default_request() if isinstance(model.default_request(), VariationalBound) else None
    pairs = model.space.join(x, text)  # type: ignore[attr-defined]
    answers = {
        "p(image, caption)": model.log_prob(pairs),
        "p(image)": model.part_model("a").log_prob(x),
        "p(caption)": model.part_model("b").log_prob(text),
        "p(image | caption)": given["image"].given(text).log_prob(x),
        "p(caption | image)": given["caption"].given(x).log_prob(text),
    }
    for of, lik in answers.items():
        results.emit(model=name, measure=of, **told(lik), rows=len(x))
    if bound is None:
        ab, ba = (model.log_prob(pairs, request=ByChainRule(part)).nats for part in ("a", "b"))
        gap = ab - ba
        results.emit(
            model=name, measure="gap: image first - caption first", kind="Exact", nats=float(gap.mean()),
            se=float(gap.std()) / math.sqrt(len(gap)), mean_abs=float(gap.abs().mean()), spread=float(gap.std()),
            rows=len(gap),
        )  # fmt: skip
        for of, part, rest in (
            ("image", "p(image)", "p(image | caption)"),
            ("caption", "p(caption)", "p(caption | image)"),
        ):
            each = answers[rest].nats - answers[part].nats
            results.emit(
                model=name, measure=f"what is told of the {of}", kind="Exact", nats=float(each.mean()),
                se=float(each.std()) / math.sqrt(len(each)), rows=len(each),
            )  # fmt: skip
    every = given["caption"].given(x).log_prob(captions[:, None].expand(-1, len(x), -1)).nats.T  # [N, captions]
    few = slice(0, min(len(x), 500 if bound is None else 100))  # one pass for each caption
    request = None if bound is None else VariationalBound(draws=8)
    wide = x[few].expand(len(captions), *x[few].shape).transpose(0, 1)
    bayes = given["image"].given(captions).log_prob(wide, request=request).nats
    counts = torch.bincount(number_of, minlength=len(captions)).double()
    guesses = {
        "caption by p(caption | image)": (every, number_of),
        "caption by Bayes from p(image | caption)": (bayes + (counts / counts.sum()).log(), number_of[few]),
    }
    for of, (log_p, right) in guesses.items():
        guess = log_p.argmax(1)
        results.emit(
            model=name, measure=of, **accuracy(guess == right), rows=len(right),
            digit_accuracy=float((DIGIT[guess] == DIGIT[right]).double().mean()),
        )  # fmt: skip
    results.emit(
        model=name, measure="mass of p(caption | image) on captions", mass=float(every.exp().sum(1).mean()), rows=len(x)
    )
    drawn = given["image"].given(captions).sample(draws, generator=torch.Generator().manual_seed(seed))
    for of, images, digit in (
        ("draws of p(image | caption), read", drawn.flatten(0, 1), DIGIT.repeat(draws)),
        ("real images, read", x, DIGIT[number_of]),
    ):
        read = torch.cat([reader.given(part).classes().nats for part in images.split(1000)]).argmax(1)
        results.emit(model=name, measure=of, **accuracy(read == digit), rows=len(images))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", help="the folder of MNIST's IDX files")
    parser.add_argument("--seconds", type=float, default=600.0, help="of each fit of joint-gpt")
    parser.add_argument("--rows", type=int, default=2000, help="held-out pairs that are looked at")
    parser.add_argument("--draws", type=int, default=100, help="images for each caption")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few seconds; nothing is kept")
    args = parser.parse_args()
    torch.set_num_threads(1)
    seconds, draws = (4.0, 4) if args.quick else (args.seconds, args.draws)
    source = "digits" if args.mnist is None else Path(args.mnist)
    results = Results(
        args.quick,
        threads=1,
        torch=torch.__version__,
        seconds=seconds,
        seed=args.seed,
        source=str(getattr(source, "name", source)),
    )
    data = captioned(pofx.load(source, given="label"), shrink=args.mnist is not None)
    parts = {name: getattr(data, name) for name in ("train", "valid", "test")}
    digits = {name: Part(DIGIT[p.label], p.x, DIGIT[p.label]) for name, p in parts.items()}
    reads = dataclasses.replace(data, space=pofx.Label(NAMES), context=data.space, labels=NAMES, **digits)
    reader = pofx.fit(reads, "classifier", seconds=min(seconds, 60.0), seed=args.seed).model
    test = data.test.draw(100 if args.quick else args.rows, args.seed)
    patch = {"patch": 2}
    for name, options in (("levels", patch), ("diffusion head", patch | {"image_head": "diffusion"})):
        run = pofx.fit(joined(data), "joint-gpt", seconds=seconds, seed=args.seed, options=options)
        results.emit(model=name, parameters=run.model.parameter_count(), steps=run.steps, fit_seconds=run.seconds)
        measured(results, name, run.model, test, reader, draws, args.seed)
    results.save()


if __name__ == "__main__":
    main()
