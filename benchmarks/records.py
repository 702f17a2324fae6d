"""Records of the autoregressive families: each is one ``pofx fit`` command, whose answer is kept.

    python benchmarks/records.py DATA NAME [NAME ...] [--threads 2] [--seconds 60]
    python benchmarks/records.py DATA --list

DATA is the folder that holds images/, text/, audio/, music/ and trajectories/. The answer of NAME (the held-out
score with its kind, its error and its unit, the time, the number of parameters) goes to results/records/NAME.json with
the command that made it; ``--seconds`` shortens a run, for a trial that is not kept. Texts are scored a second time
in windows end to end (a stride of the whole block), which others report.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "records"
MNIST = "{data}/images/binarized-mnist/binarized_mnist_fixed.npz"
MUON = "--recipe.optimizer muon --recipe.schedule linear"
LONG = "--recipe.warmup 100 --recipe.ema 0.999"
SHAKESPEARE = "{data}/text/tinyshakespeare.txt"

FSDD = "{data}/audio/fsdd/fsdd_8k_5speakers.npz"
PUSHT = "{data}/trajectories/pusht_cchi_v7_lowdim.npz gpt --arrays action,state"
GPT = "--options.width 192 --options.layers 4 --options.n-heads 6"
PATCHES = "--options.width 128 --options.layers 6 --options.n-heads 4 --options.patch 4"

RECORDS = {
    # text: the first 90% train (and of these 1% validates), the last 10% tests
    "shakespeare-nanogpt": f"{SHAKESPEARE} gpt --split 0.89 0.01 0.1 --steps 2000"
    " --options.width 128 --options.layers 4 --options.n-heads 4 --options.block 64 --options.positions learned"
    " --options.mlp gelu --options.no-qk-norm --options.tied"
    " --recipe.optimizer adam --recipe.schedule cosine --recipe.batch 12 --recipe.lr 1e-3 --recipe.warmup 100",
    "shakespeare": f"{SHAKESPEARE} gpt --split 0.89 0.01 0.1 --seconds 600 {GPT} --options.block 256 {MUON}"
    " --recipe.batch 16 --recipe.lr 6e-3 --recipe.warmup 50",
    "shakespeare-rnn": f"{SHAKESPEARE} rnn --split 0.89 0.01 0.1 --seconds 600",
    # images
    "binarized-mnist-patches": f"{MNIST} image-gpt --shape 28 28 --seconds 3300 {PATCHES} {MUON} --recipe.lr 5e-3"
    f" --recipe.batch 64 {LONG}",
    "binarized-mnist-scans": f"{MNIST} image-gpt --shape 28 28 --seconds 3480 {PATCHES} --options.scans 4 {MUON}"
    f" --recipe.lr 5e-3 --recipe.batch 64 {LONG}",
    "binarized-mnist-patches-3min": f"{MNIST} image-gpt --shape 28 28 --seconds 180 {PATCHES} {MUON} --recipe.lr 5e-3",
    "binarized-mnist-pixels-3min": f"{MNIST} image-gpt --shape 28 28 --seconds 180 --options.patch 1"
    f" --options.width 64 --options.layers 4 --options.n-heads 4 {MUON} --recipe.batch 16 --recipe.lr 5e-3",
    "binarized-mnist-pixelcnn-3min": f"{MNIST} pixelcnn --shape 28 28 --seconds 180",
    "binarized-mnist-gated-3min": f"{MNIST} gated-pixelcnn --shape 28 28 --seconds 180",
    "binarized-mnist-plus-3min": f"{MNIST} pixelcnn++ --shape 28 28 --seconds 180",
    "binarized-mnist-pixelrnn-3min": f"{MNIST} pixelrnn --shape 28 28 --seconds 180",
    "cifar": "{data}/images/cifar10/cifar10_lossless_first4000.npz image-gpt --seconds 240 --options.patch 2"
    f" --options.width 128 --options.layers 4 --options.n-heads 4 {MUON} --recipe.batch 16 --recipe.lr 4e-3 {LONG}",
    "bsds-tiles": "{data}/images/bsds300/bsds300_color32_tiles.npz image-gpt --seconds 240 --options.patch 2"
    f" --options.width 128 --options.layers 4 --options.n-heads 4 {MUON} --recipe.batch 16 --recipe.lr 4e-3 {LONG}",
    # sound, music, trajectories
    "digits-wavenet": f"{FSDD} wavenet --seconds 1020",
    "jsb-rnn": "{data}/music/JSB_Chorales.npz rnn --seconds 100 --options.width 128 --options.dropout 0.3",
    "nottingham-rnn": "{data}/music/Nottingham.npz rnn --seconds 180 --options.width 128 --options.dropout 0.3",
    "piano-midi-rnn": "{data}/music/Piano_midi.npz rnn --seconds 100 --options.width 128 --options.dropout 0.3",
    "push-t-gpt": f"{PUSHT} --seconds 120 --options.width 96 --options.layers 3 --options.block 256 --recipe.batch 8",
    "sheep-gpt": "{data}/trajectories/sketch_aaron_sheep.npz gpt --seconds 150 --options.width 96 --options.layers 3",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--list", action="store_true", help="print the commands")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, help="instead of the record's own budget; the answer is not kept")
    args = parser.parse_args()
    if args.list:
        for name, command in RECORDS.items():
            print(f"{name}: pofx fit {command}\n")
        return 0
    for name in args.names:
        record(name, args)
    return 0


def record(name: str, args: argparse.Namespace) -> None:
    command = RECORDS[name]
    words = shlex.split(command.format(data=args.data))
    if args.seconds:
        i = next(i for i, word in enumerate(words) if word in ("--seconds", "--steps", "--epochs"))
        words[i : i + 2] = ["--seconds", str(args.seconds)]
    with tempfile.TemporaryDirectory() as place:
        run = f"{place}/run"
        found = pofx(["fit", *words, "--out", run], args.threads)
        if "--options.block" in words and SHAKESPEARE in command:
            block = words[words.index("--options.block") + 1]
            found["end_to_end"] = pofx(["log-prob", run, "--stride", block], args.threads)
            del found["end_to_end"]["run"]
        log = [json.loads(line) for line in Path(run, "log.jsonl").read_text().splitlines()]
    del found["run"]
    kept = {"name": name, "command": f"pofx fit {command}", **found}
    kept["validations"] = [[e["step"], e["seconds"], e.get("valid")] for e in log]
    kept["machine"] = {"cpu": platform.machine(), "cores": os.cpu_count(), "threads": args.threads}
    print(json.dumps(kept))
    if not args.seconds:
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n")


def pofx(words: list[str], threads: int) -> dict:
    """What a pofx command answers."""
    made = subprocess.run(
        [sys.executable, "-m", "pofx.cli", *words, "--json"],
        env=os.environ | {"OMP_NUM_THREADS": str(threads)}, stdout=subprocess.PIPE, check=True, text=True,
    )  # fmt: skip
    return json.loads(made.stdout)


if __name__ == "__main__":
    sys.exit(main())
