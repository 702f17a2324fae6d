"""Sounds given texts: `mel-vocoder` by Griffin-Lim and by its WaveNet, `wavenet` by itself, and what a judge hears.

    python benchmarks/speech_synthesis.py DATA OUT [--data fsdd espeak] [--family mel-vocoder wavenet] [--seconds 1200]
        [--draws 250] [--seed 0] [--options JSON] [--quick]

DATA is the folder of the data sets (audio/fsdd in it: 5 speakers, 10 digits, 50 times each, 8 kHz; the first five of
each test, the last five of the others validate; clips of at most a second). `espeak` are phrases of three digits that
espeak-ng says in four voices at several speeds and pitches, brought to 16 kHz. Sounds have 256 mu-law levels; the text
says the words, and nothing of the speaker.

The judge is pocketsphinx with a grammar of these words in a row, as many as are said; a word is wrong where it hears
another in its place, or none. It hears real test clips; these again from their own spectra (`copy`), by Griffin-Lim and
by the vocoder; and draws for the texts of test clips. Shares of wrong words with the 95% interval of Beta(1/2 + wrong,
1/2 + right).
Held-out nats per sample with their kind, and seconds for a second of sound, on one thread. Writes
results/speech_synthesis.json: what was there of other families and data stays; in OUT a WAV of each text, and
spectra.png: log-mel spectra of real clips above, of draws below.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from matplotlib.figure import Figure
from scipy.signal import resample_poly
from torch import Tensor

import pofx
from pofx.core.likelihood import mean, number
from pofx.core.requests import GriffinLim
from pofx.data.audio import encode, pcm
from pofx.data.parts import Data, Part
from pofx.data.write import write_audio
from pofx.evaluate.pairs import share_interval
from pofx.nn.mel import log_mel
from pofx.spaces import Audio, Text

LEVELS, LONGEST = 256, 8000  # the longest clip of one digit, in samples
HEARD = 16000  # samples per second, by the judge
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS = "".join(sorted({c for word in WORDS for c in word} | {" "}))
VOICES = ("en-us", "en-us+f2", "en-us+f4", "en-us+m3")
PHRASES, HELD = 2400, 200  # of espeak; those that validate, and as many that test
RESULTS = Path(__file__).parent / "results" / "speech_synthesis.json"
FAMILIES: dict[str, dict[str, Any]] = {
    "mel-vocoder": {"frames": "gpt:width=192,layers=4,dropout=0.1"},
    "wavenet": {"prediction": 0},
}


# -- data ----------------------------------------------------------------------------------------------------


def digits(folder: Path) -> Data:
    found = np.load(folder / "audio" / "fsdd" / "fsdd_8k_5speakers.npz")
    every = np.split(found["audio"] / 32768.0, found["offsets"][1:-1])
    short = np.array([len(a) <= LONGEST for a in every])
    test, valid = short & (found["index"] < 5), short & (found["index"] >= 45)
    texts = [WORDS[k] for k in found["digit"]]
    return made("fsdd", int(found["sample_rate"]), every, texts, [short & ~test & ~valid, valid, test])


def phrases(seed: int, count: int) -> Data:
    chance = np.random.default_rng(seed)
    texts = [" ".join(WORDS[k] for k in chance.integers(10, size=3)) for _ in range(count)]
    every = [said(text, chance) for text in texts]
    place, held = np.arange(count), HELD * count // PHRASES
    return made("espeak", HEARD, every, texts, [place >= 2 * held, (place >= held) & (place < 2 * held), place < held])


def said(text: str, chance: np.random.Generator) -> Any:
    """Amplitudes by espeak-ng, in a voice, at a speed and at a pitch by lot."""
    voice, speed, pitch = VOICES[chance.integers(len(VOICES))], chance.integers(120, 140), chance.integers(35, 65)
    how = ["-v", voice, "-s", str(speed), "-p", str(pitch)]
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "said.wav"
        subprocess.run(["espeak-ng", *how, "-w", str(file), text], check=True)
        samples, rate = soundfile.read(file)
    brought = resample_poly(samples, HEARD, rate)
    loud = np.flatnonzero(np.abs(brought) > 0.01)
    return brought[max(0, loud[0] - 200) : loud[-1] + 400]


def made(name: str, rate: int, every: list[Any], texts: list[str], parts: list[Any]) -> Data:
    longest = max(len(every[i]) for part in parts for i in np.flatnonzero(part))
    space = Audio(rate, LEVELS, "mu", True, longest)
    context = Text(LETTERS, True, max(map(len, texts)))

    def part(which: Any) -> Part:
        rows = np.flatnonzero(which)
        x = torch.full((len(rows), longest), -1)
        for row, i in zip(x, rows, strict=True):
            row[: len(every[i])] = torch.from_numpy(encode(every[i], "mu", LEVELS).astype(np.int64))
        c = context.parse([texts[i] for i in rows])
        return Part(x, c)

    return Data(name, name, space, *map(part, parts), context)


# -- the judge -----------------------------------------------------------------------------------------------


class Judge:
    """Hears so many words of ``WORDS`` in a row."""

    def __init__(self, words: int) -> None:
        from pocketsphinx import Decoder

        self.decoder = Decoder(samprate=float(HEARD), logfn=os.devnull)
        one = f"( {' | '.join(WORDS)} )"
        self.decoder.add_jsgf_string("words", f"#JSGF V1.0; grammar words; public <said> = {' '.join([one] * words)};")
        self.decoder.activate_search("words")

    def hears(self, amplitude: Any, rate: int) -> str:
        """The words in amplitudes at a rate: at half of full loudness, with soft noise and silence around."""
        a = resample_poly(amplitude, HEARD, rate) if len(amplitude) else np.zeros(0)
        a = np.pad(a * (0.5 / max(1e-6, np.abs(a).max(initial=0))), 4000)
        a = a + 1e-4 * np.random.default_rng(0).standard_normal(len(a))
        self.decoder.start_utt()
        self.decoder.process_raw((a * 32767).astype(np.int16).tobytes(), full_utt=True)
        self.decoder.end_utt()
        found = self.decoder.hyp()
        return "" if found is None else found.hypstr

    def wrong(self, space: Audio, x: Iterable[Tensor], texts: list[str]) -> dict[str, Any]:
        heard = [self.hears(pcm(space, row) / 32768, space.rate) for row in x]
        pairs = [(a.split(), b.split()) for a, b in zip(heard, texts, strict=True)]
        n = sum(len(b) for _, b in pairs)
        wrong = n - sum(v == w for a, b in pairs for v, w in zip(a, b, strict=False))
        low, high = share_interval(wrong, n)
        return {"error": wrong / n, "low": low, "high": high, "clips": len(texts), "words": n}


# -- what is measured ----------------------------------------------------------------------------------------


def study(data: Data, family: str, args: argparse.Namespace, emit: Any) -> None:
    options = FAMILIES[family] | json.loads(args.options)
    run = pofx.fit(data, family, seconds=args.seconds, seed=args.seed, options=options, checks=10, valid_rows=40)
    model, test = run.model, data.test.draw(args.draws, seed=0).read()
    assert isinstance(data.space, Audio)
    assert data.context is not None
    texts = [data.context.spell(c[c >= 0]) for c in test.c]
    judge, size = Judge(texts[0].count(" ") + 1), data.space.lengths(test.x)
    real = float(size.double().mean()) / data.space.rate
    told = {"data": data.name, "family": family, "seed": args.seed, "train_seconds": args.seconds, "options": options}
    with torch.no_grad():
        rate = mean(number(model.given(test.c).log_prob(test.x)), size=data.space.units(test.x))
    emit(
        told | {"what": "likelihood", "kind": rate.kind.__name__, "nats_per_sample": rate.nats, "error": rate.error,
                "rows": len(test), "parameters": model.parameter_count()}
    )  # fmt: skip
    emit(told | {"what": "judge", "of": "real"} | judge.wrong(data.space, test.x, texts))
    ways: dict[str, Any] = {"samples": None}
    if family == "mel-vocoder":
        ways = {"griffin-lim": GriffinLim(), "vocoder": None}
    if family == "mel-vocoder":
        frames = model.spectrum(test.x)
        for way, sampler in ways.items():
            copy = model.sound(frames, torch.Generator().manual_seed(args.seed), sampler)[:, : test.x.shape[1]]
            copy = copy.masked_fill(torch.arange(copy.shape[1]) >= size[:, None], -1)
            emit(told | {"what": "judge", "of": f"copy, {way}"} | judge.wrong(data.space, copy, texts))
    if family == "mel-vocoder":
        ways |= {f"griffin-lim at temperature {t}": GriffinLim(temperature=t) for t in args.temperature}
    for way, sampler in ways.items():
        begun = time.perf_counter()
        drawn = model.given(test.c).sample(1, generator=torch.Generator().manual_seed(args.seed), sampler=sampler)[0]
        spent, own = time.perf_counter() - begun, data.space.units(drawn).sum() / data.space.rate
        emit(
            told | {"what": "judge", "of": f"drawn, {way}", "seconds_per_second": spent / float(own),
                    "mean_seconds": float(own) / len(drawn), "mean_seconds_of_real": real}
            | judge.wrong(data.space, drawn, texts)
        )  # fmt: skip
        first = [texts.index(text) for text in sorted(set(texts))[:10]]
        place = args.out / f"{data.name} {family} {way}"
        place.mkdir(parents=True, exist_ok=True)
        for i in first:
            write_audio(data.space, drawn[i], place / f"{texts[i]}.wav")
        picture(data.space, test.x[first], drawn[first], [texts[i] for i in first], place / "spectra.png")


def picture(space: Audio, real: Tensor, drawn: Tensor, texts: list[str], path: Path) -> None:
    figure = Figure(figsize=(1.5 * len(texts), 3.2), layout="constrained")
    for k, (row, x) in enumerate((("real", real), ("drawn", drawn))):
        mel = log_mel(space.amplitudes(x), space.rate, 40)
        for i, text in enumerate(texts):
            axes = figure.add_subplot(2, len(texts), 1 + k * len(texts) + i)
            count = -(-int(space.lengths(x[i])) * 100 // space.rate)
            axes.imshow(mel[i, : max(1, count)].T, origin="lower", aspect="auto", cmap="magma", vmin=-14, vmax=2)
            axes.set(xticks=[], yticks=[], title=text if k == 0 else "", ylabel=row if i == 0 else "")
    figure.savefig(path, dpi=70)


def kept(entries: list[dict[str, Any]], quick: bool) -> None:
    """Into the results, in the place of entries of the same data and family."""
    if quick:
        return
    RESULTS.parent.mkdir(exist_ok=True)
    old = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    new = {(e.get("data"), e.get("family")) for e in entries}
    old = [e for e in old if (e.get("data"), e.get("family")) not in new]
    RESULTS.write_text(json.dumps([*old, *entries], indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DATA")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--data", nargs="+", choices=("fsdd", "espeak"), default=["fsdd"])
    parser.add_argument("--family", nargs="+", choices=tuple(FAMILIES), default=["mel-vocoder"])
    parser.add_argument("--seconds", type=float, default=1200.0, help="of each fit")
    parser.add_argument("--draws", type=int, default=250, help="clips of the test set, and draws for their texts")
    parser.add_argument("--temperature", type=float, nargs="*", default=[0.7], help="of spectra drawn, beside 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--options", default="{}", help="of the family, beside the script's own")
    parser.add_argument("--quick", action="store_true", help="a few seconds; nothing is kept")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.quick:
        args.seconds, args.draws = min(args.seconds, 5.0), 10
    for name in args.data:
        data = digits(args.folder) if name == "fsdd" else phrases(args.seed, 120 if args.quick else PHRASES)
        for family in args.family:
            entries: list[dict[str, Any]] = []

            def emit(entry: dict[str, Any], entries: list[dict[str, Any]] = entries) -> None:
                entry = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in entry.items()}
                entries.append(entry)
                print(json.dumps(entry), flush=True)

            study(data, family, args, emit)
            kept(entries, args.quick)


if __name__ == "__main__":
    main()
