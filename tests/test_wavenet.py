"""WaveNet: the net of the paper, its gradients, its reach, and a cache that gives the same numbers step by step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pofx.core.errors import Unsupported, UsageError
from pofx.nn import wavenet
from pofx.nn.wavenet import WaveNet


def net(kernel: int = 2, width: int = 3, dtype: torch.dtype = torch.float64, local: int = 0) -> WaveNet:
    torch.manual_seed(0)
    made = WaveNet(width, layers=3, stacks=2, residual=4, skip=5, kernel=kernel, local=local, every=4).to(dtype)
    with torch.no_grad():  # outputs that no ReLU holds back, and biases that matter
        made.leave.bias.fill_(5.0)
        made.skip_bias.fill_(5.0)
        made.bias.uniform_(-1, 1)
    return made


def as_written(made: WaveNet, x: Tensor, local: Tensor | None = None) -> Tensor:
    """By convolutions and sigmoids, as the paper has it; ``local`` [N, L, numbers] is that of each step."""
    h = F.linear(x, made.enter.weight, made.enter.bias).mT
    total, c = made.skip_bias[:, None], h.shape[1]
    for l, d in enumerate(made.dilations):
        weight = made.filter[l].unflatten(0, (made.kernel, c)).permute(2, 1, 0)
        g = F.conv1d(F.pad(h, ((made.kernel - 1) * d, 0)), weight, made.bias[l], dilation=d)
        a, b = (g if local is None else g + (local @ made.local[l]).mT).chunk(2, 1)
        z = a.tanh() * 2 * (2 * b).sigmoid()
        total = total + made.skip[l].T @ z
        if l < len(made.residual):
            h = h + made.residual[l].T @ z
    return F.relu(F.linear(F.relu(total.mT), made.leave.weight, made.leave.bias))


@pytest.mark.parametrize("block", [2, 64, 2**17])
@pytest.mark.parametrize("kernel", [2, 3])
def test_outputs_and_gradients_are_those_of_the_paper(kernel: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wavenet, "BLOCK", block)
    made = net(kernel)
    for n, length in ((3, 20), (1, 40), (4, 1)):
        x = torch.randn(n, length, 3, dtype=torch.float64, requires_grad=True)
        to = torch.randn(n, length, 3, dtype=torch.float64)
        variables = [x, *made.parameters()]
        got, want = made(x), as_written(made, x)
        assert torch.allclose(got, want, atol=1e-12)
        pairs = zip(*(torch.autograd.grad((y * to).sum(), variables) for y in (got, want)), strict=True)
        assert all(torch.allclose(g, w, atol=1e-11) for g, w in pairs)
        with torch.no_grad():
            assert torch.equal(made(x), got)


@pytest.mark.parametrize("block", [2, 64, 2**17])
def test_every_few_steps_are_told_their_own(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wavenet, "BLOCK", block)
    made = net(3, local=2)
    for n, length in ((3, 20), (1, 38), (4, 1)):
        x = torch.randn(n, length, 3, dtype=torch.float64, requires_grad=True)
        local = torch.randn(n, -(-length // 4) + 1, 2, dtype=torch.float64, requires_grad=True)  # one more than needed
        variables = [x, local, *made.parameters()]
        got, want = made(x, local), as_written(made, x, local.repeat_interleave(4, 1)[:, :length])
        assert torch.allclose(got, want, atol=1e-12)
        pairs = zip(*(torch.autograd.grad(y.square().sum(), variables) for y in (got, want)), strict=True)
        assert all(torch.allclose(g, w, atol=1e-10) for g, w in pairs)
        with torch.no_grad():
            cache = made.cache(n, length, local)
            steps = torch.cat([cache.step(x[:, t])[:, None] for t in range(length)], 1)
            assert torch.allclose(steps, want, atol=1e-12)
    cache, rows = made.cache(4, 40, local := torch.randn(4, 10, 2, dtype=torch.float64)), torch.tensor([2, 0, 2])
    x = torch.randn(4, 40, 3, dtype=torch.float64)
    parts = [cache.extend(x[:, :17]), cache.extend(x[:, 17:21])]
    cache.reorder(rows)
    parts = [part[rows] for part in parts] + [cache.extend(x[rows, 21:])]
    assert torch.allclose(torch.cat(parts, 1), made(x, local)[rows], atol=1e-12)


@pytest.mark.parametrize("kernel", [2, 3])
def test_reach_is_exact_and_nothing_comes_from_later(kernel: int) -> None:
    made = net(kernel)
    assert made.reach == 1 + 2 * (kernel - 1) * 7
    length = made.reach + 3
    x = torch.randn(1, length, 3, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(made, x)[0, :, :, 0]  # [L, width, L, width]
    matters = (jacobian != 0).any(3).any(1)
    back = torch.arange(length)[:, None] - torch.arange(length)
    assert not matters[(back < 0) | (back >= made.reach)].any()
    assert matters[(back == made.reach - 1) | (back == 0)].all()


@pytest.mark.parametrize("kernel", [2, 3])
def test_steps_are_the_whole_pass(kernel: int) -> None:
    made = net(kernel, dtype=torch.float32)
    length = 3 * made.reach
    x = torch.randn(5, length, 3)
    whole = made(x)
    cache = made.cache(5, length)
    steps = torch.stack([cache.step(x[:, t]) for t in range(length)], 1)
    assert (steps - whole).abs().max() < 1e-5
    for cuts in ([length - 1, 1], [1, 4, made.reach, 9, made.reach - 1, 1], [20, 1, 1, 11, 2]):
        cache, outputs, t = made.cache(5, length), [], 0
        for k in cuts:
            outputs.append(cache.extend(x[:, t : t + k]))
            t += k
        assert (torch.cat(outputs, 1) - whole[:, :t]).abs().max() < 1e-5


def test_sequences_change_places() -> None:
    made = net()
    x = torch.randn(4, 30, 3, dtype=torch.float64)
    cache = made.cache(4, 30)
    cache.extend(x[:, :20])
    for rows in (torch.tensor([2, 0, 2, 3]), torch.tensor([3, 3, 0, 1, 2, 2]), torch.tensor([1])):
        cache.reorder(rows)
        x = x[rows]
        t = cache.t
        assert torch.allclose(cache.step(x[:, t]), made(x)[:, t], atol=1e-12)
    with pytest.raises(Unsupported, match="no more inputs than its filters reach"):
        cache.rewind(1)


def test_mixed_precision_and_sizes() -> None:
    made = net(dtype=torch.float32)
    x = torch.randn(2, 9, 3)
    with torch.autocast("cpu", torch.bfloat16):
        y = made(x)
    y.float().sum().backward()
    assert torch.allclose(y.float(), made(x), rtol=0.02, atol=0.02)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())
    with pytest.raises(UsageError, match="a kernel of 1 is impossible"):
        WaveNet(8, kernel=1)
