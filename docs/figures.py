"""Draw the figure of each family: what it makes of a small source that is at hand.

    python docs/figures.py [--seconds 20] [NAME ...]        (all families, where none is named)

Leaves docs/_static/families/NAME.png and the captions beside them. Colours are legible on white and on black; the
ground is transparent.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pyarrow as pa
import soundfile
import torch
from matplotlib.colors import LinearSegmentedColormap
from PIL import Image

import pofx
from pofx.core.registry import BUILT_IN
from pofx.core.requests import GriffinLim, VariationalBound
from pofx.data.parts import Data, Part
from pofx.evaluate.text import marks
from pofx.nn.mel import log_mel
from pofx.spaces import Audio, Text
from pofx.spaces.text import filled_up

PLACE = Path(__file__).parent / "_static" / "families"
GREY, BLUE, ORANGE = "#8a8a8a", "#2f7fd1", "#e07b27"
DENSITY = LinearSegmentedColormap.from_list("density", [(*matplotlib.colors.to_rgb(BLUE), a) for a in (0, 0.5, 1)])
SIDES = LinearSegmentedColormap.from_list("sides", [BLUE, "#8a8a8a30", ORANGE])
IMAGES = (
    "glow",
    "image-gpt",
    "pixelcnn",
    "gated-pixelcnn",
    "pixelcnn++",
    "pixelrnn",
    "dcgan",
    "resnet-gan",
    "stylegan",
    "rbm",
)
TEXTS = ("gpt", "rnn")
TONE = 8000  # samples per second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(BUILT_IN))
    parser.add_argument("--seconds", type=float, default=20.0)
    args = parser.parse_args()
    plt.rcParams |= {"text.color": GREY, "axes.labelcolor": GREY, "axes.edgecolor": GREY, "font.size": 9}
    plt.rcParams |= {"xtick.color": GREY, "ytick.color": GREY, "axes.titlesize": 9}
    file = PLACE / "captions.json"
    for name in args.names:
        caption = draw(name, args.seconds)
        plt.savefig(PLACE / f"{name}.png", dpi=110, transparent=True, bbox_inches="tight", pad_inches=0.05)
        plt.close("all")
        with Image.open(PLACE / f"{name}.png") as drawn:  # 48 colours do
            drawn.quantize(48, method=Image.Quantize.FASTOCTREE).save(PLACE / f"{name}.png", optimize=True)
        captions = json.loads(file.read_text()) | {name: caption}
        file.write_text(json.dumps({n: captions[n] for n in sorted(captions)}, indent=1, ensure_ascii=False) + "\n")
        print(f"{name}: {caption} ({(PLACE / f'{name}.png').stat().st_size / 1000:.0f} kB)", flush=True)


def draw(name: str, seconds: float) -> str:
    """One figure; its caption."""
    if name in IMAGES:
        return images(name, seconds)
    if name in TEXTS:
        return text(name, seconds)
    special = {"wavenet": sound, "mel-vocoder": spoken, "classifier": sides, "ctc": heard, "rssm": walks}
    return (special | {"joint-gpt": pairs}).get(name, plane)(name, seconds)


def plane(name: str, seconds: float) -> str:
    """Density on a grid and samples of two moons."""
    classes = name == "jem"  # which it cannot do without
    data = pofx.load("two-moons", given="label" if classes else None)
    run = pofx.fit(data, name, seconds=seconds)
    model = run.model.given(null=classes)
    _, axes = plt.subplots(1, 2, figsize=(6.4, 2.4), sharex=True, sharey=True)
    across, up = torch.linspace(-2.2, 2.2, 120), torch.linspace(-1.5, 1.5, 90)
    grid = torch.cartesian_prod(across, up).double()
    with torch.no_grad():
        lik = model.log_prob(grid, request=VariationalBound(16) if VariationalBound in run.model.estimators else None)
    known = not isinstance(lik, pofx.Unavailable)
    if known:
        p = lik.nats.exp().reshape(len(across), len(up)).T.numpy()
        axes[0].imshow(
            p, origin="lower", extent=(-2.2, 2.2, -1.5, 1.5), cmap=DENSITY, aspect="auto", vmax=np.quantile(p, 0.995)
        )
    else:
        axes[0].scatter(*data.test.x[:800].T, s=1.5, color=BLUE)
    x = model.sample(800, generator=torch.Generator().manual_seed(1))
    axes[1].scatter(*x.T, s=1.5, color=ORANGE)
    kind = {"Exact": "p(x)", "Estimate": "the estimate of p(x)"}.get(type(lik).__name__, "the bound on p(x)")
    axes[0].set_title(kind if known else "data")
    axes[1].set_title("800 draws")
    for ax in axes:
        ax.set(xlim=(-2.2, 2.2), ylim=(-1.5, 1.5), xticks=[-2, 0, 2], yticks=[-1, 0, 1])
        ax.spines[["top", "right"]].set_visible(False)
    what = "its density (left)" if known else "the data (left; it has no density)"
    return f"Two moons{after(run)}: {what} and draws (right)."


def sides(name: str, seconds: float) -> str:
    """The probability of the second of two classes over the plane."""
    data = pofx.load("two-moons", target="label")
    model = pofx.fit(data, name, seconds=min(seconds, 10)).model
    across, up = torch.linspace(-2.2, 2.2, 120), torch.linspace(-1.5, 1.5, 90)
    grid = torch.cartesian_prod(across, up).double()
    with torch.no_grad():
        p = model.given(grid).log_prob(torch.ones(len(grid), dtype=torch.long)).nats.exp()
    _, ax = plt.subplots(figsize=(4.2, 2.4))
    shown = ax.imshow(
        p.reshape(len(across), len(up)).T,
        origin="lower",
        extent=(-2.2, 2.2, -1.5, 1.5),
        cmap=SIDES,
        vmin=0,
        vmax=1,
        alpha=0.4,
    )
    plt.colorbar(shown, ax=ax, label="p(second | x)")
    c, y = data.test.c[:300], data.test.x[:300]
    for k, colour in enumerate((BLUE, ORANGE)):
        ax.scatter(*c[y == k].T, s=4, color=colour, zorder=2)
    ax.spines[["top", "right"]].set_visible(False)
    return "The probability of the second moon given a point, and some points of both."


def images(name: str, seconds: float) -> str:
    """Digits, or lattices of bits, above; draws below."""
    data = pofx.load("ising" if name == "rbm" else "digits")
    run = pofx.fit(data, name, seconds=seconds)
    drawn = run.model.sample(12, generator=torch.Generator().manual_seed(1))
    _, axes = plt.subplots(2, 12, figsize=(6.4, 1.25))
    for row, (rows, what) in enumerate(((data.test.x[:12], "data"), (drawn, "draws"))):
        for ax, x in zip(axes[row], rows, strict=True):
            ax.imshow(x[0], cmap="gray", vmin=0, vmax=data.space.levels - 1)
            ax.set(xticks=[], yticks=[])
        axes[row][0].set_ylabel(what)
    what = "Lattices of an Ising model" if name == "rbm" else "Handwritten digits of 8×8 pixels"
    return f"{what} (above) and draws{after(run)} (below)."


def pairs(name: str, seconds: float) -> str:
    """Digits and the labels that are drawn given them, labels and the digits that are drawn given them."""
    data = pofx.load("digits", given="label", joint=True)
    run = pofx.fit(data, name, seconds=3 * seconds, options={"width": 96, "layers": 3}, recipe={"batch": 128})
    generator = torch.Generator().manual_seed(1)
    x, _ = data.space.split(data.test.x[:10])
    read = run.model.part_model("b", given=True).given(x).sample(1, generator=generator)[0]
    drawn = run.model.part_model("a", given=True).given(torch.arange(10)).sample(1, generator=generator)[0]
    _, axes = plt.subplots(2, 10, figsize=(6.4, 1.9))
    for row, images, labels, what in ((0, x, read, "label\n| image"), (1, drawn, range(10), "image\n| label")):
        for ax, image, label in zip(axes[row], images, labels, strict=True):
            ax.imshow(image[0], cmap="gray", vmin=0, vmax=16)
            ax.set(xticks=[], yticks=[])
            ax.set_title(str(int(label)), color=(ORANGE, BLUE)[row], pad=2)
        axes[row][0].set_ylabel(what)
    how = "labels drawn (orange) given held-out digits, and digits drawn given labels (blue)"
    return f"One model{after(run)}: {how}."


def walks(name: str, seconds: float) -> str:
    """Noisy turns around a centre, and some that are drawn."""
    rng, steps = np.random.default_rng(0), 24
    angle = rng.uniform(0, 2 * math.pi, (300, 1)) + np.linspace(0, 1.5 * math.pi, steps)
    size = rng.uniform(0.5, 1.5, (300, 1))
    x, y = (size * f(angle) + 0.03 * rng.normal(size=angle.shape) for f in (np.cos, np.sin))
    table = {"walk": np.repeat(np.arange(300), steps), "x": x.ravel(), "y": y.ravel()}
    data = pofx.load(pa.table(table), sequence="walk")
    run = pofx.fit(data, name, seconds=2 * seconds)
    drawn = run.model.sample(12, generator=torch.Generator().manual_seed(1))
    _, axes = plt.subplots(1, 2, figsize=(6.4, 2.4), sharex=True, sharey=True)
    for ax, rows, colour, what in zip(
        axes, (data.test.read().x[:12], drawn), (BLUE, ORANGE), ("data", "draws"), strict=True
    ):
        for walk in rows:
            ax.plot(*walk[~walk.isnan().any(1)].T, color=colour, linewidth=0.8)
        ax.set(title=what, xticks=[-1, 0, 1], yticks=[-1, 0, 1], xlim=(-1.9, 1.9), ylim=(-1.9, 1.9))
        ax.spines[["top", "right"]].set_visible(False)
    return f"Turns around a centre (left) and draws{after(run)} (right)."


def text(name: str, seconds: float) -> str:
    """A held-out text, each symbol coloured by its surprise, and a draw."""
    data = pofx.load("python-source", max_rows=300)
    run = pofx.fit(data, name, seconds=2 * seconds, options={"width": 96, "block": 128})
    lines, width = 5, 62
    _, ax = plt.subplots(figsize=(6.4, 1.3))
    ax.axis("off")
    held = data.test.read().x[0]
    start = int(len(held) / 3)
    each = marks(run.model, held[: start + lines * width], None, None, None)
    symbols = [(c, m.bits / max(1, len(m.text))) for m in each for c in m.text][start:]
    row = column = 0
    for c, bits in symbols:
        if c == "\n" or column == width:
            row, column = row + 1, 0
        if row == lines:
            break
        if c != "\n":
            shade = min(1.0, bits / 8)
            colour = tuple((1 - shade) * a + shade * b for a, b in zip(rgb(BLUE), rgb(ORANGE), strict=True))
            ax.text(column / width, 1 - row / lines, c, family="monospace", color=colour, fontsize=8, va="top")
            column += 1
    how = "each symbol from foreseen (blue) to 8 bits of surprise (orange)"
    return f"Python's own source, held out,{after(run)}: {how}."


def sound(name: str, seconds: float) -> str:
    """Plucked tones, and one that is drawn."""
    rng, t = np.random.default_rng(0), np.arange(1200) / TONE
    with tempfile.TemporaryDirectory() as place:
        for k in range(60):
            pitch = rng.choice([220, 262, 330, 392])
            wave = sum(0.5 / j * np.sin(2 * math.pi * pitch * j * t + rng.uniform(0, 6)) for j in (1, 2, 3))
            wave = 0.5 * wave * np.exp(-rng.uniform(8, 20) * t) + 0.002 * rng.normal(size=len(t))
            soundfile.write(Path(place) / f"{k}.wav", wave, TONE, subtype="PCM_16")
        data = pofx.load(place, law="mu")
        run = pofx.fit(data, name, seconds=2 * seconds)
        held = data.test.read().x[0]
    drawn = run.model.sample(1, generator=torch.Generator().manual_seed(3))[0]
    _, axes = plt.subplots(2, 1, figsize=(6.4, 1.9), sharex=True, sharey=True)
    for ax, x, colour, what in zip(axes, (held, drawn), (BLUE, ORANGE), ("data", "draw"), strict=True):
        inside = x[x >= 0].numpy()
        ax.plot(np.arange(len(inside)) / TONE * 1000, inside, color=colour, linewidth=0.6)
        ax.set_ylabel(what)
        ax.set(yticks=[])
        ax.spines[["top", "right"]].set_visible(False)
    axes[1].set_xlabel("milliseconds")
    return f"Plucked tones in 256 levels (above) and one that is drawn{after(run)} (below)."


def heard(name: str, seconds: float) -> str:
    """A melody of three tones as a net hears it, and which tone it hears when."""
    rng, letters, pitches = np.random.default_rng(0), "ceg", (262, 330, 392)
    space, text = Audio(TONE, length=6000), Text(letters, True, 4)
    written, clips = [], []
    for _ in range(300):
        tones = rng.integers(3, size=rng.integers(1, 5)).tolist()
        waves = []
        for k in tones:
            t = np.arange(rng.integers(800, 1500)) / TONE
            wave = sum(0.2 / j * np.sin(2 * math.pi * pitches[k] * j * t) for j in (1, 2, 3))
            waves.append(wave * np.exp(-12 * t) + 0.002 * rng.normal(size=len(t)))
        written.append(tones)
        clips.append(space.levels_of(torch.from_numpy(np.concatenate(waves))).tolist())
    x, c = filled_up(written), filled_up(clips)
    parts = [Part(x[rows], c[rows]) for rows in torch.arange(300).split([240, 30, 30])]
    run = pofx.fit(Data("tones", "made here", text, *parts, space), name, seconds=2 * seconds, recipe={"batch": 16})
    row = max(range(30), key=lambda i: len(set(text.spell(parts[2].x[i]))) + len(text.spell(parts[2].x[i])))
    sound = parts[2].c[row][None]
    with torch.no_grad():
        mel = log_mel(space.amplitudes(sound[sound >= 0])[None], TONE, 64)[0]
        frames, _ = run.model.log_probs(run.model.encode_context(sound))
    _, axes = plt.subplots(2, 1, figsize=(6.4, 2.6))
    axes[0].imshow(mel.T, origin="lower", aspect="auto", cmap=DENSITY, extent=(0, len(mel) * 10, 0, 64))
    axes[0].set(ylabel="band", xticks=[], yticks=[])
    for k, colour in enumerate((GREY, BLUE, ORANGE, "#3a9a5b")):
        p = frames[0, 1:, k].exp()  # the first token is before the sound
        axes[1].plot((np.arange(len(p)) + 0.5) * 20, p, color=colour, label="blank" if k == 0 else letters[k - 1])
    axes[1].set(xlim=(0, len(mel) * 10), xlabel="milliseconds", ylabel="p", yticks=[0, 1])
    axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return (
        f"Tones as the net hears them (above), and the probability of each letter and of a blank{after(run)} (below)."
    )


def spoken(name: str, seconds: float) -> str:
    """Tones that glide up and down as a text says: spectra of sounds that are held out, and of some that are drawn."""
    rng, rate, letters = np.random.default_rng(0), 2000, 200
    words = Text("ud-", True, 3)
    texts = ["".join(rng.choice([*"ud-"], size=3)) for _ in range(400)]
    space, rows = Audio(rate, 256, "mu", True, 3 * letters), []
    for text in texts:
        size = rng.uniform(0.8, 1.0) * letters
        glide = np.concatenate([np.full(int(size), {"u": 1.0, "d": -1.0, "-": 0.0}[k]) for k in text])
        octaves = np.cumsum(glide) / letters
        phase = np.cumsum(2 * math.pi * 300 * 1.6**octaves / rate)
        wave = rng.uniform(0.3, 0.6) * (np.sin(phase) + 0.3 * np.sin(2 * phase)) + 0.002 * rng.normal(size=len(phase))
        rows.append(
            torch.nn.functional.pad(space.levels_of(torch.tensor(wave)), (0, 3 * letters - len(wave)), value=-1)
        )
    x, c = torch.stack(rows), words.parse(texts)
    parts = [Part(x[a:b], c[a:b]) for a, b in ((0, 340), (340, 370), (370, 400))]
    data = Data("glides", "memory", space, *parts, words)
    options = {"frames": "gpt:width=64,layers=2,inner_width=64", "bands": 16, "levels": 12, "frames_share": 0.9}
    run = pofx.fit(data, name, seconds=3 * seconds, options=options, checks=5, valid_rows=20)
    shown = [next(i for i in range(370, 400) if texts[i] == text) for text in dict.fromkeys(texts[370:])][:5]
    drawn = run.model.given(c[shown]).sample(1, generator=torch.Generator().manual_seed(0), sampler=GriffinLim())[0]
    _, axes = plt.subplots(2, 5, figsize=(6.4, 2.2), sharex=True, sharey=True)
    for row, what, found in zip(axes, ("data", "draw"), (x[shown], drawn), strict=True):
        mel = log_mel(space.amplitudes(found), rate, 16)
        for ax, one, i in zip(row, mel, shown, strict=True):
            ax.imshow(one.T, origin="lower", aspect="auto", cmap=DENSITY, vmin=-10, vmax=1)
            ax.set(xticks=[], yticks=[], title=texts[i] if what == "data" else "")
        row[0].set_ylabel(what)
    return (
        f"Mel spectra of tones that go up, down and straight on as a text says (above), and of tones drawn given these "
        f"texts{after(run)}, by Griffin-Lim (below)."
    )


def after(run: Any) -> str:
    """How long it was trained, where that is no single sweep."""
    return f" after {run.steps:,} steps" if run.steps > 50 else ""


def rgb(colour: str) -> Any:
    return matplotlib.colors.to_rgb(colour)


if __name__ == "__main__":
    main()
