"""Identities of the GANs of images: what styles do to a convolution, what augmentations do to an image, who keeps p."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pofx
from pofx.core.errors import Unsupported, UsageError
from pofx.core.learner import Batch, Recipe
from pofx.core.registry import family
from pofx.core.requests import Styled
from pofx.data.parts import Data, Part
from pofx.families.adversarial import slope
from pofx.families.image_gan import Dcgan, DcganConfig, ImageAdversarial, ResnetGan
from pofx.families.stylegan import StyleGan, StyleGanConfig, styled
from pofx.nn.augment import CUTOUT, MOST, SHIFT, Adaptive, Augment
from pofx.nn.stylegan import Modulated, with_spread
from pofx.spaces import Image, Label, Real, Table

NAMES = ("dcgan", "resnet-gan", "stylegan")
GREY = Image(16, 16, 1, 256)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int, space: Image = GREY, seed: int = 0) -> Tensor:
    return torch.randint(space.levels, (n, *space.event_shape), generator=seeded(seed)).to(torch.uint8)


def whole(x: Tensor, c: Tensor | None = None, step: int = 0) -> Batch:
    return Batch(x, c, None, 0, len(x), 0.0, step)


def small(
    name: str = "stylegan", space: Image = GREY, context: Label | None = None, **options: object
) -> ImageAdversarial:
    torch.manual_seed(0)
    cls = family(name)
    model = cls(replace(cls.tiny(space), **options), space, context)
    assert isinstance(model, ImageAdversarial)
    return model


def style(**options: object) -> StyleGan:
    model = small(**options)
    assert isinstance(model, StyleGan)
    return model


# -- nets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("demodulate", [True, False])
def test_a_modulated_convolution_is_that_of_each_image_with_weights_of_its_own(demodulate: bool) -> None:
    torch.manual_seed(0)
    layer = Modulated(3, 5, 4, demodulate=demodulate).double()
    x, w = torch.randn(2, 3, 6, 7, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    for one, s, out in zip(x, layer.affine(w), layer(x, w), strict=True):
        weight = s[None, :, None, None] * layer.conv.weight / math.sqrt(27)  # eq. 1
        if demodulate:
            weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()  # eq. 3
        torch.testing.assert_close(out, F.conv2d(one[None], weight, padding=1)[0])


def test_the_critic_sees_how_far_images_of_a_group_differ() -> None:
    same = torch.randn(1, 3, 2, 2, generator=seeded(0)).expand(8, -1, -1, -1)
    assert float(with_spread(same)[:, 3].max()) < 1e-3
    # rows 0, 2, 4, 6 are one group and 1, 3, 5, 7 the other: of +-1, and of +-5
    signs = torch.tensor([1.0, 5, -1, -5, 1, 5, -1, -5])
    spread = with_spread(signs.view(8, 1, 1, 1).expand(-1, 3, 2, 2))[:, 3]
    torch.testing.assert_close(spread, signs.abs()[:, None, None].expand(-1, 2, 2))
    assert with_spread(torch.randn(7, 2, 3, 3)).shape == (7, 3, 3, 3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(28, 28, 1, 256), (16, 17, 3, 256), (9, 5, 2, 2), (3, 3, 1, 4)])
def test_nets_take_any_size(name: str, shape: tuple[int, int, int, int]) -> None:
    space = Image(*shape)
    model = small(name, space, Label(("a", "b")))
    c = torch.arange(8) % 2
    terms = model.critic_terms(whole(images(8, space), c), seeded(0)) | model.generator_terms(
        whole(images(8, space), c), seeded(0)
    )
    assert all(v.shape == (8,) and v.isfinite().all() for v in terms.values())
    drawn = model.given(c).sample(2, generator=seeded(0))
    assert drawn.shape == (2, 8, *space.event_shape)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("conditioning", ["projection", "input"])
def test_contexts_reach_both_nets(name: str, conditioning: str) -> None:
    model = small(name, context=Label(("a", "b")), conditioning=conditioning)
    learner = model.learner(Recipe(batch=8))
    x, c = images(8), torch.arange(8) % 2
    for step in range(2):
        learner.step(whole(x, c, step), seeded(step))  # what starts at zero moves
    y, z = model.codec.encode(x), torch.randn(8, model.noises, generator=seeded(0))
    for net, given in ((model.critic, y), (model.generator, z)):
        net.eval()
        a, b = (net(given, net.told(labels)) for labels in (c, 1 - c))
        assert not torch.allclose(a, b, atol=1e-6)


def test_the_critic_of_dcgan_normalises_over_the_batch_only_without_another_bound_on_it() -> None:
    def normalises(**options: object) -> bool:
        return any(isinstance(m, nn.BatchNorm2d) for m in small("dcgan", **options).critic.modules())

    assert normalises()
    assert not normalises(penalty=1.0)
    assert not normalises(loss="wgan")
    assert not normalises(loss="hinge")


# -- styles -------------------------------------------------------------------------------------------------------


def test_truncation_draws_styles_in_to_the_mean_style_of_their_context() -> None:
    model, n = style(context=Label(("a", "b"))), 20000
    net = styled(model.sampling)
    h = model.sampling.told(torch.tensor([0, 1]))
    with torch.no_grad():
        for one in h:
            w = net.mapping(torch.randn(n, model.config.noise, generator=seeded(3)), one.expand(n, -1))
            centre = model.truncate(net.repeated(w[:1]), one[None], 0.0)[0, 0]
            error = w.std(0) * math.sqrt(1 / n + 1 / 2048)
            assert ((centre - w.mean(0)).abs() < 5 * error).all()
    w = model.draw_styles(2, h, seeded(0))
    centre, half = model.truncate(w, h, 0.0), model.truncate(w, h, 0.5)
    torch.testing.assert_close(half, (w + centre) / 2)
    assert not torch.allclose(centre[0], centre[1])
    # without noise of pixels, one style is one image
    drawn = model.given(torch.tensor(0)).sample(5, sampler=Styled(truncation=0.0), generator=seeded(0))
    assert len(drawn.unique(dim=0)) == 1


def test_the_sampler_mixes_two_styles_at_the_crossover() -> None:
    model = style()
    layers = styled(model.sampling).synthesis.layers
    first, second = (model.draw_styles(6, None, g) for g in [seeded(0)] * 2)  # one generator: two draws
    for start in (1, layers - 1):
        mixed = torch.cat([first[:, :start], second[:, start:]], 1)
        drawn = model.sample(6, sampler=Styled(truncation=1.0, crossover=start), generator=seeded(0))
        assert (drawn == model.render(mixed, seeded(9))).all()  # untrained, pixels have no noise yet
        assert not (drawn == model.render(first, seeded(9))).all()
    with pytest.raises(UsageError, match=f"crossover is {layers}; this stylegan has styles at {layers} layers"):
        model.sample(1, sampler=Styled(crossover=layers))


def test_training_mixes_styles_as_often_as_asked_and_anywhere() -> None:
    model, n = style(mixing=0.3), 6000
    layers = styled(model.generator).synthesis.layers
    with torch.no_grad():
        w = model.styles(whole(images(1).expand(n, -1, -1, -1)), None, seeded(0))
    starts = (w == w[:, :1]).all(2).sum(1)  # layers of the first style
    assert (w[torch.arange(n), starts - 1] == w[:, 0]).all()
    share = (starts < layers).float().mean()
    assert abs(float(share) - 0.3) < 5 * math.sqrt(0.3 * 0.7 / n)
    counts = starts[starts < layers].bincount(minlength=layers)[1:]
    expected = float(share) * n / (layers - 1)
    assert ((counts - expected).square() / expected).sum() < 4 * layers + 10
    assert (style(mixing=0.0).styles(whole(images(4)), None, seeded(0)).diff(dim=1) == 0).all()


class LinearSynthesis(nn.Module):
    """x = A w over all layers, near 0, where tanh is the identity."""

    layers, noises = 2, 1

    def __init__(self, a: Tensor) -> None:
        super().__init__()
        self.a = nn.Parameter(a)

    def forward(self, w: Tensor, noise: Tensor | None) -> Tensor:
        return w.flatten(1) @ self.a.T


def test_path_lengths_are_those_of_a_linear_map() -> None:
    """E |A^T y|^2 over layers and pixels = |A|^2 / (layers pixels)."""
    model, n = style(space=Image(4, 4, 1, 256), path_weight=3.0, path_every=2), 4000
    a = 1e-3 * torch.randn(16, 2 * model.config.style, generator=seeded(0))
    styled(model.generator).synthesis = LinearSynthesis(a)  # type: ignore[assignment]
    batch = whole(images(1, model.space).expand(n, -1, -1, -1))  # type: ignore[arg-type]
    first = model.generator_terms(batch, seeded(1))
    square = first["path_length"].square()
    assert abs(float(square.mean() - a.square().sum() / 32)) < 5 * float(square.std()) / math.sqrt(n)
    model.adapt({k: v.mean() for k, v in first.items()}, batch)
    torch.testing.assert_close(model.path_mean, first["path_length"].mean())
    again = model.generator_terms(batch, seeded(1))  # the same noise, now with lengths to compare with
    penalty = again["loss"] - first["loss"]
    torch.testing.assert_close(penalty, 6 * (first["path_length"] - model.path_mean).square(), atol=1e-6, rtol=1e-3)
    assert "path_length" not in model.generator_terms(replace(batch, step=1), seeded(1))


def test_a_penalty_taken_every_few_steps_counts_as_often_more() -> None:
    model = style(penalty=0.5, penalty_every=4)
    x = images(8)
    terms = [model.critic_terms(whole(x, step=step), seeded(0)) for step in range(5)]
    y = model.codec.encode(x).requires_grad_()
    full = 0.5 * 0.5 * slope(model.critic(y, None), y)
    for step, found in enumerate(terms):
        torch.testing.assert_close(found["penalty"], 4 * full.detach() if step % 4 == 0 else torch.zeros(8))


# -- augmentation -------------------------------------------------------------------------------------------------

FLIP, TURN, MOVE, ZOOM, BRIGHT, CONTRAST, HOLE = range(7)


def choose(what: int, n: int = 150, size: int = 8) -> tuple[Tensor, Tensor]:
    """Images, and numbers that ask for one augmentation."""
    u = torch.rand(n, Augment.uniforms, generator=seeded(1))
    u[:, :7] = 0.99
    u[:, what] = 0.0
    return torch.randn(n, 2, size, size, generator=seeded(2)), u


def test_each_augmentation_does_what_it_says() -> None:
    def result(what: int, flips: bool = False) -> tuple[Tensor, Tensor]:
        y, u = choose(what)
        return y, Augment((2, 8, 8), flips)(y, u, 0.5)

    y, turned = result(TURN)
    turns = torch.stack([y.rot90(k, (2, 3)) for k in range(4)])
    error = (turns - turned).abs().amax((2, 3, 4))
    assert float(error.min(0).values.max()) < 1e-4
    assert (error.argmin(0).bincount(minlength=4) > 0).all()
    y, moved = result(MOVE)
    reach = round(8 * SHIFT)
    rows = F.pad(y, (reach,) * 4, mode="replicate").unfold(2, 8, 1).unfold(3, 8, 1)  # a row repeats itself at the edge
    error = (rows - moved[:, :, None, None]).abs().amax((1, 4, 5)).flatten(1)
    assert float(error.min(1).values.max()) < 1e-4
    assert len(error.argmin(1).unique()) == (2 * reach + 1) ** 2
    y, bright = result(BRIGHT)
    torch.testing.assert_close(bright - y, (bright - y)[:, :1, :1, :1].expand_as(y), atol=1e-5, rtol=1e-4)
    y, contrast = result(CONTRAST)
    ratio = (contrast * y).sum((1, 2, 3)) / y.square().sum((1, 2, 3))
    torch.testing.assert_close(contrast, ratio[:, None, None, None] * y, atol=1e-4, rtol=1e-4)
    y, cut = result(HOLE)
    gone = (cut == 0).all(1)
    assert int(gone.sum((1, 2)).max()) == (8 * CUTOUT) ** 2
    assert torch.allclose(cut[~gone[:, None].expand_as(y)], y[~gone[:, None].expand_as(y)], atol=1e-5)
    y, zoomed = result(ZOOM)
    assert float((zoomed - y).abs().mean()) > 0.1
    y, same = result(FLIP)
    torch.testing.assert_close(same, y, atol=1e-5, rtol=1e-5)  # nobody asked for it
    y, flipped = result(FLIP, flips=True)
    mirrored = (flipped - y.flip(3)).abs().amax((1, 2, 3)) < 1e-4
    assert 40 < int(mirrored.sum()) < 110
    torch.testing.assert_close(flipped[~mirrored], y[~mirrored], atol=1e-5, rtol=1e-5)


def test_an_augmentation_comes_as_often_as_p_says_and_has_derivatives() -> None:
    y = torch.ones(4000, 1, 3, 5).requires_grad_()  # only brightness, contrast and holes change it
    out = Augment((1, 3, 5), False)(y, torch.rand(4000, Augment.uniforms, generator=seeded(0)), 0.3)
    as_it_was = ((out - 1).abs() < 1e-5).flatten(1).all(1).float().mean()
    assert abs(float(as_it_was) - 0.7**3) < 5 * math.sqrt(0.343 * 0.657 / 4000)
    out.square().sum().backward()
    assert y.grad is not None
    assert float((y.grad.abs().sum((1, 2, 3)) > 0).float().mean()) > 0.99


def test_the_probability_follows_the_signs() -> None:
    adaptive = Adaptive((1, 4, 4), flips=False, target=0.6, images=1000)
    for k in range(8):
        adaptive.look(torch.tensor(0.7), 10)
        assert float(adaptive.p) == pytest.approx(0.04 * ((k + 1) // 4))
    for mean in (0.7, 0.7, 0.5, 0.4):  # their mean is below the target
        adaptive.look(torch.tensor(mean), 10)
    assert float(adaptive.p) == pytest.approx(0.04)
    for _ in range(8):
        adaptive.look(torch.tensor(-1.0), 10)
    assert float(adaptive.p) == 0.0
    for _ in range(400):
        adaptive.look(torch.tensor(1.0), 10)
    assert float(adaptive.p) == pytest.approx(MOST)


def test_a_critic_that_knows_its_data_by_heart_is_shown_augmented_ones() -> None:
    model = style(augment="adaptive", overfit=0.01, overfit_images=100)
    learner = model.learner(Recipe(batch=8, lr=5e-3))
    x = images(8)
    logged = [learner.step(whole(x, step=step), seeded(step))["augmented"] for step in range(13)]
    assert model.adaptive is not None
    assert max(logged) > 0
    assert float(logged[0]) == 0
    # to go on from the middle is to go on as if nothing had been
    other = style(augment="adaptive", overfit=0.01, overfit_images=100)
    again = other.learner(Recipe(batch=8, lr=5e-3))
    other.load_state_dict(model.state_dict())
    again.load_state_dict(copy.deepcopy(learner.state_dict()))
    for each in (learner, again):
        for step in range(13, 17):
            each.step(whole(x, step=step), seeded(step))
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert (a == b).all(), name


# -- the contract -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_what_they_do_not_serve_is_refused_by_name(name: str) -> None:
    cls = family(name)
    for space, said in ((Table((Real("x"),)), "it makes images"), (Image(2, 9, 1, 256), "sides of 3 pixels or more")):
        with pytest.raises(Unsupported, match=said):
            cls(cls.Config(), space)
    with pytest.raises(Unsupported, match="scaled where they are used"):
        StyleGan(StyleGanConfig(loss="hinge"), GREY)


@pytest.mark.parametrize("name", NAMES)
def test_three_images_train(name: str) -> None:
    part = Part(images(3))
    run = pofx.fit(Data("few", "memory", GREY, part, part, part), name, steps=2, options=vars(family(name).tiny(GREY)))
    assert run.steps == 2
    assert run.model.remarks[0].startswith("A batch is all 3 training rows")


@pytest.mark.parametrize("options", [{"overfit": 1.0}, {"mixing": 1.5}, {"penalty_every": 0}, {"mapping": 0}])
def test_impossible_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        StyleGanConfig(**options)  # type: ignore[arg-type]


def test_options_that_change_nothing_are_named() -> None:
    assert {"flips", "overfit", "overfit_images"} <= set(Dcgan.idle(GREY, None, DcganConfig()))
    assert "flips" not in set(Dcgan.idle(GREY, None, DcganConfig(augment="adaptive")))
    assert {"penalty_every", "path_every"} <= set(
        StyleGan.idle(GREY, None, StyleGanConfig(penalty=0.0, path_weight=0.0))
    )
    assert ResnetGan.refuses(GREY, None, ResnetGan.Config()) is None
