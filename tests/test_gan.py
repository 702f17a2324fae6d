"""Identities of the GAN: its penalties in closed form, what the critic sees, what it samples."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from pofx.cli import main
from pofx.codecs.relaxed import Modes, relaxed, straight_through
from pofx.core.errors import OlderFormat, Unsupported, UsageError
from pofx.core.learner import Batch, Recipe
from pofx.core.likelihood import Unavailable
from pofx.core.model import Model
from pofx.core.registry import family
from pofx.core.space import Space
from pofx.data.load import load
from pofx.families.adversarial import PATIENCE, Adversarial, Collapsed, projected, slope
from pofx.families.gan import Gan, GanConfig
from pofx.report.build import build
from pofx.spaces import Category, Image, Integer, Label, Real, Table
from pofx.train.checkpoint import load_tree, save_tree
from pofx.train.fit import fit
from pofx.train.run import read_run

PLANE = Table((Real("x"), Real("y")))
MIXED = Table(
    (
        Real("height"),
        Category("sex", ("f", "m")),
        Integer("age", 0, 90, nullable=True),
        Real("pay", nullable=True, step=0.25, origin=0.1),
        Category("town", ("a", "b", "c"), nullable=True),
        Real("score", nullable=True),
    )
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixed(n: int) -> Tensor:
    g = seeded(0)
    x = torch.stack(
        [
            1e4 + 10 * torch.randn(n, generator=g, dtype=torch.float64),
            torch.randint(2, (n,), generator=g).double(),
            torch.randint(90, (n,), generator=g).double(),
            0.1 + 0.25 * torch.randint(-40, 40, (n,), generator=g).double(),
            torch.randint(3, (n,), generator=g).double(),
            torch.randn(n, generator=g, dtype=torch.float64),
        ],
        1,
    )
    lost = torch.rand(n, 6, generator=g) < 0.3
    lost[:, :2] = False
    return x.masked_fill(lost, math.nan)


def gan(space: Space, context: Space | None = None, **options: object) -> Gan:
    torch.manual_seed(0)
    return Gan(replace(GanConfig(noise=4, hidden=16, channels=4, modes=1), **options), space, context)  # type: ignore[arg-type]


def whole(x: Tensor, c: Tensor | None = None, progress: float = 0.0, step: int = 0) -> Batch:
    return Batch(x, c, None, 0, len(x), progress, step)


class Linear(nn.Module):
    """D(y) = a y, whose gradient is a everywhere."""

    def __init__(self, a: Tensor) -> None:
        super().__init__()
        self.a = nn.Parameter(a)

    def told(self, c: Tensor | None, dropped: Tensor | None) -> None:
        """It takes no context."""

    def forward(self, y: Tensor, h: Tensor | None) -> Tensor:
        return y @ self.a


# -- penalties ----------------------------------------------------------------------------------------------------


def test_the_r1_penalty_of_a_linear_critic() -> None:
    model, a = gan(PLANE, loss="r1", penalty=3.0), torch.tensor([0.6, -1.1])
    model.critic = Linear(a)  # type: ignore[assignment]
    terms = model.critic_terms(whole(torch.randn(9, 2, dtype=torch.float64)), seeded(0))
    torch.testing.assert_close(terms["penalty"], torch.full((9,), 1.5 * float(a.square().sum())))


@pytest.mark.parametrize("length", [1.0, 2.5])
def test_the_wgan_penalty_is_zero_for_unit_slope_only(length: float) -> None:
    model = gan(PLANE, loss="wgan")
    model.critic = Linear(length * torch.tensor([0.6, -0.8]))  # type: ignore[assignment]
    terms = model.critic_terms(whole(torch.randn(9, 2, dtype=torch.float64)), seeded(0))
    torch.testing.assert_close(terms["penalty"], torch.full((9,), 10 * (length - 1) ** 2), atol=1e-5, rtol=1e-5)


def test_the_wgan_loss_of_a_linear_critic_is_a_difference_of_means() -> None:
    model, a = gan(PLANE, loss="wgan", penalty=0.0), torch.tensor([2.0, 1.0])
    model.critic = Linear(a)  # type: ignore[assignment]
    batch = whole(torch.randn(9, 2, dtype=torch.float64))
    loss = model.critic_terms(batch, seeded(7))["loss"]
    difference = (model.fake(batch, None, seeded(7)) - model.codec.encode(batch.x)) @ a
    torch.testing.assert_close(loss, difference)
    torch.testing.assert_close(
        model.generator_terms(batch, seeded(7))["loss"], -(model.fake(batch, None, seeded(7)) @ a)
    )


def test_an_undecided_critic_costs_log_2_each_way() -> None:
    model = gan(PLANE, loss="r1")
    model.critic = Linear(torch.zeros(2))  # type: ignore[assignment]
    batch = whole(torch.randn(5, 2, dtype=torch.float64))
    torch.testing.assert_close(model.critic_terms(batch, seeded(0))["loss"], torch.full((5,), 2 * math.log(2)))
    torch.testing.assert_close(model.generator_terms(batch, seeded(0))["loss"], torch.full((5,), math.log(2)))


def test_the_relativistic_game_of_a_linear_critic() -> None:
    model, a = gan(PLANE, loss="r3gan", penalty=3.0), torch.tensor([0.6, -1.1])
    model.critic = Linear(a)  # type: ignore[assignment]
    batch = whole(torch.randn(9, 2, dtype=torch.float64))
    terms = model.critic_terms(batch, seeded(7))
    difference = (model.codec.encode(batch.x) - model.fake(batch, None, seeded(7))) @ a
    torch.testing.assert_close(terms["penalty"], torch.full((9,), 3.0 * float(a.square().sum())))  # of both sides
    torch.testing.assert_close(terms["loss"] - terms["penalty"], (1 + (-difference).exp()).log())
    torch.testing.assert_close(model.generator_terms(batch, seeded(7))["loss"], (1 + difference.exp()).log())


def test_the_hinge_game_of_a_linear_critic() -> None:
    model, a = gan(PLANE, loss="hinge"), torch.tensor([3.0, -1.0])
    model.critic = Linear(a)  # type: ignore[assignment]
    batch = whole(torch.randn(40, 2, dtype=torch.float64))
    on_real, on_fake = model.codec.encode(batch.x) @ a, model.fake(batch, None, seeded(7)) @ a
    loss = model.critic_terms(batch, seeded(7))["loss"]
    torch.testing.assert_close(loss, (1 - on_real).clamp(min=0) + (1 + on_fake).clamp(min=0))
    assert ((1 - on_real) < 0).any()
    torch.testing.assert_close(model.generator_terms(batch, seeded(7))["loss"], -on_fake)


@pytest.mark.parametrize("space", [PLANE, Image(16, 16, 1, 4)], ids=str)
def test_the_hinge_critic_has_layers_of_norm_one(space: Space) -> None:
    model = gan(space, loss="hinge")
    y = torch.randn(4, model.codec.size)
    for _ in range(60):  # steps of power iteration
        model.critic(y, None)
    model.eval()
    layers = [m for m in model.critic.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert len(layers) >= 3
    for layer in layers:
        assert float(torch.linalg.matrix_norm(layer.weight.flatten(1), 2)) == pytest.approx(1, abs=0.02)


def test_projection_is_the_inner_product_with_the_context() -> None:
    out, h = torch.randn(5, 4, generator=seeded(0)), torch.randn(5, 3, generator=seeded(1))
    by_hand = torch.stack([out[i, 0] + sum(out[i, 1 + k] * h[i, k] for k in range(3)) / 3**0.5 for i in range(5)])
    torch.testing.assert_close(projected(out, h), by_hand)
    torch.testing.assert_close(projected(out[:, :1], None), out[:, 0])


def test_packed_rows_are_those_that_follow() -> None:
    model, x = gan(PLANE, pack=3), torch.randn(5, 2, dtype=torch.float64)
    y = model.codec.encode(x)
    seen = model.shown(y, whole(x), seeded(0))
    for i in range(5):
        torch.testing.assert_close(seen[i].view(3, 2), y[[i, (i + 1) % 5, (i + 2) % 5]])
    assert model.learner(Recipe()).step(whole(x), seeded(0))["loss"].isfinite()


def test_the_slope_is_differentiable_row_by_row() -> None:
    y = torch.randn(6, 3, dtype=torch.float64, generator=seeded(0), requires_grad=True)
    s = slope(y.pow(3).sum(1), y)
    torch.testing.assert_close(s, (9 * y.pow(4)).sum(1))
    (second,) = torch.autograd.grad(s.sum(), y)
    torch.testing.assert_close(second, 36 * y.pow(3))


# -- what the critic sees ------------------------------------------------------------------------------------------


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.isnan(), b.isnan()) and torch.allclose(a.nan_to_num(), b.nan_to_num(), atol=1e-4)


def spaces() -> list[tuple[Model, Tensor]]:
    image = torch.randint(17, (50, 2, 3, 4), generator=seeded(1)).to(torch.uint8)
    binary = (image > 8).to(torch.uint8)
    return [
        (gan(MIXED), mixed(300)),
        (gan(MIXED, modes=3), mixed(300)),
        (gan(Image(3, 4, 2, 17)), image),
        (gan(Image(3, 4, 2, 2)), binary),
    ]


def test_codecs_invert() -> None:
    for model, x in spaces():
        model.prepare(x, None, None, seeded(0))
        back = model.codec.rows(model.codec.encode(x))
        assert back.dtype == x.dtype
        assert same(back, x)


def test_the_critic_sees_only_what_data_can_be() -> None:
    for model, x in spaces():
        model.prepare(x, None, None, seeded(0))
        raw = 2 * torch.randn(500, model.codec.size, generator=seeded(1))
        u = torch.rand(500, model.codec.uniforms, generator=seeded(2))
        seen = model.codec.emit(raw, u)
        rows = model.codec.rows(seen)
        model.space.check(rows)
        torch.testing.assert_close(model.codec.encode(rows), seen, atol=1e-4, rtol=1e-4)


def test_the_gradient_passes_straight_through() -> None:
    for model, x in spaces():
        model.prepare(x, None, None, seeded(0))
        raw = (0.5 * torch.randn(200, model.codec.size, generator=seeded(1))).requires_grad_()
        seen = model.codec.emit(raw, torch.rand(200, model.codec.uniforms, generator=seeded(2)))
        seen.square().sum().backward()
        assert (raw.grad.abs().sum(0) > 0).all()
    y = torch.tensor([0.2, 1.7], requires_grad=True)
    straight_through(y.round(), y.square()).sum().backward()
    torch.testing.assert_close(y.grad, 2 * y.detach())


def test_modes_of_a_column_are_found_and_named() -> None:
    g = seeded(3)
    which = torch.randint(3, (3000,), generator=g)
    centres, scales = torch.tensor([-1.0, 0.0, 1.6]).double(), torch.tensor([0.02, 0.1, 0.04]).double()
    x = (centres[which] + scales[which] * torch.randn(3000, generator=g, dtype=torch.float64))[:, None]
    modes = Modes(1, 6)
    modes.fit(x, None)
    place, code = modes.encode(x)
    of_rows = modes.mean[0][code[:, 0]]
    assert ((of_rows - centres[which]).abs() < 3 * scales[which]).all()  # wide modes may be of several components
    own = modes.scale[0][code[:, 0]]
    assert (own < 1.2 * scales[which]).all()  # none is told in a unit that is too coarse for it
    torch.testing.assert_close(modes.decode(place, code), x)
    lost = modes.encode(torch.full((1, 1), math.nan, dtype=torch.float64))
    assert (lost[0], lost[1]) == (0, 0)


def test_what_is_asked_for_is_made_and_follows_the_frequencies() -> None:
    model, x = gan(MIXED, asks=True), mixed(4000)
    model.prepare(x, None, None, seeded(0))
    asking, n = model.asking, 20000
    assert asking is not None
    # of a sample: each category evenly, its values (the last is missing) as often as they occur
    asked = asking.draw(n, seeded(1)).mean(0)
    shares = [(x[:, 1] == k).double().mean() for k in range(2)]
    shares += [(x[:, 4].nan_to_num(3) == k).double().mean() for k in range(4)]
    torch.testing.assert_close(asked, torch.stack(shares).float() / 2, atol=0.017, rtol=0)  # 5 standard errors
    # of training rows: in log-frequencies
    rare = torch.cat([x[x[:, 1] == 0][:20], x[x[:, 1] == 1][:1980]])
    asking.prepare(rare, None)
    row, told = asking.rows(rare, torch.rand(2000, 2, generator=seeded(2)))
    of_sex = told[:, :2].sum(1) > 0
    share = float((rare[row][of_sex, 1] == 0).double().mean())
    expected = math.log(21) / (math.log(21) + math.log(1981))
    assert share == pytest.approx(expected, abs=0.08)  # 5 standard errors of a thousand rows
    torch.testing.assert_close(told[of_sex, :2].argmax(1).double(), rare[row][of_sex, 1])
    # and what is asked is made
    want = model.wanted(None, 500, seeded(3))
    y = model.codec.emit(model.generator(torch.randn(500, 4), want), torch.rand(500, model.codec.uniforms))
    values = asking.values(model.codec.rows(y))
    made = torch.cat([torch.nn.functional.one_hot(values[:, k], s) for k, s in ((0, 2), (1, 4))], 1)
    assert ((want > 0).int() <= made).all()


def test_gumbel_choices_have_their_softmax_frequencies() -> None:
    codec = relaxed(Table((Category("k", ("a", "b", "c")),)), temperature=0.7)
    logits = torch.tensor([0.5, -1.0, 1.2])
    n = 40000
    share = codec.emit(logits.expand(n, 3), torch.rand(n, 3, generator=seeded(0))).mean(0)
    torch.testing.assert_close(share, logits.softmax(0), atol=0.012, rtol=0)


def test_binary_pixels_have_their_log_odds() -> None:
    codec = relaxed(Image(1, 3, 1, 2), temperature=0.7)
    logits, n = torch.tensor([0.5, -1.0, 2.0]), 40000
    share = codec.rows(codec.emit(logits.expand(n, 3), torch.rand(n, 3, generator=seeded(0)))).float().mean(0)
    torch.testing.assert_close(share.flatten(), logits.sigmoid(), atol=0.012, rtol=0)


# -- the learner ----------------------------------------------------------------------------------------------------


def test_one_step_moves_both_nets_and_their_average() -> None:
    model = gan(PLANE, critic_steps=2)
    learner = model.learner(Recipe(warmup=0))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = torch.randn(32, 2, dtype=torch.float64, generator=seeded(0))
    for step in range(3):
        out = learner.step(whole(x, step=step), seeded(step))
    assert all(out[k].isfinite() for k in ("loss", "critic_loss", "penalty", "grad_norm"))
    for name, p in model.named_parameters():
        assert not torch.equal(p, before[name]), name
    assert all(p.requires_grad for p in model.critic.parameters())
    # the average lags behind: it lies between the start and the generator
    start, now, mean = (
        torch.cat([t.flatten() for t in tensors])
        for tensors in (
            [before[f"generator.{k}"] for k, _ in model.generator.named_parameters()],
            list(model.generator.parameters()),
            list(model.average.parameters()),
        )
    )
    assert (mean - start).norm() < (now - start).norm()


def test_training_resumes_exactly() -> None:
    x = torch.randn(32, 2, dtype=torch.float64, generator=seeded(0))
    one = gan(PLANE)
    learner = one.learner(Recipe())
    learner.step(whole(x), seeded(0))
    two = gan(PLANE)
    other = two.learner(Recipe())
    two.load_state_dict(one.state_dict())
    other.load_state_dict(copy.deepcopy(learner.state_dict()))
    for each in (learner, other):
        each.step(whole(x, step=1), seeded(1))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


def test_shares_of_a_batch_see_the_same_noise() -> None:
    model, x = gan(PLANE, loss="wgan"), torch.randn(10, 2, dtype=torch.float64, generator=seeded(0))
    batch = whole(x)
    left, right = replace(batch, x=x[:4]), replace(batch, x=x[4:], start=4)
    shares = [model.critic_terms(part, seeded(1))["loss"] for part in (left, right)]
    torch.testing.assert_close(torch.cat(shares), model.critic_terms(batch, seeded(1))["loss"])


WGAN = pytest.param({"loss": "wgan", "penalty": 1.0, "critic_steps": 5}, marks=pytest.mark.long)
INPUT = pytest.param({"conditioning": "input"}, marks=pytest.mark.long)
HINGE = pytest.param({"loss": "hinge"}, marks=pytest.mark.long)


@pytest.mark.parametrize("game", [{}, INPUT, HINGE, WGAN], ids=str)
def test_a_conditional_gan_learns_where_its_labels_lie(game: dict[str, Any]) -> None:
    model = gan(PLANE, Label(("left", "right")), **game, hidden=32, ema=0.98)
    centre = torch.tensor([[-20.0, 5.0], [20.0, 5.0]], dtype=torch.float64)
    c = torch.arange(512) % 2
    x = centre[c] + torch.randn(512, 2, dtype=torch.float64, generator=seeded(0))
    model.prepare(x, c, None, seeded(0))
    learner = model.learner(replace(model.recipe(PLANE), lr=2e-3))
    means = []
    for step in range(300):
        rows = torch.randint(512, (128,), generator=seeded(1000 + step))
        learner.step(whole(x[rows], c[rows], step / 300, step), seeded(step))
        if step >= 100 and step % 10 == 9:
            drawn = model.given(torch.tensor([0, 1])).sample(300, generator=seeded(1))
            assert drawn.shape == (300, 2, 2)
            means.append(drawn.mean(0))
    # the game circles its solution (Mescheder et al. 2018): one moment is luck, the mean over many is not
    torch.testing.assert_close(torch.stack(means).mean(0), centre, atol=4, rtol=0)  # a deaf one is 20 off


def test_a_generator_that_collapses_is_told_of_once() -> None:
    model, x = gan(PLANE), torch.randn(16, 2, dtype=torch.float64, generator=seeded(0))
    learner = model.learner(Recipe(lr=1e-8))
    learner.step(whole(x), seeded(0))
    assert learner.alike == 0
    with torch.no_grad():
        for p in model.generator.parameters():
            p.zero_()
    learner.alike = PATIENCE - 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner.step(whole(x, step=1), seeded(1))
    with pytest.warns(Collapsed, match="Raise penalty or pack"):
        learner.step(whole(x, step=2), seeded(2))


@pytest.mark.parametrize("name", ["gan", "dcgan"])
def test_fewer_rows_than_a_batch(name: str) -> None:
    """One that was asked for is refused; the family's own is then all rows, and says so."""
    data = load("digits", max_rows=40)
    options = dataclasses.asdict(family(name).tiny(data.space))
    with pytest.raises(UsageError, match="32 training rows are fewer than a batch of 50"):
        fit(data, name, steps=1, options=options, recipe={"batch": 50})
    run = fit(data, name, steps=1, options=options)
    assert run.steps == 1
    assert run.model.remarks == ["A batch is all 32 training rows, not 64 of them."]
    assert fit(data, name, steps=1, options=options, recipe={"batch": 32}).model.remarks == []


def test_weights_of_an_older_net_are_named(tmp_path: Path) -> None:
    """A run of a gan whose codec had no modes, and whose critic had a constant at its end."""
    fit(load("two-moons", max_rows=30), "gan", steps=1, out=tmp_path / "run", options={"hidden": 8, "modes": 2})
    file = tmp_path / "run" / "weights.safetensors"
    state = {k: v for k, v in load_tree(file).items() if "modes" not in k}
    save_tree(file, state | {"critic.net.net.last.bias": torch.zeros(1)})
    with pytest.raises(
        OlderFormat, match="weights of another model than today's Gan: codec.modes.* is missing"
    ) as said:
        read_run(tmp_path / "run")
    assert "Fit again" in str(said.value.remedy)


@pytest.mark.parametrize("name", ["gan", "dcgan", "resnet-gan", "stylegan"])
@pytest.mark.parametrize("loss", ["r1", "r3gan", "wgan"])
def test_no_parameter_of_a_critic_is_one_that_its_game_cannot_move(name: str, loss: str) -> None:
    space = Image(8, 8, 1, 256)
    torch.manual_seed(0)
    model = family(name)(replace(family(name).tiny(space), loss=loss), space, Label(("a", "b")))
    assert isinstance(model, Adversarial)
    before = {k: p.clone() for k, p in model.critic.named_parameters()}
    x, c = torch.randint(256, (8, 1, 8, 8), generator=seeded(0)).to(torch.uint8), torch.arange(8) % 2
    learner = model.learner(Recipe(batch=8, warmup=0))
    for step in range(3):
        learner.step(whole(x, c, step=step), seeded(step))
    assert not [k for k, p in model.critic.named_parameters() if torch.equal(p, before[k])]


# -- inversion ------------------------------------------------------------------------------------------------------


class Plane(nn.Module):
    """G(z) = A z, of which the nearest point to any is known."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([[1.0, 0.5], [-0.3, 0.8], [0.6, -0.4]]))

    def forward(self, z: Tensor, h: Tensor | None) -> Tensor:
        return z @ self.a.T


def test_inversion_of_a_linear_generator_is_least_squares() -> None:
    model = gan(Table((Real("a"), Real("b"), Real("c"))), noise=2, ema=0.0).eval()
    model.generator.net = Plane()
    x = torch.randn(6, 3, dtype=torch.float64, generator=seeded(0))
    z, distance = model.given().invert(x, steps=400)
    best = torch.linalg.lstsq(model.generator.net.a.detach(), x.float().T).solution.T
    torch.testing.assert_close(z, best, atol=1e-3, rtol=0)
    rest = (x.float() - best @ model.generator.net.a.detach().T).square().mean(1).sqrt()
    torch.testing.assert_close(distance, rest, atol=1e-3, rtol=0)
    alone = model.given().invert(x[3:4], steps=400)
    torch.testing.assert_close(alone[0], z[3:4], atol=1e-3, rtol=0)


def test_samples_are_found_again_and_other_data_is_not() -> None:
    model = gan(Image(4, 4, 1, 256), noise=2).eval()
    drawn = model.sample(8, generator=seeded(0))
    other = torch.randint(256, drawn.shape, generator=seeded(1)).to(torch.uint8)
    own, far = (model.given().invert(x)[1] for x in (drawn, other))
    assert float(own.max()) < 0.02  # five of 256 levels
    assert float(far.min()) > 0.3
    with pytest.raises(Unsupported, match="no latent variable") as said:
        model.given().encode(drawn)
    assert said.value.remedy == "Ask for invert."
    with pytest.raises(UsageError, match="steps is 0"):
        model.given().invert(drawn, steps=0)


def test_the_command_line_inverts_and_the_report_shows_the_game(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = load("two-moons", max_rows=30), tmp_path / "run"
    model = fit(data, "gan", steps=3, out=run, options={"noise": 3, "hidden": 8, "modes": 1}).model
    assert main(["encode", str(run), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    found = pq.read_table(run / "latents.parquet").to_pydict()
    assert list(found) == ["row", "z0", "z1", "z2", "distance"]
    z, distance = model.given().invert(data.test.x)
    torch.testing.assert_close(torch.tensor(found["distance"]), distance, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(torch.tensor(found["z1"]), z[:, 1], atol=1e-2, rtol=1e-2)
    assert told["latents"] == 3
    assert told["distance"] == pytest.approx(float(distance.mean()), abs=1e-3)
    page = build(run).read_text()
    for title in ("The critic&#39;s mean", "Norm of the gradient", "Distance of two rows"):
        assert f'aria-label="{title} during training"' in page


def test_a_datum_comes_back_of_its_noise() -> None:
    """The same noise gives the same image, a context another, and the noise that was found one as near as it says."""
    model = gan(Image(4, 4, 1, 256), Label(("a", "b")), noise=2).eval()
    z, (one, other) = torch.randn(3, 2, generator=seeded(0)), (model.given(torch.tensor(k)) for k in range(2))
    x = one.from_latents(z)
    assert torch.equal(x, one.from_latents(z))
    assert not torch.equal(x, other.from_latents(z))
    found, distance = one.invert(x, steps=100)
    levels = (one.from_latents(found).double() - x.double()).square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(levels * 2 / 255, distance.double(), atol=0.02, rtol=0)
    with pytest.raises(Unsupported, match="With asks"):
        gan(MIXED, asks=True).given().from_latents(torch.zeros(1, 4))


# -- the contract ---------------------------------------------------------------------------------------------------


def test_samples_are_the_generators() -> None:
    for space in (MIXED, Image(20, 17, 3, 256), Image(3, 3, 1, 2)):
        model = gan(space)
        a, b, other = (model.sample(6, generator=seeded(s)) for s in (0, 0, 1))
        assert same(a, b)
        assert not same(a, other)
        assert a.dtype == space.dtype
        space.check(a)


def test_there_is_no_density_and_it_says_what_to_do() -> None:
    lik = gan(PLANE).log_prob(torch.zeros(3, 2, dtype=torch.float64))
    assert isinstance(lik, Unavailable)
    assert "no density" in lik.reason
    assert "fit" in lik.reason


def test_the_average_is_not_counted_and_not_required() -> None:
    with_average, without = gan(PLANE), gan(PLANE, ema=0.0)
    assert without.average is None
    assert with_average.parameter_count() == without.parameter_count() == sum(p.numel() for p in without.parameters())
    assert without.sample(2).shape == (2, 2)


@pytest.mark.parametrize("options", [{"ema": 1.0}, {"temperature": 0.0}, {"noise": 0}, {"net": "conv"}])
def test_impossible_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises((Unsupported, UsageError), match=next(iter(options))):
        gan(PLANE, **options)
