"""A learned palette: cells that part the cube of colours, a likelihood of the image itself, draws from cells."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch

from pofx.codecs.palette import Palette, nearest
from pofx.core.errors import Unsupported, UsageError
from pofx.data.parts import Data, Part
from pofx.families.image_gpt import ImageGpt, ImageGptConfig
from pofx.spaces import Image
from pofx.testing.conformance import check_family
from pofx.testing.oracles import image_states
from pofx.train.fit import fit
from pofx.train.run import read_run

TINY = {"width": 16, "layers": 2, "n_heads": 2}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(space: Image, n: int, seed: int = 0) -> torch.Tensor:
    """Of colours around a few."""
    g = seeded(seed)
    centres = torch.randint(space.levels, (4, space.channels), generator=g)
    pixels = centres[torch.randint(4, (n, space.height, space.width), generator=g)]
    noise = torch.randint(-2, 3, pixels.shape, generator=g)
    return (pixels + noise).clamp(0, space.levels - 1).movedim(-1, 1).to(torch.uint8)


def palette(space: Image, size: int, **options) -> Palette:
    made = Palette(space, size, **options)
    made.prepare(images(space, 50), seeded(1))
    return made


def model(space: Image, size: int, **options) -> ImageGpt:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = ImageGpt(ImageGptConfig(**TINY | {"palette": size} | options), space)
    made.prepare(images(space, 60), None, None, seeded())
    with torch.random.fork_rng():
        torch.manual_seed(2)
        for q in made.parameters():
            torch.nn.init.normal_(q, std=0.3)
    return made.eval()


def cube(space: Image) -> torch.Tensor:
    return torch.tensor(list(itertools.product(range(space.levels), repeat=space.channels)))


@pytest.mark.parametrize("space", [Image(4, 4, 3, 21), Image(4, 4, 1, 256), Image(4, 4, 2, 37), Image(4, 4, 4, 7)])
@pytest.mark.parametrize("size", [5, 100])
def test_cells_part_the_cube_as_a_search_through_all_of_it_says(space, size):
    p, every = palette(space, size), cube(space)
    assert len(p.colours.unique(dim=0)) == size
    distance = (every[:, None] - p.colours.long()).square().sum(-1)  # whole numbers
    first = (distance == distance.amin(1, keepdim=True)).int().argmax(1)
    assert torch.equal(nearest(every.float(), p.colours), first)
    assert torch.equal(p.count, first.bincount(minlength=size))
    assert int(p.count.sum()) == space.levels**space.channels
    for k in range(size):
        assert torch.equal(p.low[k].long(), every[first == k].amin(0))
        assert torch.equal(p.high[k].long(), every[first == k].amax(0))


def test_k_means_lowers_the_distortion():
    """Against the random colours that it starts from."""
    space = Image(8, 8, 3, 64)
    x, p = images(space, 50), palette(space, 8)
    pixels = x.flatten(2).mT.flatten(0, 1).float()

    def distortion(colours: torch.Tensor) -> float:
        return float((pixels - colours[nearest(pixels, colours)]).square().sum(1).mean())

    start = pixels[torch.randperm(len(pixels), generator=seeded(2))[:8]]
    assert distortion(p.colours) < 0.8 * distortion(start)


def test_few_colours_are_a_palette_without_loss():
    """With the data's colours among its own, and others for the rest of it."""
    space = Image(4, 4, 3, 64)
    x = (images(space, 20) // 32) * 32  # 8 colours at most
    p = Palette(space, 20)
    p.prepare(x, seeded())
    assert torch.equal(p.decode(p.encode(x)), x)
    assert p.count.min() > 0


def test_draws_are_uniform_on_their_cells():
    space = Image(1, 1, 3, 9)
    p, n = palette(space, 6), 3000
    place = (cube(space) * torch.tensor([81, 9, 1])).sum(1)
    cell = nearest(cube(space).float(), p.colours)
    for k in range(6):
        u = torch.full((n, 1), k)
        x = p.draw(u, seeded(k))
        assert torch.equal(p.encode(x), u)
        found = (x.flatten(1).long() * torch.tensor([81, 9, 1])).sum(1).bincount(minlength=729)
        assert found[place[cell != k]].sum() == 0
        expected = n / int(p.count[k])
        chi = float(((found[place[cell == k]] - expected) ** 2 / expected).sum())
        freedom = int(p.count[k]) - 1
        assert abs(chi - freedom) < 5 * math.sqrt(2 * freedom) + 5


@pytest.mark.parametrize("order", ["raster", "spiral", "random"])
def test_palette_colours_are_their_own_cells(order):
    space = Image(3, 5, 3, 40)
    p = palette(space, 12, order=order)
    x = images(space, 7, seed=3)
    assert torch.equal(p.encode(p.decode(p.encode(x))), p.encode(x))
    exact = p.colours[torch.arange(12)[:, None].expand(12, 15)]
    assert torch.equal(p.decode(torch.arange(12)[:, None].expand(12, 15)).flatten(2).mT.float(), exact)


def test_codes_are_the_same_in_training_of_lower_precision():
    space = Image(8, 8, 3, 64)
    p, x = palette(space, 60), torch.randint(64, (20, 3, 8, 8), generator=seeded(9)).to(torch.uint8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        u = p.encode(x)
    assert torch.equal(u, p.encode(x))


@pytest.mark.parametrize("options", [{}, {"scans": 4}, {"order": "reverse", "orders": 2}])
def test_it_sums_to_one_over_all_images(options):
    m = model(Image(1, 2, 3, 4), 5, **options)
    with torch.no_grad():
        total = m.log_prob(image_states(m.space)).nats.double().exp().sum()
    assert abs(float(total) - 1) < 1e-5


def test_samples_have_the_probabilities_that_are_scored():
    m, n = model(Image(1, 2, 2, 3), 4, scans=2), 6000
    with torch.no_grad():
        p = m.log_prob(image_states(m.space)).nats.exp()
    x = m.sample(n, generator=seeded(5)).flatten(1).long()
    found = (x * torch.tensor([27, 9, 3, 1])).sum(1).bincount(minlength=81) / n
    assert ((found - p).abs() < 4.5 * (p * (1 - p) / n).sqrt() + 1e-3).all()


def test_a_saved_run_keeps_its_palette(tmp_path: Path):
    space = Image(4, 4, 3, 30)
    x = images(space, 80)
    data = Data("colours", "colours", space, Part(x[:60]), Part(x[60:70]), Part(x[70:]))
    run = fit(data, "image-gpt", steps=3, seed=0, options=TINY | {"palette": 10}, out=tmp_path / "run")
    again = read_run(tmp_path / "run").model
    with torch.no_grad():
        assert torch.equal(again.log_prob(x).nats, run.model.log_prob(x).nats)
    assert torch.equal(again.sample(4, generator=seeded()), run.model.sample(4, generator=seeded()))


class Coloured(ImageGpt):
    name = "coloured-image-gpt"

    @classmethod
    def tiny(cls, space):
        return ImageGptConfig(width=32, layers=2, n_heads=2, palette=3, scans=2)


def test_it_conforms(monkeypatch):
    monkeypatch.setattr("pofx.testing.subject.STEPS", 50)  # what is checked holds after any training
    assert {r.outcome for r in check_family(Coloured, ["grey image"])} <= {"passed", "skipped"}


@pytest.mark.parametrize(
    ("options", "word"),
    [({"palette": 1}, "palette=1"), ({"palette": 126}, "2 to 125"),
     ({"palette": 5, "predict": "yes"}, "predict"), ({"palette": 5, "patch": 2}, "patch"),
     ({"palette": 5, "head": "logistic"}, "head")],
)  # fmt: skip
def test_what_has_no_palette_is_refused(options, word):
    with pytest.raises(Unsupported, match=word):
        ImageGpt(ImageGptConfig(**TINY | options), Image(8, 8, 3, 5))


def test_too_many_colours_to_count_are_refused():
    with pytest.raises(Unsupported, match="16777216"):
        ImageGpt(ImageGptConfig(**TINY | {"palette": 5}), Image(8, 8, 4, 256))


def test_a_palette_is_learned_before_it_is_used():
    space = Image(2, 2, 1, 9)
    with pytest.raises(UsageError, match="not been learned"):
        ImageGpt(ImageGptConfig(**TINY | {"palette": 3}), space).log_prob(images(space, 2))
