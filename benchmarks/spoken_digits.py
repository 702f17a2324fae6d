"""Spoken digits, recognised letter by letter by `ctc` and `gpt`, or as classes, beside `pocketsphinx`.

    python benchmarks/spoken_digits.py DATA [--family ctc gpt] [--split official george] [--seconds 900]
        [--voices 4000] [--quick]

DATA is the folder of the data sets (audio/fsdd in it: 5 speakers, 10 digits, 50 times each, 8 kHz). Splits: `official`
tests what each speaker says for the first five times (250 clips) and trains on the rest; the name of a speaker tests on
all that he says and trains on the others. Of the training clips a tenth validates. The text of a clip is the English
word; a model knows the letters of all ten words, and no list of them. With ``--voices`` so many clips that espeak-ng
says in accents, voices, speeds and pitches by lot are trained on, too. Told for each split, on one thread: the share of
wrong words (as `jiwer` counts them) of the likeliest path or greedy choice, of a search with 8 beams, and of the
likeliest of the ten words, which a grammar tells `pocketsphinx`, too, by one clip, and by the mean of its probabilities
given 9 views of it, changed as in training; each with a 95% interval (Jeffreys); and
held-out nats per text with their kind. Writes results/spoken_digits.json: what was there of other families and splits
stays.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import soundfile
import torch
from scipy.signal import resample_poly

import pofx
from pofx.core.likelihood import mean, number
from pofx.core.requests import Decoding, PathSearch
from pofx.data.parts import Data, Part
from pofx.data.ragged import RaggedRows
from pofx.evaluate.pairs import share_interval
from pofx.nn.perturb import UNIFORMS, perturbed_sounds
from pofx.spaces import Audio, Label, Text

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MADE = "espeak-ng"
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo")
TEXT = Text("".join(sorted({c for word in WORDS for c in word})), True, max(map(len, WORDS)))
RESULTS = Path(__file__).parent / "results" / "spoken_digits.json"
BEAMS, VIEWS = 8, 9
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029")
VOICES = (
    *(f"{kind}{n}" for kind, most in (("m", 8), ("f", 5)) for n in range(1, most + 1)), "klatt", "klatt2", "klatt3",
    "klatt4", "klatt6", "adam", "Alex", "Alicia", "Andrea", "Andy", "Annie", "antonio", "belinda", "benjamin", "boris",
    "caleb", "david", "Denis", "Diogo", "ed", "edward", "Gene", "grandpa", "Henrique", "Hugo", "john", "kaukovalta",
    "Lee", "linda", "marcelo", "Marco", "Mario", "Michael", "michel", "miguel", "norbert", "pablo", "paul", "pedro",
    "quincy", "rob", "robert", "sandro", "shelby", "steph", "travis", "victor", "Zac", "anika",
)  # fmt: skip
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ctc": ({"context_augment": 1.0}, {}),
    "gpt": ({"width": 64, "layers": 2, "n_heads": 4, "context_augment": 1.0}, {"batch": 32, "lr": 3e-3}),
    "classifier": ({"context_augment": 1.0}, {"batch": 32}),
}


class Digits:
    """The clips, and which of them train, validate and test."""

    def __init__(self, folder: Path) -> None:
        found = np.load(folder / "audio" / "fsdd" / "fsdd_8k_5speakers.npz")
        self.audio, self.offsets, self.rate = found["audio"], found["offsets"], int(found["sample_rate"])
        self.digit, self.index = torch.from_numpy(found["digit"]).long(), found["index"]
        self.speaker = found["speaker_names"][found["speaker"]]
        self.space = Audio(self.rate, length=int(np.diff(self.offsets).max()))
        levels = self.audio.astype(np.int32) + 32768
        self.rows = RaggedRows.joined(levels, self.offsets, -1, torch.int64)

    def add(self, voices: int, seed: int) -> None:
        """So many clips more, by espeak-ng, of which none is ever tested."""
        chance = np.random.default_rng(seed)
        digit = chance.integers(10, size=voices)
        asked = [
            (WORDS[k], ["-v", f"{chance.choice(ACCENTS)}+{chance.choice(VOICES)}", "-s", str(chance.integers(110, 210)),
                        "-p", str(chance.integers(15, 85))])
            for k in digit
        ]  # fmt: skip
        with ThreadPoolExecutor(2) as pool:
            made = [a[: self.space.length] for a in pool.map(lambda one: said(*one, self.rate), asked)]
        clips = [*np.split(self.audio, self.offsets[1:-1]), *made]
        self.audio, self.offsets = np.concatenate(clips), np.cumsum([0, *map(len, clips)])
        self.rows = RaggedRows.joined(self.audio.astype(np.int32) + 32768, self.offsets, -1, torch.int64)
        self.digit = torch.cat([self.digit, torch.from_numpy(digit)])
        self.index = np.concatenate([self.index, np.full(voices, 99)])
        self.speaker = np.concatenate([self.speaker, np.full(voices, MADE)])

    def tested(self, split: str) -> torch.Tensor:
        return torch.from_numpy(self.index < 5 if split == "official" else self.speaker == split)

    def data(self, split: str, seed: int, classes: bool) -> Data:
        test = self.tested(split)
        made = torch.from_numpy(self.speaker == MADE)
        rest = (~test & ~made).nonzero()[:, 0]
        rest = rest[torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))]
        held = len(rest) // 10
        trained = torch.cat([rest[held:], made.nonzero()[:, 0]])
        space = Label(WORDS) if classes else TEXT
        every = self.digit if classes else TEXT.parse([WORDS[k] for k in self.digit.tolist()])
        parts = [Part(every[i], self.rows[i]) for i in (trained, rest[:held], test.nonzero()[:, 0])]
        return Data(f"spoken digits, {split}", "audio/fsdd", space, *parts, self.space)


def said(word: str, how: list[str], rate: int) -> np.ndarray:
    """16-bit samples of a word by espeak-ng, from where it begins to where it ends."""
    wav = subprocess.run(["espeak-ng", *how, "--stdout", word], check=True, capture_output=True).stdout
    samples, own = soundfile.read(io.BytesIO(wav))
    brought = resample_poly(samples, rate, own)
    loud = np.flatnonzero(np.abs(brought) > 0.02 * np.abs(brought).max())
    brought = brought[max(0, loud[0] - 100) : loud[-1] + 200]
    return np.rint(16000 * brought / np.abs(brought).max()).astype(np.int16)


def errors(found: list[str], truth: list[str]) -> dict[str, Any]:
    """The word error in per cent with its interval; each clip is one word, and no answer is a wrong one."""
    counts = jiwer.process_words(truth, found)
    wrong = sum(f != t for f, t in zip(found, truth, strict=True))
    low, high = share_interval(wrong, len(truth))
    return {"wer": 100 * counts.wer, "wrong": wrong, "clips": len(truth), "low": 100 * low, "high": 100 * high}


def of_each_word(model: Any, c: torch.Tensor) -> torch.Tensor:
    """log p [N, 10] of the ten words given clips [N, L]."""
    words = TEXT.parse([*WORDS])
    return torch.stack([model.given(c).log_prob(w.expand(len(c), -1)).nats for w in words], 1)


def views(space: Audio, c: torch.Tensor) -> list[torch.Tensor]:
    """Clips as they are, and changed a little as in training."""
    u = torch.rand(VIEWS - 1, len(c), UNIFORMS, generator=torch.Generator().manual_seed(0))
    return [c, *(perturbed_sounds(space, c, each, 0.5) for each in u)]


def likeliest(nats: torch.Tensor) -> list[str]:
    return [WORDS[k] for k in nats.argmax(1).tolist()]


def recognised(family: str, model: Any, c: torch.Tensor) -> dict[str, list[str]]:
    if family == "classifier":
        return {"classes": [WORDS[k] for k in model.given(c).classes().nats.argmax(1).tolist()]}
    ways = {
        "ctc": {"greedy": PathSearch(greedy=True), "beam": PathSearch(beams=BEAMS)},
        "gpt": {"greedy": Decoding(greedy=True), "beam": Decoding(beams=BEAMS, length_penalty=0.0)},
    }[family]
    found = {
        way: [TEXT.spell(x) for x in model.given(c).sample(1, sampler=sampler)[0]] for way, sampler in ways.items()
    }
    nats = [of_each_word(model, each) for each in views(model.context, c)]
    several = torch.stack(nats).logsumexp(0)
    return found | {"ten words": likeliest(nats[0]), f"ten words, {VIEWS} views": likeliest(several)}


def sphinx(clips: list[np.ndarray]) -> list[str]:
    """What `pocketsphinx` hears in clips of 16-bit samples at 8 kHz, of the ten words."""
    import pocketsphinx

    grammar = "#JSGF V1.0; grammar digits; public <digit> = " + " | ".join(WORDS) + ";"
    decoder = pocketsphinx.Decoder(
        hmm=pocketsphinx.get_model_path("en-us/en-us"), dict=pocketsphinx.get_model_path("en-us/cmudict-en-us.dict"),
        lm=None, loglevel="FATAL", samprate=16000,
    )  # fmt: skip
    decoder.add_jsgf_string("digits", grammar)
    decoder.activate_search("digits")
    found = []
    silence = np.zeros(3200, np.int16)  # a recogniser of speech expects some before and after
    for clip in clips:
        loud = resample_poly(clip.astype(np.float64), 2, 1)
        whole = np.concatenate([silence, np.rint(loud).clip(-32768, 32767).astype(np.int16), silence])
        decoder.start_utt()
        decoder.process_raw(whole.tobytes(), full_utt=True)
        decoder.end_utt()
        best = decoder.hyp()
        found.append("" if best is None else best.hypstr.strip())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--family", nargs="*", default=["ctc"], choices=[*FAMILIES, "pocketsphinx"])
    parser.add_argument("--split", nargs="*", default=["official", *SPEAKERS], choices=["official", *SPEAKERS])
    parser.add_argument("--seconds", type=float, default=900.0, help="of each training")
    parser.add_argument("--steps", type=int, help="of each training, instead of seconds")
    parser.add_argument("--voices", type=int, default=0, help="clips by espeak-ng among those of training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--options", type=json.loads, default={}, help="of the family, as JSON, instead of ours")
    parser.add_argument("--recipe", type=json.loads, default={})
    parser.add_argument("--quick", action="store_true", help="keep nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    digits = Digits(args.data)
    if args.voices:
        digits.add(args.voices, args.seed)
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    for family in args.family:
        for split in args.split:
            entry: dict[str, Any] = {"family": family, "split": split}
            data = digits.data(split, args.seed, family == "classifier")
            truth = [WORDS[k] for k in digits.digit[digits.tested(split)].tolist()]
            if family == "pocketsphinx":
                bounds = [(digits.offsets[i], digits.offsets[i + 1]) for i in digits.tested(split).nonzero()[:, 0]]
                entry["ten words"] = errors(sphinx([digits.audio[a:b] for a, b in bounds]), truth)
            else:
                options, recipe = FAMILIES[family]
                options, recipe = options | args.options, recipe | args.recipe
                began = time.perf_counter()
                budget = {"seconds": args.seconds} if args.steps is None else {"steps": args.steps}
                run = pofx.fit(data, family, **budget, seed=args.seed, options=options, recipe=recipe)
                entry |= {"seed": args.seed, "voices": args.voices, **budget, "steps": run.steps, "options": options}
                entry |= {"recipe": recipe, "parameters": run.model.parameter_count()}
                test = data.test.read()
                with torch.no_grad():
                    nats = mean(number(run.model.given(test.c).log_prob(test.x)))
                entry |= {"kind": nats.kind.__name__, "nats_per_text": nats.nats, "nats_error": nats.error or 0.0}
                for way, found in recognised(family, run.model, test.c).items():
                    entry[way] = errors(found, truth)
                entry["all_seconds"] = time.perf_counter() - began
            print(json.dumps(entry), flush=True)
            kept = [e for e in kept if (e.get("family"), e.get("split")) != (family, split)] + [entry]
    if not args.quick:
        order = {name: i for i, name in enumerate((*FAMILIES, "pocketsphinx", "official", *SPEAKERS))}
        kept.sort(key=lambda e: (order[e["family"]], order[e["split"]]))
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
