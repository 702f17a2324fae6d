"""How far samples of GANs are from Fashion-MNIST at 32x32, of all its images and of 1,000, beside a vae and a vdm.

    python benchmarks/image_gans.py DATA OUT [--minutes 20] [--n 10000] [--only NAME ...] [--quick]

DATA is the folder of the data sets (images/fashion-mnist in it); OUT keeps the runs, and pictures: of each entry its
samples (NAME.png), of stylegan a grid of mixed styles (NAME-mixing.png: each image has the coarse styles of the one at
the left of its row, and the fine ones of the one above it) and one of truncation (NAME-truncation.png: each row one
draw, from the mean style to all of its own, and beyond the edge the data). All have equal minutes. ``distance`` is that
of two Gaussians (Heusel et al. 2017), with the means and covariances of what a pofx classifier's ConvNet makes of the
images, 128 numbers, of ``n`` draws and test images; "real" is that of as many training images, "1000" that of the
thousand training images themselves. ``classes`` is the entropy of the classes that another classifier reads in the
draws, in nats (ten even ones: 2.303): what has collapsed has less. ``copied`` is the share of draws that are nearer in
features to one of the thousand training images than 99% of the test images are: 0.01 where none are copies.
``augmented`` is the probability at which adaptive augmentation ended. One JSON object a line, all of them in
results/image_gans.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from PIL import Image as Picture
from torch import Tensor
from torch.nn import functional as F

import pofx
from pofx.core.requests import DpmSolver, Styled
from pofx.data.parts import Data, Part
from pofx.evaluate.two_sample import frechet
from pofx.families.stylegan import StyleGan, styled
from pofx.spaces import Image
from timing import Results

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data", type=Path)
parser.add_argument("out", type=Path)
parser.add_argument("--minutes", type=float, default=20.0, help="of each training")
parser.add_argument("--n", type=int, default=10_000, help="images on either side of a distance")
parser.add_argument("--only", nargs="*", metavar="NAME", help="entries: others are left out, and nothing is kept")
parser.add_argument("--quick", action="store_true", help="3 seconds each, 8 channels, 100 images; nothing is kept")
ARGS = parser.parse_args()
MINUTES, N = (0.05, 100) if ARGS.quick else (ARGS.minutes, ARGS.n)
KEPT = ARGS.out / f"{MINUTES:g}-minutes"
SPACE = Image(32, 32, 1, 256)
FEW = 1000

ALL: dict[str, tuple[str, dict[str, Any]]] = {
    "vae": ("vae", {}),
    "vdm": ("vdm", {}),
    "dcgan": ("dcgan", {}),
    "stylegan": ("stylegan", {}),
}
OF_FEW: dict[str, tuple[str, dict[str, Any]]] = {
    "dcgan, 1000": ("dcgan", {}),
    "stylegan, 1000": ("stylegan", {}),
    "stylegan, 1000, augmented": ("stylegan", {"augment": "adaptive"}),
}


def images(rows: Part) -> tuple[Tensor, Tensor]:
    """Images [N, 1, 32, 32] with a border of background, and labels."""
    rows = rows.read()
    return F.pad(rows.c, (2, 2, 2, 2)), rows.x


def fitted(name: str, data: Data, family: str, minutes: float, **how: Any) -> Any:
    """The run of this entry, which is fitted unless it was."""
    place = KEPT / name.replace(", ", "-")
    if (place / "config.json").exists():
        return pofx.read_run(place)
    rows = 50 if ARGS.quick else 2000
    return pofx.fit(data, family, seconds=60 * minutes, out=place, valid_rows=rows, **how)


def nearest(a: Tensor, b: Tensor) -> Tensor:
    """The distance of each of a [N, F] to the nearest of b [M, F]."""
    return torch.cat([torch.cdist(some, b).amin(1) for some in a.split(500)])


def picture(rows: Tensor, name: str) -> None:
    """A grid of images [rows, columns, 1, H, W] as OUT/.../NAME.png, three times as large."""
    down, across, _, height, width = rows.shape
    flat = rows[:, :, 0].permute(0, 2, 1, 3).reshape(down * height, across * width)
    large = Picture.fromarray(flat.numpy()).resize((3 * across * width, 3 * down * height), Picture.Resampling.NEAREST)
    KEPT.mkdir(parents=True, exist_ok=True)
    large.save(KEPT / f"{name.replace(', ', '-')}.png")


def grids(model: StyleGan, name: str, real: Tensor) -> None:
    """Mixed styles, and truncation."""
    w = model.draw_styles(16, None, torch.Generator().manual_seed(2))
    coarse, fine = w[:8], w[8:]
    half = (styled(model.sampling).synthesis.layers + 1) // 2

    def show(w: Tensor) -> Tensor:
        return model.render(w, torch.Generator().manual_seed(3))

    mixed = torch.cat([coarse.repeat_interleave(8, 0)[:, :half], fine.repeat(8, 1, 1)[:, half:]], 1)
    body = torch.cat([show(coarse)[:, None], show(mixed).unflatten(0, (8, 8))], 1)
    head = torch.cat([torch.zeros_like(real[:1]), show(fine)])[None]
    picture(torch.cat([head, body]), f"{name}-mixing")
    shares = (0.0, 0.25, 0.5, 0.7, 0.85, 1.0)
    columns = [show(model.truncate(coarse, None, share)) for share in shares]
    picture(torch.stack([*columns, real[:8]], 1), f"{name}-truncation")


def main() -> None:
    results = Results(
        ARGS.quick or ARGS.only is not None, minutes=MINUTES, n=N, seed=0, threads=torch.get_num_threads()
    )
    labelled = pofx.load(ARGS.data / "images" / "fashion-mnist", target="label")
    (train, train_y), (valid, valid_y), (test, test_y) = map(images, (labelled.train, labelled.valid, labelled.test))
    sorts = Data(
        "fashion", "memory", labelled.space, Part(train_y, train), Part(valid_y, valid), Part(test_y, test), SPACE
    )
    seer, reader = (
        fitted(f"classifier-{seed}", sorts, "classifier", min(3.0, MINUTES), seed=seed).model for seed in (0, 1)
    )

    @torch.no_grad()
    def features(x: Tensor) -> Tensor:
        return torch.cat([seer.encode_context(some).vector for some in x.split(1000)]).double()

    @torch.no_grad()
    def classes(x: Tensor) -> float:
        found = torch.cat([reader.logits(reader.encode_context(some)).argmax(1) for some in x.split(1000)])
        share = found.bincount(minlength=10) / len(found)
        return float(-(share * share.clamp_min(1e-12).log()).sum())

    few = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:FEW]]
    real, many, some = features(test[:N]), features(train[:N]), features(few)
    results.emit(who="real", distance=frechet(many, real).distance, classes=classes(train[:N]), n=N)
    results.emit(who="1000", distance=frechet(some, real).distance, classes=classes(few), n=FEW)
    usual = nearest(real, some).quantile(0.01)  # nearer to one of the thousand than this are 1% of new images
    for name, (family, options) in (ALL | OF_FEW).items():
        if ARGS.only is not None and name not in ARGS.only:
            continue
        rows = few if name in OF_FEW else train
        data = Data(f"fashion, {len(rows)}", "memory", SPACE, Part(rows), Part(valid), Part(test))
        small = {"channels": 8} if ARGS.quick else {}
        run = fitted(name, data, family, MINUTES, options=options | small, seed=0)
        sampler = DpmSolver(20) if family == "vdm" else None
        x = run.model.sample(N, generator=torch.Generator().manual_seed(0), sampler=sampler)
        found = features(x)
        told: dict[str, Any] = {"distance": frechet(found, real).distance, "classes": classes(x), "steps": run.steps}
        if name in OF_FEW:
            told["copied"] = float((nearest(found, some) < usual).double().mean())
        if isinstance(run.model, StyleGan):
            cut = run.model.sample(N, generator=torch.Generator().manual_seed(0), sampler=Styled(truncation=0.7))
            told |= {"distance_truncated": frechet(features(cut), real).distance, "classes_truncated": classes(cut)}
            if run.model.adaptive is not None:
                told["augmented"] = float(run.model.adaptive.p)
            grids(run.model, name, test)
        picture(x[:100].unflatten(0, (10, 10)), name)
        results.emit(who=name, family=family, **told)
    results.save()


if __name__ == "__main__":
    main()
