"""Multi30k, English and German: text given text by `gpt`, its perplexity and its BLEU by beams.

    python benchmarks/translation.py DATA [--direction en-de] [--seconds 3540] [--context-as attention] [--quick]

DATA is the folder of the data sets (translation/multi30k/*.gz in it: train, val, test_2016_flickr). One fit by the
clock, seed 0, then on test 2016: nats per sentence (subwords are one of a text's spellings, so they bound log p(x)),
perplexity per subword and per word, and cased BLEU by sacrebleu (tokenisation 13a, signature printed) with its
bootstrap interval, by greedy decoding and beams of 1, 4 and 8. Writes results/translation_DIRECTION.json.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import time
from pathlib import Path
from typing import Any

import sacrebleu
import torch

import pofx
from pofx.core.likelihood import mean, number
from pofx.core.requests import Decoding
from pofx.data.parts import Data, Part
from pofx.spaces import Text
from timing import RESULTS, Results

OPTIONS = {
    "vocabulary": 6000, "context_vocabulary": 6000, "width": 192, "layers": 3, "n_heads": 4, "hidden": 512,
    "context_layers": 3, "block": 128, "dropout": 0.2, "tied": True, "smoothing": 0.1,
}  # fmt: skip
RECIPE = {"batch": 128, "lr": 5e-3, "warmup": 200, "schedule": "linear", "ema": 0.998, "accumulate": 1}


def lines(folder: Path, part: str, language: str) -> list[str]:
    with gzip.open(folder / f"{part}.{language}.gz", "rt", encoding="utf-8") as file:
        return [line.strip() for line in file]


def load(folder: Path, source: str, target: str) -> Data:
    """The corpus with its own split; texts are bytes."""
    names = {"train": "train", "valid": "val", "test": "test_2016_flickr"}
    texts = {part: (lines(folder, name, target), lines(folder, name, source)) for part, name in names.items()}
    spaces = [Text("", True, max(len(t.encode()) for part in texts.values() for t in part[k])) for k in (0, 1)]
    parts = {part: Part(*(s.parse(t) for s, t in zip(spaces, both, strict=True))) for part, both in texts.items()}
    return Data("multi30k", str(folder), spaces[0], **parts, context=spaces[1], split="the corpus's own")


def translated(model: Any, c: torch.Tensor, sampler: Any) -> tuple[list[str], float]:
    """The best translation of each context, and the seconds that all take."""
    started = time.perf_counter()
    x = model.given(c).sample(1, sampler=sampler)[0]
    return [model.space.spell(row) for row in x], time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--direction", choices=("en-de", "de-en"), default="en-de")
    parser.add_argument("--seconds", type=float, default=3540.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context-as", choices=("attention", "prefix"), default="attention")
    parser.add_argument("--options", type=json.loads, default={}, help="of gpt, as JSON; nothing is kept")
    parser.add_argument("--recipe", type=json.loads, default={}, help="as JSON; nothing is kept")
    parser.add_argument("--beams", type=int, nargs="*", default=[1, 4, 8])
    parser.add_argument("--length-penalty", type=float, default=1.0)
    parser.add_argument("--rows", type=int, help="of the test set, the first ones; nothing is kept")
    parser.add_argument("--out", type=Path, help="the run folder")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    source, target = args.direction.split("-")
    data = load(args.data / "translation" / "multi30k", source, target)
    options, recipe, seconds, rows = OPTIONS | args.options, RECIPE | args.recipe, args.seconds, args.rows
    if args.context_as == "prefix":
        options |= {"context_as": "prefix", "context_layers": 0}
    if args.quick:
        small = {"width": 32, "layers": 1, "context_layers": 1, "n_heads": 2, "hidden": 64, "dropout": 0.0}
        options, seconds, rows = options | small, min(seconds, 10.0), rows or 20
    kept = not (args.quick or args.options or args.recipe or rows)
    results = Results(
        not kept, threads=args.threads, torch=torch.__version__, direction=args.direction, seed=args.seed,
        seconds=seconds, options=options, recipe=recipe,
    )  # fmt: skip
    said = print if not kept else None
    run = pofx.fit(
        data, "gpt", seconds=seconds, seed=args.seed, options=options, recipe=recipe, out=args.out, checks=20,
        progress=(lambda entry: said(entry) if said and "valid" in entry else None), overwrite=args.out is not None,
    )  # fmt: skip
    model, test = run.model, data.test[: rows or len(data.test)]
    results.emit(what="fit", steps=run.steps, seconds=run.seconds, parameters=model.parameter_count())
    started = time.perf_counter()
    with torch.no_grad():
        lik = model.given(test.c).log_prob(test.x)
    found, references = mean(number(lik)), [data.space.spell(row) for row in test.x]
    each, symbols = float(lik.nats.mean()), model.codec.encode(test.x)
    subwords = float(((symbols >= 0).sum(1) + 1).double().mean())  # the end is one
    words = sum(len(text.split()) + 1 for text in references) / len(references)
    results.emit(
        what="likelihood", kind=found.kind.__name__, nats_per_sentence=found.nats, error=found.error or 0.0,
        per_subword=math.exp(-each / subwords), per_word=math.exp(-each / words),
        nats_per_byte=-each / float(data.space.units(test.x).mean()), rows=len(test),
        seconds=time.perf_counter() - started,
    )  # fmt: skip
    metric = sacrebleu.metrics.BLEU()
    ways: dict[str, Decoding] = {"greedy": Decoding(greedy=True)}
    ways |= {f"beams {k}": Decoding(beams=k, length_penalty=args.length_penalty, hasty=True) for k in args.beams}
    for name, sampler in ways.items():
        found_texts, spent = translated(model, test.c, sampler)
        score = metric.corpus_score(found_texts, [references], n_bootstrap=1000)
        results.emit(
            what="bleu", decoding=name, bleu=score.score, mean=score._mean, interval=score._ci,
            length_ratio=score.sys_len / score.ref_len, seconds=spent, rows=len(test),
            signature=str(metric.get_signature()), example=found_texts[0], reference=references[0],
        )  # fmt: skip
    if kept:
        of = "" if args.context_as == "attention" else "_prefix"
        path = RESULTS / f"translation_{args.direction}{of}.json"
        path.write_text(json.dumps(results.entries, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
