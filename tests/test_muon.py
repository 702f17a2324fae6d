"""Muon, schedules and accumulation: what they claim to compute."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

from pofx.core.errors import UsageError
from pofx.core.learner import Batch, GradientLearner, Recipe, learning_rate
from pofx.core.muon import Muon, orthogonal


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (8, 8)])
def test_singular_values_become_alike(shape):
    g = torch.randn(3, *shape, generator=seeded())
    g *= 10.0 ** torch.arange(-4, -1)[:, None, None]  # whatever the scale
    values = torch.linalg.svdvals(orthogonal(g))
    assert (values > 0.5).all()
    assert (values < 1.3).all()


def test_it_computes_what_torchs_own_does():
    """The slow twin works in bfloat16, matrix by matrix."""
    ours = [nn.Parameter(torch.randn(*s, generator=seeded(k))) for k, s in enumerate([(24, 16), (24, 16), (8, 32)])]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    a = Muon(ours, lr=0.01, weight_decay=0.1)
    b = torch.optim.Muon(theirs, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    start = [p.detach().clone() for p in ours]
    for step in range(5):
        for k, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            p.grad = torch.randn(p.shape, generator=seeded(100 * step + k))
            q.grad = p.grad.clone()
        a.step()
        b.step()
    for p, q, s in zip(ours, theirs, start, strict=True):
        assert (p - q).norm() < 0.03 * (p - s).norm()


def learner(recipe: Recipe, model: nn.Module) -> GradientLearner:
    def objective(batch, generator):
        noisy = batch.x + 0.1 * batch.randn(3, generator=generator)
        return {"loss": model(noisy)[:, 0].square()}

    return GradientLearner(model, recipe, objective, [model[0].weight])


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


@pytest.mark.parametrize("weighted", [False, True])
def test_parts_of_a_batch_add_up_to_the_same_step(weighted):
    x = torch.randn(13, 3, generator=seeded())
    weight = torch.rand(13, generator=seeded(1)) if weighted else None
    found = []
    for parts in (1, 4):
        with torch.random.fork_rng():
            model = net()
        steps = learner(Recipe(accumulate=parts, optimizer="muon"), model)
        terms = [steps.step(Batch(x, weight=weight, total=13, step=k), seeded(k)) for k in range(3)]
        found.append((torch.cat([p.flatten() for p in model.parameters()]), terms[-1]["loss"], terms[-1]["grad_norm"]))
    for one, several in zip(*found, strict=True):
        assert torch.allclose(one, several, atol=1e-6)


def test_muon_resumes_exactly():
    x = torch.randn(5, 3, generator=seeded())
    with torch.random.fork_rng():
        first, second = net(), net()
    a = learner(Recipe(optimizer="muon"), first)
    for k in range(3):
        a.step(Batch(x, total=5, step=k), seeded(k))
    b = learner(Recipe(optimizer="muon"), second)
    second.load_state_dict(first.state_dict())
    b.load_state_dict(copy.deepcopy(a.state_dict()))  # as from a file: no memory is shared
    for steps in (a, b):
        steps.step(Batch(x, total=5, step=3), seeded(3))
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))


def test_muon_needs_matrices():
    with torch.random.fork_rng():
        model = net()
    with pytest.raises(UsageError, match="no matrices"):
        GradientLearner(model, Recipe(optimizer="muon"), lambda batch, generator: {})


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [1, 1, 1, 1]),
        ("linear", [1, 0.75, 0.25, 0]),
        ("wsd", [1, 1, 0.5, 0]),
        ("cosine", [1, 0.853553, 0.146447, 0]),
    ],
)
def test_schedules(schedule, rates):
    recipe = Recipe(lr=1.0, schedule=schedule, warmup=0)
    found = [learning_rate(recipe, Batch(torch.empty(0), progress=p)) for p in (0.0, 0.25, 0.75, 1.0)]
    assert found == pytest.approx(rates, abs=1e-5)
    warm = dataclasses.replace(recipe, warmup=10)
    assert learning_rate(warm, Batch(torch.empty(0), step=4)) == pytest.approx(0.5)
