"""Action chunks as policies: the net along their steps, the receding horizon in a toy world, chunks of trajectories."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import pofx
from pofx.cli import main
from pofx.core.errors import EmptyData, PofxError, Unsupported, UsageError, WrongShape
from pofx.core.learner import Batch
from pofx.data.actions import action_chunks
from pofx.data.parts import Data, Part
from pofx.evaluate.pairs import share_interval
from pofx.families.act import Act, ActConfig
from pofx.families.diffusion import DiffusionPolicy, FlowMatching, Vdm
from pofx.nn.encoders import Encoded
from pofx.nn.temporal import Convolution, TemporalUNet
from pofx.paths.schedule import cosine_chain
from pofx.spaces import Image, Integer, Real, Reals, Sequence, Table, Text
from pofx.uses.policy import Policy
from pofx.uses.rollouts import environment, flat, rollout


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- the net ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("taps", "stride", "steps"), [(5, 1, 7), (3, 2, 8), (3, 2, 5)])
def test_a_convolution_is_torchs(taps: int, stride: int, steps: int) -> None:
    ours, x = Convolution(3, 4, taps, stride), torch.randn(2, steps, 3, generator=seeded(0))
    weight = ours.weight.view(4, 3, taps)
    known = F.conv1d(x.mT, weight, ours.bias, stride=stride, padding=taps // 2).mT
    torch.testing.assert_close(ours(x), known)


def random_net(*shape: int, context: int = 0) -> TemporalUNet:
    net = TemporalUNet(shape, channels=8, blocks=1, context=context)
    for p in net.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
    return net.eval()


@pytest.mark.parametrize("shape", [(16, 2), (7, 3), (1, 1), (2, 1), (13, 2)])
def test_a_field_is_shaped_as_its_chunk_and_rows_are_apart(shape: tuple[int, int]) -> None:
    net = random_net(*shape, context=3)
    x, h = torch.randn(3, *shape, generator=seeded(0)), Encoded(torch.randn(3, 3, generator=seeded(1)))
    level = torch.tensor([-2.0, 0.0, 3.0])
    y = net(x, level, h)
    assert y.shape == x.shape
    alone = torch.cat([net(x[i : i + 1], level[i : i + 1], h[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(y, alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(y, net(x, level.flip(0), h))
    assert not torch.allclose(y, net(x, level, h[torch.tensor([1, 2, 0])]))
    assert not TemporalUNet(shape)(x, level).any()  # it starts at zero


def test_the_first_step_hears_of_the_last() -> None:
    x = torch.randn(1, 16, 2, generator=seeded(0), requires_grad=True)
    random_net(16, 2)(x, torch.zeros(1))[0, 0].sum().backward()
    assert x.grad is not None
    assert bool((x.grad[0].abs().sum(1) > 0).all())


def test_the_chain_of_cosines_is_that_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    known = diffusers.DDPMScheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2").alphas_cumprod
    chain = cosine_chain(100)
    found = chain(torch.arange(1, 101, dtype=torch.float64) / 100).alpha.square()
    np.testing.assert_allclose(found.numpy(), known.double().numpy(), rtol=1e-3, atol=1e-7)


def test_before_training_a_chunks_score_is_that_of_its_noised_gaussian() -> None:
    mix = torch.randn(8, 8, generator=seeded(0), dtype=torch.float64)
    x = (torch.randn(20_000, 8, generator=seeded(1), dtype=torch.float64) @ mix).view(-1, 4, 2)
    model = FlowMatching(FlowMatching.Config(net="temporal", channels=8), Reals((4, 2)))
    model.prepare(x, None, None, seeded(2))
    scale = x.flatten(1).std(0)
    some, noise = x[:5].flatten(1) / scale, 0.5
    covariance = (x.flatten(1) / scale).T.cov() + noise**2 * torch.eye(8)
    known = -torch.linalg.solve(covariance, (some - (x.flatten(1) / scale).mean(0)).T).T / scale
    found = model.eval().given().noised_score(x[:5], noise=noise)
    torch.testing.assert_close(found, known.view(5, 4, 2), rtol=0.02, atol=0.01)


def test_what_the_net_and_the_family_refuse() -> None:
    chunk = Reals((4, 2))
    assert DiffusionPolicy.refuses(chunk, None, DiffusionPolicy.tiny(chunk)) is None
    for space in (
        Table((Integer("n", 0, 9),)),
        Image(8, 8, 1, 2),
        Text("ab", True, 4),
        Table((Real("x", nullable=True),)),
    ):
        assert "chunks" in str(DiffusionPolicy.refuses(space, None, DiffusionPolicy.Config()))
    assert "Leave net at auto" in str(Vdm.refuses(Image(8, 8, 1, 2), None, Vdm.Config(net="temporal")))


# -- act: a warm-up of beta -------------------------------------------------------------------------------------------


def test_beta_rises_over_the_warm_up() -> None:
    torch.manual_seed(0)
    options = {"latent": 2, "width": 16, "layers": 1, "n_heads": 2, "beta": 3.0}
    model = Act(ActConfig(**options, warmup=0.5), Reals((3, 2)))
    torch.nn.init.normal_(model.propose.weight)
    x = torch.randn(8, 3, 2, generator=seeded(0), dtype=torch.float64)

    def terms(progress: float) -> tuple[Tensor, Tensor]:
        found = model.objective(Batch(x, total=8, progress=progress), seeded(1))
        return found["loss"], found["kl"]

    none, kl = terms(0.0)
    assert float(kl.min()) > 0
    for progress, beta in ((0.25, 1.5), (0.5, 3.0), (1.0, 3.0)):
        torch.testing.assert_close(terms(progress)[0], none + beta * kl)


# -- chunks of trajectories -------------------------------------------------------------------------------------------


def walks() -> Data:
    """Trajectories of 3, 5 and 6 steps (two in each part), whose column "place" tells which and where."""
    step = Table((Real("place"), Real("push")))
    x = torch.full((2, 6, 2), math.inf, dtype=torch.float64)
    for i, n in enumerate((5, 3)):
        x[i, :n, 0] = 10 * i + torch.arange(n)
        x[i, :n, 1] = x[i, :n, 0] + 0.5
    part = Part(x, rows=torch.arange(2))
    other = Part(x.clone(), rows=torch.arange(2))
    return Data("walks", "memory", Sequence(step, length=6), part, other, other)


def test_training_chunks_may_stay_at_the_last_action() -> None:
    chunks = action_chunks(walks(), ["push"], 4, hold=2)
    assert chunks.train.c[:, 0].tolist() == [0, 1, 2, 3, 10, 11]  # the longest begins two before, at its own steps
    assert chunks.train.x[3, :, 0].tolist() == [3.5, 4.5, 4.5, 4.5]
    assert chunks.train.x[5, :, 0].tolist() == [11.5, 12.5, 12.5, 12.5]
    assert chunks.train.rows is not None
    assert chunks.train.rows.tolist() == [0, 0, 0, 0, 1, 1]
    assert chunks.valid.x[..., 0].tolist() == [[0.5, 1.5, 2.5, 3.5], [1.5, 2.5, 3.5, 4.5]]
    ones = chunks.train.x[..., 0] // 10  # no chunk goes on in another sequence
    assert bool((ones == ones[:, :1]).all())
    for bad in (-1, 4):
        with pytest.raises(UsageError, match="holds its last action"):
            action_chunks(walks(), ["push"], 4, hold=bad)


def test_chunks_are_reals_or_sequences_of_the_same_numbers() -> None:
    reals, steps = (action_chunks(walks(), ["push"], 3, kind=kind) for kind in ("reals", "sequence"))
    assert reals.space == Reals((3, 1))
    assert steps.space == Sequence(Table((Real("push"),)), length=3)
    for name in ("train", "valid", "test"):
        torch.testing.assert_close(getattr(reals, name).x, getattr(steps, name).x)
        torch.testing.assert_close(getattr(reals, name).c, getattr(steps, name).c)
    with pytest.raises(EmptyData, match="its longest has 5"):
        action_chunks(walks(), ["push"], 6)


# -- a policy ---------------------------------------------------------------------------------------------------------


class Told:
    """In the place of a model: chunks [N, k, 1] whose actions say which draw, episode and step they are of."""

    name, device = "told", torch.device("cpu")

    def __init__(self, k: int = 4, width: int = 3, lengths: list[list[int]] | None = None) -> None:
        self.context = Table(tuple(Real(f"c{i}") for i in range(width)))
        self.space = Reals((k, 1)) if lengths is None else Sequence(Table((Real("a"),)), length=k)
        self.seen, self.k, self.short = list[Tensor](), k, lengths

    def given(self, c: Tensor) -> SimpleNamespace:
        self.seen.append(c)
        return SimpleNamespace(sample=self.sample)

    def sample(self, n: int, generator: torch.Generator, sampler: object) -> Tensor:
        rows, draw = torch.arange(len(self.seen[-1])), len(self.seen)
        x = 100.0 * draw + 10 * rows[:, None] + torch.arange(self.k)
        if self.short is not None:
            x = x.masked_fill(torch.arange(self.k) >= torch.tensor(self.short.pop(0))[:, None], math.inf)
        return x[None, ..., None].double()


def test_a_chunk_is_played_up_to_the_horizon_and_then_drawn_given_the_last_observations() -> None:
    model = Told()
    policy = Policy(model, horizon=2)  # type: ignore[arg-type]
    policy.reset(episodes=2)
    played = [policy.act([[t], [10 + t]])[:, 0].tolist() for t in range(5)]
    assert played == [[100, 110], [101, 111], [200, 210], [201, 211], [300, 310]]
    first, second, third = (c.tolist() for c in model.seen)
    assert first == [[0, 0, 0], [10, 10, 10]]  # it stood before its beginning as it began
    assert second == [[2, 1, 0], [12, 11, 10]]  # the latest first
    assert third == [[4, 3, 2], [14, 13, 12]]
    policy.reset(episodes=1)
    policy.act([[7.0]])
    assert model.seen[-1].tolist() == [[7, 7, 7]]


def test_a_sequence_that_ends_early_stays_and_an_empty_one_is_drawn_again() -> None:
    model = Told(lengths=[[4, 2, 0], [0, 4, 1]])
    policy = Policy(model, horizon=3)  # type: ignore[arg-type]
    policy.reset(episodes=3)
    model.seen.append(torch.zeros(3, 3))  # sample() counts draws by what was seen
    played = torch.stack([policy.act([[0.0]] * 3)[:, 0] for _ in range(3)], 1)
    assert played[:2].tolist() == [[200, 201, 202], [210, 211, 211]]
    assert played[2].tolist() == [220, 220, 220]
    empty = Policy(Told(lengths=[[0]] * 1000), horizon=3)  # type: ignore[arg-type]
    with pytest.raises(Unsupported, match="without any action"):
        empty.act([[0.0]])


def test_what_a_policy_refuses() -> None:
    model = Told()
    for horizon in (0, 5):
        with pytest.raises(UsageError, match="horizon"):
            Policy(model, horizon=horizon)  # type: ignore[arg-type]
    policy = Policy(model, horizon=1)  # type: ignore[arg-type]
    for bad in (torch.zeros(2, 1), torch.zeros(1, 2), torch.zeros(3)):
        with pytest.raises(WrongShape):
            policy.act(bad)
    model.context = None  # type: ignore[assignment]
    with pytest.raises(Unsupported, match="rows of numbers"):
        Policy(model)  # type: ignore[arg-type]
    model.space = Text("ab", True, 4)  # type: ignore[assignment]
    with pytest.raises(Unsupported, match="no chunks"):
        Policy(model)  # type: ignore[arg-type]


# -- rollouts ---------------------------------------------------------------------------------------------------------


class Line:
    """A place on a line, moved to where the action says; the task is to come within 0.1 of 0, in at most 8 steps."""

    action_space = SimpleNamespace(shape=(1,), dtype=np.float32, low=np.array([-9.0]), high=np.array([9.0]))

    def reset(self, seed: int) -> tuple[dict[str, np.ndarray], dict[str, bool]]:
        self.place, self.left = float(seed), 8
        return self._seen(), {"is_success": False}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, object]]:
        self.place, self.left = float(action[0]), self.left - 1
        done = abs(self.place) < 0.1
        told = {"is_success": done, "nearness": -abs(self.place)}
        return self._seen(), 1.0, done, self.left == 0, told

    def _seen(self) -> dict[str, np.ndarray]:
        return {"place": np.array([[self.place]]), "one": np.array([1.0])}

    def close(self) -> None: ...


def halved(n: int, seed: int) -> Part:
    """The expert goes half the way to 0 in each step: its next four places are linear in where it is."""
    place = 10 * torch.rand(n, 1, generator=seeded(seed), dtype=torch.float64)
    x = place[:, None] * 0.5 ** torch.arange(1, 5, dtype=torch.float64)[:, None]
    x = x + 1e-3 * torch.randn(n, 4, 1, generator=seeded(seed + 1), dtype=torch.float64)
    return Part(x, torch.cat([place, torch.ones(n, 1)], 1))


@pytest.fixture(scope="module")
def expert() -> pofx.core.model.Model:  # type: ignore[name-defined]
    parts = halved(400, 0), halved(50, 2), halved(50, 4)
    seen = Table((Real("place"), Real("one")))
    data = Data("halved", "memory", Reals((4, 1)), *parts, seen)
    return pofx.fit(data, "gaussian", steps=1, seed=0).model


@pytest.mark.parametrize("horizon", [1, 3, 4])
def test_a_policy_reproduces_the_expert_in_a_toy_world(expert: object, horizon: int) -> None:
    places: dict[tuple[int, int], float] = {}

    def at_step(i: int, step: int, each: Line, info: object) -> None:
        places[i, step] = each.place

    policy = Policy(expert, horizon)  # type: ignore[arg-type]
    found = rollout(Line, policy, 4, seed=2, watch=("nearness",), at_step=at_step)
    for (i, step), place in places.items():
        assert abs(place - (2 + i) * 0.5**step) < 0.02
    expected = [next(t for t in range(1, 9) if (2 + i) * 0.5**t < 0.1) for i in range(4)]
    assert found.steps.tolist() == expected
    assert found.total.tolist() == expected
    assert bool(found.success.all())
    nearest = [-(2 + i) * 0.5**t for i, t in enumerate(expected)]
    np.testing.assert_allclose(found.best["nearness"].numpy(), nearest, atol=0.02)
    again = rollout(Line, policy, 4, seed=2, watch=("nearness",))
    assert again.to_json() == found.to_json()


def test_actions_stay_within_their_limits(expert: object) -> None:
    seen = []
    rollout(Line, Policy(expert, 1), 1, seed=40, at_step=lambda i, step, each, info: seen.append(each.place))  # type: ignore[arg-type]
    assert seen[:2] == [40.0, 9.0]


def test_what_rollouts_refuse(expert: object) -> None:
    policy = Policy(expert, 1)  # type: ignore[arg-type]
    with pytest.raises(EmptyData):
        rollout(Line, policy, 0)
    with pytest.raises(UsageError, match="tells no 'won'"):
        rollout(Line, policy, 1, success="won")
    with pytest.raises(UsageError, match="Did you mean nearness"):
        rollout(Line, policy, 1, watch=("nearnes",))
    two = type("Two", (Line,), {"action_space": SimpleNamespace(shape=(2,), dtype=np.float32)})
    with pytest.raises(WrongShape, match="An action is 2 numbers; in the chunks of this gaussian it is 1"):
        rollout(two, policy, 1)
    some = type("Some", (Line,), {"action_space": SimpleNamespace(n=3, shape=(), dtype=np.int64)})
    with pytest.raises(WrongShape, match="no vector of numbers"):
        rollout(some, policy, 1)
    silent = type("Silent", (Line,), {"step": lambda self, action: (self._seen(), 1.0, True, False, {})})
    with pytest.raises(UsageError, match="tells no 'is_success'.*It tells nothing beside rewards"):
        rollout(silent, policy, 1)
    np.testing.assert_array_equal(flat({"a": [[1, 2]], "b": 3.0}), [1, 2, 3])


def test_an_interval_holds_its_share_of_jeffreys_posterior() -> None:
    share = np.linspace(0, 1, 400_001)[1:-1]
    for hits, of in ((45, 100), (1, 7), (99, 100)):
        density = share ** (hits - 0.5) * (1 - share) ** (of - hits - 0.5)
        mass = np.concatenate([[0], np.cumsum(density)]) / density.sum()
        low, high = share_interval(hits, of, 0.9)
        np.testing.assert_allclose(np.interp([low, high], [0, *share], mass), [0.05, 0.95], atol=2e-3)
    assert share_interval(0, 10)[0] == 0
    assert share_interval(10, 10)[1] == 1
    for bad in ((2, 1, 0.9), (0, 0, 0.9), (1, 2, 1.0)):
        with pytest.raises(UsageError):
            share_interval(*bad)


def test_an_environment_of_no_name_is_named() -> None:
    pytest.importorskip("gymnasium", reason="the extra pofx[pusht] is not installed")
    with pytest.raises(PofxError, match="No environment is named"):
        environment("CartPoll-v1")
    assert environment("CartPole-v1")().reset(seed=0)[0].shape == (4,)
    with pytest.raises(UsageError, match="CartPole-v1 cannot be made: .*wide"):
        environment("CartPole-v1", wide=3)()


def still() -> Data:
    """Actions about the middle of Push-T's table, whatever its state."""
    x = 256 + torch.randn(64, 4, 2, generator=seeded(0), dtype=torch.float64)
    part = Part(x, torch.rand(64, 5, generator=seeded(1), dtype=torch.float64), rows=torch.arange(64))
    return Data("still", "memory", Reals((4, 2)), part, part, part, Table(tuple(Real(f"s{k}") for k in range(5))))


def test_success_in_push_t_is_a_coverage_of_95_percent() -> None:
    pytest.importorskip("gym_pusht", reason="the extra pofx[pusht] is not installed")
    policy = Policy(pofx.fit(still(), "gaussian", steps=1, seed=0).model, 4)
    covers = []

    def nearly_there(i: int, step: int, each: object, info: dict[str, object]) -> None:
        inner = each.unwrapped  # type: ignore[attr-defined]
        if step == 0:  # the first block lies on its goal, far from where the agent goes
            inner.agent.position = (60.0, 60.0)
            inner.block.angle, inner.block.position = (math.pi / 4, (256.0, 256.0)) if i == 0 else (0.0, (400.0, 100.0))
        elif i == 0:
            covers.append(info["coverage"])

    make = environment("gym_pusht/PushT-v0", max_episode_steps=3)
    found = rollout(make, policy, 2, 7, watch=("coverage",), at_step=nearly_there)
    assert found.success.tolist() == [True, False]
    assert found.steps.tolist() == [1, 3]
    assert covers[0] > 0.95
    assert float(found.best["coverage"][0]) == covers[0]


def test_the_command_tells_what_became_of_episodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gym_pusht", reason="the extra pofx[pusht] is not installed")
    data, run = still(), str(tmp_path / "run")
    pofx.fit(data, "gaussian", steps=1, seed=0, out=run)
    argv = ["rollout", run, "gym_pusht/PushT-v0", "--episodes", "2", "--horizon", "4", "--seed", "3"]
    assert main([*argv, "--watch", "coverage", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["episodes"], told["success"], told["steps"], told["success_low"]) == (2, 0.0, 300.0, 0.0)
    assert 0 <= told["coverage"] < 0.95
    assert told["success_high"] == pytest.approx(share_interval(0, 2)[1])
    assert main([*argv[:2], "gym_pusht/PushT-v1", "--horizon", "4"]) == 2
    assert "Did you mean" in capsys.readouterr().err
