"""Contexts: encoded once, masked, dropped, and told to every kind of net."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import pofx
from pofx.core.errors import Unsupported, UsageError
from pofx.core.likelihood import Exact
from pofx.core.model import Model
from pofx.core.space import Space
from pofx.data.parts import Data, Part
from pofx.nn.encoders import Encoded, Encoder, encoder
from pofx.nn.transformer import Shape, Transformer
from pofx.nn.unet import Attention
from pofx.spaces import Audio, Image, Label, Real, Reals, Sequence, Table, Text

PLANE = Table((Real("a"), Real("b")))
STEPS = Sequence(PLANE, True, 5)


def made(name: str, space: Space, context: Space, c: Tensor, seed: int = 0, **options: Any) -> Model:
    """A tiny model, of random weights, that is prepared for contexts c."""
    cls = pofx.family(name)
    torch.manual_seed(seed)
    model = cls(dataclasses.replace(cls.tiny(space), **options), space, context)
    model.context_encoder.prepare(c)
    g = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=g)
    return model.eval()


def counted(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each call of the encoder has from now on."""
    rows: list[int] = []
    encode = type(model).encode_context

    def counting(self: Model, c: Tensor, dropped: Tensor | None = None) -> Any:
        rows.append(len(c))
        return encode(self, c, dropped)

    monkeypatch.setattr(type(model), "encode_context", counting)
    return rows


def images(n: int) -> Tensor:
    return torch.randint(2, (n, 1, 8, 8), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


# -- once ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "space"), [("realnvp", PLANE), ("gpt", Text("ab", True, 4)), ("gan", PLANE)])
def test_distinct_contexts_are_encoded_once(name, space, monkeypatch):
    c = images(3)[torch.tensor([0, 1, 0, 2, 1])]
    cls = pofx.family(name)
    model = cls(cls.tiny(space), space, Image(8, 8, 1, 2)).requires_grad_(False)
    rows, p = counted(model, monkeypatch), model.given(c)
    x = p.sample(64)
    assert x.shape[:2] == (64, 5)
    p.log_prob(x[:2])
    p.sample(1)
    assert rows == [3]


def test_what_was_encoded_goes_with_the_weights_it_was_made_with():
    c = images(2)
    model = made("made", PLANE, Image(8, 8, 1, 2), c).requires_grad_(False)
    p, x = model.given(c), torch.zeros(2, 2, dtype=torch.float64)
    before = p.log_prob(x).nats
    with torch.no_grad():
        model.context_encoder.linear.weight.mul_(2)
    assert not torch.equal(p.log_prob(x).nats, before)
    assert torch.equal(p.log_prob(x).nats, model.given(c).log_prob(x).nats)


def test_each_of_equal_contexts_has_its_own_gradient():
    c = torch.tensor([[1.0, 2.0]], dtype=torch.float64).repeat(3, 1).requires_grad_()
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    model = made("made", PLANE, PLANE, c.detach() + torch.randn(3, 2)).requires_grad_(False)
    model.given(c).sample(1)  # what is kept of it is without gradient
    (grad,) = torch.autograd.grad(model.given(c).log_prob(x).nats.sum(), c)
    step = torch.zeros(3, 2, dtype=torch.float64)
    step[1, 0] = 1e-2
    up, down = (model.given((c + k * step).detach()).log_prob(x).nats.sum() for k in (1, -1))
    assert (grad.abs().sum(1) > 0).all()
    assert torch.allclose(grad[0], grad[2])
    assert torch.isclose((up - down) / 2e-2, grad[1, 0].double(), rtol=0.05)


def test_parameters_get_their_gradients_however_often_and_after_samples():
    c = images(2)
    p = made("made", PLANE, Image(8, 8, 1, 2), c).given(c)
    p.sample(3)
    for _ in range(2):
        p.model.zero_grad()
        p.log_prob(torch.zeros(2, 2, dtype=torch.float64)).nats.sum().backward()
        assert p.model.context_encoder.linear.weight.grad.abs().sum() > 0


# -- encoders --------------------------------------------------------------------------------------------------------

RAGGED = [
    (Text("abc", True, 4), torch.tensor([[0, 1, 2, 1], [2, -1, -1, -1], [-1, -1, -1, -1]])),
    (Audio(8000, 16, "linear", True, 1000), torch.cat([torch.arange(700) % 16, torch.full((300,), -1)])[None]),
    (STEPS, torch.randn(3, 5, 2, dtype=torch.float64).index_fill(1, torch.tensor([3, 4]), torch.inf)),
]


@pytest.mark.parametrize(("space", "c"), RAGGED, ids=[type(s).__name__ for s, _ in RAGGED])
def test_a_context_of_free_length_is_masked(space, c):
    net = encoder(space, 32)
    net.prepare(c)
    one, wide = (net(x) for x in (c, torch.cat([c, torch.full_like(c[:, :1], space.fill).repeat_interleave(9, 1)], 1)))
    count = one.tokens.shape[1]
    assert one.mask.any(1).all(), "an empty context has a token, too"
    assert torch.allclose(one.vector, wide.vector, atol=1e-5)
    assert torch.allclose(one.tokens[one.mask], wide.tokens[:, :count][one.mask], atol=1e-5)
    assert not wide.mask[:, count:].any()
    assert count <= 1 + 256, "long ones are read in steps of several"


def test_encoded_rows_are_taken_and_joined():
    net = encoder(Text("abc", True, 4))
    e = net(RAGGED[0][1])
    back = Encoded.cat([e[:1], e[1:]])
    assert len(e) == 3
    for a, b in ((e.vector, back.vector), (e.tokens, back.tokens), (e.mask, back.mask)):
        assert torch.equal(a, b)
    assert e.to(torch.float64).vector.dtype == torch.float64
    assert encoder(Label(("a", "b")))(torch.tensor([0])).tokens is None


def test_a_third_partys_space_has_its_own_encoder():
    class Clock(Reals):
        pass

    class Hands(Encoder):
        def encode(self, c: Tensor) -> Encoded:
            return Encoded(torch.cat([c.sin(), c.cos()], 1).float())

    encoder.register(Clock, lambda space, width=64: Hands(2 * space.dims))
    model = pofx.family("made")(pofx.family("made").tiny(PLANE), PLANE, Clock((1,)))
    assert model.known == 2
    assert isinstance(model.given(torch.zeros(3, 1)).log_prob(torch.zeros(3, 2)), Exact)


# -- cross-attention -------------------------------------------------------------------------------------------------


def test_tokens_that_are_masked_are_not_seen():
    torch.manual_seed(0)
    net, x = Transformer(Shape(16, 2, 2, block=8), memory=4), torch.randn(3, 5, 16)
    for p in net.parameters():
        p.data += 0.1 * torch.randn(p.shape)
    tokens, mask = torch.randn(3, 6, 4), torch.arange(6) < torch.tensor([[2], [6], [4]])
    other = torch.where(mask[..., None], tokens, 100.0)
    assert torch.allclose(net(x, (tokens, mask)), net(x, (other, mask)))
    assert not torch.allclose(net(x, (tokens, mask)), net(x, (tokens.roll(1, 0), mask)))
    order = torch.randperm(6)
    assert torch.allclose(net(x, (tokens, mask)), net(x, (tokens[:, order], mask[:, order])), atol=1e-5)


def test_the_unets_attention_is_that_of_torch():
    torch.manual_seed(0)
    ours, theirs = Attention(16, memory=4), torch.nn.MultiheadAttention(16, 1, False, kdim=4, vdim=4, batch_first=True)
    cross = ours.cross
    cross.out.weight.data.normal_()
    key, value = cross.told.weight.data.unflatten(0, (2, 16))
    pairs = (theirs.q_proj_weight, cross.query.weight), (theirs.k_proj_weight, key), (theirs.v_proj_weight, value)
    for to, of in pairs:
        to.data.copy_(of)
    theirs.out_proj.weight.data.copy_(cross.out.weight)
    x, tokens, mask = torch.randn(2, 16, 3, 3), torch.randn(2, 5, 4), torch.arange(5) < torch.tensor([[3], [5]])
    y = x.flatten(2).mT
    turns = [[k / 10000 ** (j / 4) for j in range(4)] for k in range(3)]  # what is asked depends on the place
    waves = [[*map(math.sin, turn), *map(math.cos, turn)] for turn in turns]
    at = torch.tensor([row + column for row in waves for column in waves])
    expected = y + theirs(cross.norm(y + at), tokens, tokens, key_padding_mask=~mask)[0]
    assert torch.allclose(ours(x, (tokens, mask)).flatten(2).mT, expected, atol=1e-5)


# -- no context ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["made", "realnvp", "vae", "gan", "vdm"])
def test_no_context_is_asked_for_where_some_were_dropped(name):
    cls = pofx.family(name)
    for share in (0.0, 0.2):
        model = cls(dataclasses.replace(cls.tiny(PLANE), context_dropout=share), PLANE, Label(("a", "b")))
        if share:
            assert model.given(null=True).sample(3).shape == (3, 2)
        else:
            with pytest.raises(Unsupported, match="No context was dropped in training"):
                model.given(null=True).sample(3)
    with pytest.raises(UsageError, match="null"):
        model.given(torch.tensor(0), null=True)
    with pytest.raises(UsageError, match="takes no context"):
        cls(cls.tiny(PLANE), PLANE).given(null=True)


def test_families_without_nets_say_that_they_know_no_null():
    gmm = pofx.family("gmm")
    with pytest.raises(Unsupported, match="context_dropout"):
        gmm(gmm.tiny(PLANE), PLANE, Label(("a", "b"))).given(null=True).sample(1)


def test_the_null_context_learns_the_marginal():
    """p(x | no context) of two well separated classes is their mixture."""
    label = torch.arange(600) % 2
    x = torch.randn(600, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 8 * label[:, None]
    space = Table((Real("x"),))
    part = Part(x, label)
    data = Data("classes", "classes", space, part, part, part, Label(("a", "b")))
    options = {"context_dropout": 0.3, "hidden": 32, "components": 4}
    model = pofx.fit(data, "made", steps=300, seed=0, options=options).model
    both = model.given(null=True).log_prob(x).nats.mean()
    own = model.given(label).log_prob(x).nats.mean()
    assert abs(float(own - both) - torch.tensor(2.0).log().item()) < 0.15
    low = (model.given(null=True).sample(1000)[:, 0] < 4).double().mean()
    assert 0.35 < low < 0.65


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gmm", "independent", "trees"])
def test_families_without_encoders_refuse_contexts_of_free_length(name):
    cls = pofx.family(name)
    reason = cls.refuses(PLANE, Text("ab", True, 4), cls.tiny(PLANE))
    assert reason is not None
    assert "contexts of one size" in reason
