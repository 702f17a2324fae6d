"""Errors of predictions are data written otherwise: both ways, to the last level."""

from __future__ import annotations

import math

import pytest
import torch

from pofx.codecs.prediction import LinearPrediction, image_errors, image_restored, predicted
from pofx.codecs.steps import Patches, Predicted
from pofx.nn.heads import LevelLogistics
from pofx.spaces import Audio, Image


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sounds(n: int = 4, length: int = 300, levels: int = 65536) -> torch.Tensor:
    t = torch.arange(length)
    wave = torch.stack([torch.sin(t * (0.05 + 0.03 * k)) for k in range(n)])
    noise = 0.01 * torch.randn(n, length, generator=seeded())
    x = ((0.5 * wave + noise).clamp(-1, 1) * (levels // 2 - 1)).round().long() + levels // 2
    x[1, 250:] = -1
    return x


@pytest.mark.parametrize("levels", [65536, 256, 7])
def test_sounds_come_back(levels):
    prediction, x = LinearPrediction(16, levels), sounds(levels=levels)
    prediction.learn(x)
    e = prediction.errors(x)
    assert torch.equal(e < 0, x < 0)
    assert torch.equal(prediction.restored(e), x)
    # whatever the levels are: every one has its error
    wild = torch.randint(levels, (3, 50), generator=seeded(1))
    assert torch.equal(prediction.restored(prediction.errors(wild)), wild)


def test_errors_are_smaller_than_sounds():
    prediction, x = LinearPrediction(16, 65536), sounds()
    prediction.learn(x)
    inside = x >= 0
    error = (prediction.errors(x) - 32768)[inside].double()
    assert error.std() < 0.05 * (x - 32768)[inside].double().std()


def test_errors_depend_on_the_past_only():
    prediction, x = LinearPrediction(4, 256), sounds(levels=256)
    prediction.learn(x)
    other = x.clone()
    other[:, 100] = (other[:, 100] + 9) % 256
    a, b = prediction.errors(x), prediction.errors(other)
    assert torch.equal(a[:, :100], b[:, :100])
    assert (a[:, 100] != b[:, 100]).all()
    assert torch.equal(a[:, 105:], b[:, 105:])


def test_silence_is_predicted_as_it_is():
    prediction = LinearPrediction(4, 256)
    x = torch.full((2, 9), 128)
    prediction.learn(x)
    assert torch.equal(prediction.errors(x), x)


def test_sounds_go_on_from_what_was_before():
    codec = Predicted(Audio(8000), 8)
    x = sounds()
    codec.prepare(x, torch.Generator())
    u = codec.encode(x)
    first = u[:, :100].clone()
    first[0, 60:] = math.inf  # a shorter beginning
    rest = torch.stack([u[0, 60:200], u[1, 100:240], u[2, 100:240], u[3, 100:240]])
    found = codec.decode_after(first, rest)
    assert torch.equal(found[0], x[0, 60:200])
    assert torch.equal(found[2], x[2, 100:240])


@pytest.mark.parametrize(("shape", "levels"), [((1, 5, 4), 256), ((3, 4, 6), 256), ((3, 1, 5), 7), ((2, 3, 1), 2)])
def test_images_come_back(shape, levels):
    x = torch.randint(levels, (5, *shape), generator=seeded()).to(torch.uint8)
    e = image_errors(x, levels)
    assert ((e >= 0) & (e < levels)).all()
    assert torch.equal(image_restored(e, levels).to(torch.uint8), x)


def test_a_ramp_is_predicted():
    """Where left + up - corner is right, nothing is left to say but the first pixel and the borders."""
    x = (10 + torch.arange(6)[:, None] + torch.arange(7)).expand(2, 3, 6, 7).to(torch.uint8)
    e = image_errors(x, 256) - 128
    assert (e[:, 0, 1:, 1:].abs() <= 1).all()
    assert (e[:, 1:] == 0).all(), "equal channels err alike"


def test_the_prediction_is_the_median_edge_detector():
    left, up, corner = (torch.tensor([[v]]) for v in (10, 20, 5))
    x = torch.zeros(1, 1, dtype=torch.int64)
    assert predicted(x, left, up, corner, 256).item() == 20  # an edge: the larger of both
    assert predicted(x, left, up, torch.tensor([[12]]), 256).item() == 18
    assert predicted(x, left, up, torch.tensor([[40]]), 256).item() == 10


def test_patches_of_errors_come_back():
    x = torch.randint(256, (3, 3, 8, 4), generator=seeded()).to(torch.uint8)
    codec = Patches(Image(8, 4, 3), 2, order="spiral", errors=True)
    assert torch.equal(codec.decode(codec.encode(x)), x)


def test_a_head_of_errors_starts_at_their_spread():
    x = (32768 + 40 * torch.randn(5000, 1, generator=seeded())).round()
    head = LevelLogistics(65536, 8, (1,), errors=True)
    head.prepare(x)
    zero = torch.zeros(1, 1, head.params)
    nats = -head.log_prob(zero, x).mean()
    entropy = math.log(40) + 0.5 * math.log(2 * math.pi * math.e)
    assert entropy < nats < entropy + 0.2
    support = torch.arange(65536.0).reshape(-1, 1)
    assert head.log_prob(zero, support).exp().sum() == pytest.approx(1.0, abs=1e-6)
    assert head.embed(x).std() < 3
