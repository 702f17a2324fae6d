"""Damaged files of every kind: named errors or right numbers only; no crash, no hang, bounded memory.

``python tests/fuzz/fuzz.py`` (``make fuzz``) prints what it found and exits with 1 where there is a finding;
``--only csv,wav,gmm`` picks formats and families, ``--count`` and ``--seed`` say how many and which damages.
``test_fuzz.py`` is a short run of it.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path

import mutate
import numpy as np
import readers
import sandbox

FILES, OF_RUN, BITS = 2000, 200, 170  # damaged files of each format, of a run folder; flipped bits of its weights
RUNS = {"gmm": {"components": 3}, "made": {"hidden": 16}, "vae": {"hidden": 16, "latent": 2}}


def _whole(of: str, seed: int) -> bytes:
    """An undamaged file of a format, made in a fork: pyarrow's threads would not survive the next one."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "whole"

        def make() -> str:
            path.write_bytes(readers.FORMATS[of][1](np.random.default_rng(seed)))
            return "made"

        outcome = sandbox.trial(make, seconds=60)
        assert outcome.kind == "right", outcome
        return path.read_bytes()


def _seed(*parts: object) -> int:
    return zlib.crc32(repr(parts).encode())


def _load(path: Path) -> str:
    """Read a file whole, as ``pofx data`` would."""
    import pofx

    data = pofx.load(path)
    rows = sum(len(part.read().x) for part in (data.train, data.valid, data.test))
    data.describe()
    return f"{rows} rows of {data.space}"


def damaged_files(of: str, count: int, seed: int) -> Iterator[tuple[str, sandbox.Outcome]]:
    """What reading makes of ``count`` damaged files of one format, each named by its number."""
    content = _whole(of, seed)
    for k in range(count):
        rng = random.Random(_seed(of, seed, k))
        with tempfile.TemporaryDirectory() as place:
            work = partial(_read_damaged, Path(place), of, mutate.mutated(content, rng), seed)
            yield f"{of} {k}", sandbox.trial(work)


def _read_damaged(place: Path, of: str, content: bytes, seed: int) -> str:
    return _load(readers.write(place, of, content, np.random.default_rng(seed)))


# -- run folders -------------------------------------------------------------------------------------------


def make_run(place: Path, family: str) -> None:
    """A run folder with everything that a fit, an evaluation and a report leave, in a fork of its own."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 3)).cumsum(1).round(3)
    csv = place / "t.csv"
    csv.write_text("a,b,c\n" + "".join(",".join(map(str, row)) + "\n" for row in x))

    def make() -> str:
        from pofx.cli import main

        options = [f"--options.{k}={v}" for k, v in RUNS[family].items()]
        run = str(place / "run")
        assert main(["fit", str(csv), family, "--steps", "5", "--out", run, "--quiet", *options]) == 0
        assert main(["report", run, "--quiet"]) == 0
        return "made"

    outcome = sandbox.trial(make, seconds=120)
    assert outcome.kind == "right", outcome.text


def _use(place: Path) -> str:
    """All that reads a run folder: its numbers, and the report."""
    import torch

    from pofx.report.build import build
    from pofx.train.run import read_run

    run = read_run(place / "run")
    x = torch.tensor([[0.1, 0.2, 0.3], [1.0, -1.0, 0.5]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    likelihood = run.model.log_prob(x, generator=generator)
    drawn = run.model.sample(2, generator=generator)
    page = build(place / "run", out=place / "page.html").read_text()
    told = re.sub(r"<svg.*?</svg>|base64,[^\"]*", "", page, flags=re.DOTALL)
    return json.dumps([type(likelihood).__name__, likelihood.nats.tolist(), drawn.tolist(), zlib.crc32(told.encode())])


def _resume(place: Path) -> str:
    from pofx.train.fit import resume

    return f"{resume(place / 'run').steps} steps"


def damaged_runs(place: Path, count: int, seed: int) -> Iterator[tuple[str, sandbox.Outcome]]:
    """Damage to one file of a run folder at a time: a named error, or the numbers of the whole one."""
    files = sorted(p for p in (place / "run").rglob("*") if p.is_file() and p.suffix != ".html")
    right = sandbox.trial(partial(_use, place), seconds=60)
    assert right.kind == "right", right.text
    for k in range(count):
        rng = random.Random(_seed("run", seed, k))
        path = files[k % len(files)]
        whole = path.read_bytes()
        damage = rng.choice((mutate.flipped_byte, mutate.flipped_bit, mutate.truncated))
        path.write_bytes(damage(whole, rng))
        try:
            for work in (_use, _resume) if path.name == "resume.safetensors" else (_use,):
                outcome = sandbox.trial(partial(work, place), seconds=30)
                if work is _use and outcome.kind == "right" and outcome.text != right.text:
                    outcome = sandbox.Outcome("changed", f"{outcome.text} instead of {right.text}")
                yield f"{damage.__name__} of {path.name} {k}", outcome
        finally:
            path.write_bytes(whole)


def flipped_weights(place: Path, count: int, seed: int) -> Iterator[tuple[str, sandbox.Outcome]]:
    """One bit of the weights at a time is another: this is always noticed."""
    path = place / "run" / "weights.safetensors"
    whole = path.read_bytes()
    for k in range(count):
        path.write_bytes(mutate.flipped_bit(whole, random.Random(_seed("bit", seed, k))))
        outcome = sandbox.trial(partial(_use, place), seconds=30)
        if outcome.kind == "right":
            outcome = sandbox.Outcome("unnoticed", outcome.text)
        yield f"bit {k}", outcome
    path.write_bytes(whole)


# -- the command ------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="formats and families, separated by commas [default: all]")
    parser.add_argument("--count", type=int, help=f"damaged files of each [default: {FILES}, of runs {OF_RUN}]")
    parser.add_argument("--seed", type=int, default=2)
    args = parser.parse_args()
    wanted = [w for w in args.only.split(",") if w] or [*readers.FORMATS, *RUNS]
    bad = 0
    for of in wanted:
        if of in readers.FORMATS:
            bad += _report(of, damaged_files(of, args.count or FILES, args.seed))
            continue
        with tempfile.TemporaryDirectory() as place:
            make_run(Path(place), of)
            bad += _report(f"run of {of}", damaged_runs(Path(place), args.count or OF_RUN, args.seed))
            bad += _report(f"bits of {of}", flipped_weights(Path(place), args.count or BITS, args.seed))
    return 1 if bad else 0


def _report(title: str, outcomes: Iterator[tuple[str, sandbox.Outcome]]) -> int:
    kinds: Counter[str] = Counter()
    slowest, most, bad = 0.0, 0, []
    for name, outcome in outcomes:
        kinds[outcome.kind] += 1
        slowest, most = max(slowest, outcome.seconds), max(most, outcome.peak)
        if not outcome.fine:
            bad.append(f"  {name}: {outcome.kind}: {outcome.text[-1500:]}")
    counts = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())
    print(f"{title}: {counts}; at most {slowest:.1f} s, {most / 2**20:.0f} MiB", flush=True)
    print("\n".join(bad[:20]), end="\n" if bad else "", flush=True)
    return len(bad)


if __name__ == "__main__":
    for name in ("pandas", "pofx.data.read", "pofx.evaluate.compare", "pofx.report.build", "pofx.families.vae"):
        import_module(name)  # the forks find everything imported
    sys.exit(main())
