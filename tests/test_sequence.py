"""Nets over sequences, windows, steps and the families over them: identities, each against a slower way to the same."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pofx.codecs import windows as windows_module
from pofx.codecs.steps import Subwords
from pofx.codecs.windows import Whole, Windows, spans
from pofx.core.errors import Unsupported, UsageError
from pofx.core.learner import Batch
from pofx.core.likelihood import Exact, LowerBound
from pofx.core.requests import StepByStep, Windowed
from pofx.data import chains
from pofx.data.parts import Data, Part
from pofx.data.ragged import RaggedRows
from pofx.families.continuing import Continuing
from pofx.families.sequence import Gpt, GptConfig, Rnn, RnnConfig
from pofx.nn import transformer
from pofx.nn.emission import StepHead, TokenHead
from pofx.nn.recurrent import Lstm
from pofx.nn.sequence import SequenceNet
from pofx.nn.sites import heads_for
from pofx.nn.transformer import Shape, Transformer, turn
from pofx.spaces import Audio, Category, Integer, Label, Real, Sequence, Table, Text
from pofx.testing.oracles import strings
from pofx.train.fit import fit
from pofx.train.run import read_run

SHAPES = {
    "default": Shape(16, 2, 2, block=12),
    "learned positions": Shape(16, 2, 2, block=12, positions="learned"),
    "layer norm and bias": Shape(16, 2, 2, block=12, norm="layer", bias="all"),
    "bias of queries": Shape(16, 2, 2, block=12, bias="qkv", qk_norm=False),
    "gelu": Shape(16, 2, 2, block=12, mlp="gelu", qk_norm=False, positions="learned", norm="layer", bias="all"),
    "swiglu, grouped heads": Shape(16, 2, 4, n_kv_heads=2, block=12, mlp="swiglu", qk_norm=False),
    "one head of keys": Shape(16, 2, 4, n_kv_heads=1, block=12),
    "wide heads": Shape(16, 2, 2, head_dim=6, block=12),
    "sliding window": Shape(16, 2, 2, block=12, window=4),
    "window of one": Shape(16, 2, 2, block=12, window=1),
    "window and groups": Shape(16, 2, 4, n_kv_heads=2, block=12, window=5, mlp="swiglu"),
}


@pytest.fixture(autouse=True)
def _same_weights() -> None:
    torch.manual_seed(0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shaken(module: torch.nn.Module, size: float = 0.3) -> torch.nn.Module:
    """Every weight moved: maps that start at zero would hide what they are given."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(size * torch.randn(p.shape, generator=seeded(p.numel()), dtype=p.dtype))
    return module.eval()


def nets() -> dict[str, SequenceNet]:
    made: dict[str, SequenceNet] = {name: Transformer(shape) for name, shape in SHAPES.items()}
    made |= {"lstm": Lstm(16, 1), "two lstms": Lstm(16, 2)}
    return made


NETS = [*SHAPES, "lstm", "two lstms"]


# ------------------------------------------------------------------------------------------------- nets


@pytest.mark.parametrize(("n", "small"), [(3, 0), (transformer.MANY, transformer.SMALL), (transformer.MANY, 0)])
@pytest.mark.parametrize("name", NETS)
def test_steps_and_stretches_give_the_whole_pass(
    name: str, n: int, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformer, "SMALL", small)  # each number of rows and size of a matrix has its own product
    net = shaken(nets()[name].double())
    x = torch.randn(n, 12, 16, generator=seeded(), dtype=torch.float64)
    with torch.no_grad():
        whole = net(x)
        for cuts in ([12], [1] * 12, [5, 1, 4, 1, 1], [1, 11], [2, 2, 8]):
            cache, out, place = net.cache(n, 12), [], 0
            for size in cuts:
                piece = x[:, place : place + size]
                out.append(cache.step(piece[:, 0])[:, None] if size == 1 and place % 2 else cache.extend(piece))
                place += size
            torch.testing.assert_close(torch.cat(out, 1), whole, atol=1e-9, rtol=1e-9)
        rows = torch.tensor([2, 2, 0, 1])
        cache = net.cache(n, 12)
        cache.extend(x[:, :7])
        cache.reorder(rows)
        torch.testing.assert_close(cache.extend(x[rows, 7:]), whole[rows, 7:], atol=1e-9, rtol=1e-9)
        if isinstance(net, Transformer):
            cache = net.cache(n, 12)
            cache.extend(x.flip(1)[:, :9])
            cache.rewind(9)
            cache.extend(x[:, :8])
            cache.rewind(3)
            torch.testing.assert_close(cache.extend(x[:, 5:]), whole[:, 5:], atol=1e-9, rtol=1e-9)
            with pytest.raises(UsageError, match=r"13 inputs are more than the 12"):
                cache.extend(x[:, :1])
            with pytest.raises(UsageError, match=r"13 inputs are longer than the block of 12"):
                net(torch.cat([x, x[:, :1]], 1))


@pytest.mark.parametrize("name", NETS)
def test_jacobians_are_causal(name: str) -> None:
    net = shaken(nets()[name].double())
    x = torch.randn(1, 8, 16, generator=seeded(), dtype=torch.float64)
    slopes = torch.autograd.functional.jacobian(lambda v: net(v).sum(-1)[0], x)[:, 0].norm(dim=-1)  # [output, input]
    later = torch.ones(8, 8, dtype=torch.bool).triu(1)
    assert (slopes[later] == 0).all()
    assert (slopes.diagonal() > 0).all()
    reach = 1 + 2 * (SHAPES[name].window - 1) if name in SHAPES and SHAPES[name].window else 8  # of two layers
    far = torch.ones(8, 8, dtype=torch.bool).tril(-reach)
    assert (slopes[far] == 0).all()
    assert (slopes[~far & ~later] > 0).all()


def test_rotary_positions_are_relative() -> None:
    """Queries and keys that move by the same number of places score the same."""
    net = Transformer(Shape(16, 1, 1, block=32))
    assert net.rotation is not None
    q, k = torch.randn(2, 1, 1, 1, 16, generator=seeded())
    scores = [(turn(q, net.rotation[:, i + 5 : i + 6]) * turn(k, net.rotation[:, i : i + 1])).sum() for i in range(26)]
    torch.testing.assert_close(torch.stack(scores), scores[0].expand(26), atol=1e-4, rtol=1e-4)


def test_impossible_shapes_are_named() -> None:
    for options, words in (
        ({"width": 10, "n_heads": 3}, "not shared evenly"),
        ({"n_heads": 4, "n_kv_heads": 3}, "cannot share 3"),
        ({"width": 12, "n_heads": 4}, "even width"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"layers": 0}, "layers is 0"),
    ):
        with pytest.raises(UsageError, match=words):
            Shape(**options)


# --------------------------------------------------------------------------------------------- emissions


@pytest.mark.parametrize("has_eos", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_symbols_sum_to_one(has_eos: bool, tied: bool) -> None:
    emission = TokenHead(5, 8, has_eos=has_eos, tied=tied)
    emission.prepare(torch.tensor([0, 0, 0, 2, 4]), ends=2 if has_eos else 0)
    shaken(emission)
    y = torch.randn(6, 1, 8, generator=seeded())
    p = torch.stack([emission.log_prob(y, torch.full((6, 1), k))[:, 0] for k in [0, 1, 2, 3, 4]]).exp().sum(0)
    end = emission.log_prob(y, torch.full((6, 1), -1))[:, 0].exp() if has_eos else 0.0
    torch.testing.assert_close(p + end, torch.ones(6))
    drawn = torch.stack([emission.sample(y[:, 0], seeded(k)) for k in range(200)])
    assert ((drawn == -1).any() == has_eos).item()
    assert drawn.max() < 5


@pytest.mark.parametrize("has_eos", [True, False])
def test_sites_sum_to_one(has_eos: bool) -> None:
    space = Table((Category("kind", ("a", "b", "c")), Integer("count", 0, 2), Category("last", ("x", "y"))))
    seen = torch.tensor([[0.0, 1, 0], [1, 2, 0], [2, 0, 1], [0, 0, 1]], dtype=torch.float64)
    emission = StepHead(heads_for(space, components=2), 8, hidden=16, has_eos=has_eos)
    emission.prepare(seen, ends=1 if has_eos else 0)
    shaken(emission, 0.1)
    every = torch.tensor([[a, b, c] for a in range(3) for b in range(-60, 63) for c in range(2)], dtype=torch.float64)
    y = torch.randn(1, 1, 8, generator=seeded())
    total = emission.log_prob(y.expand(len(every), 1, 8), every[:, None]).double().exp().sum()
    if has_eos:
        total = total + emission.log_prob(y, torch.full((1, 1, 3), math.inf, dtype=torch.float64)).exp().sum()
    assert abs(total.item() - 1) < 1e-4
    drawn = emission.sample(y[0].expand(500, 8), seeded())
    assert bool(drawn.isinf().any()) == has_eos
    assert emission.filled(drawn[None]).sum() == drawn[:, 0].isinf().sum()
    space.check(drawn[~drawn[:, 0].isinf()])


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_symbols_and_categories_at_a_temperature_are_as_often_as_the_power_says(temperature: float) -> None:
    """p ** (1 / temperature), of a symbol, and of each category given those before it in its step."""
    n, y = 40_000, torch.randn(1, 8, generator=seeded())
    emission = TokenHead(4, 8, has_eos=False)
    shaken(emission)
    p = torch.cat([emission.log_prob(y[None], torch.full((1, 1), k)) for k in range(4)]).exp()[:, 0]
    drawn = emission.sample(y.expand(n, 8), seeded(1), temperature)
    want = p ** (1 / temperature) / (p ** (1 / temperature)).sum()
    assert (torch.bincount(drawn, minlength=4) / n - want).abs().max() < 0.015
    table = Table((Category("a", ("x", "y", "z")), Category("b", ("x", "y"))))
    steps = StepHead(heads_for(table), 8, hidden=16, has_eos=False)
    steps.prepare(torch.tensor([[0.0, 0], [1, 1], [2, 0], [0, 0]], dtype=torch.float64), ends=0)
    shaken(steps, 0.3)
    every = torch.tensor([[a, b] for a in range(3) for b in range(2)], dtype=torch.float64)
    joint = steps.log_prob(y.expand(6, 1, 8), every[:, None]).double().exp().view(3, 2)
    first, second = joint.sum(1) ** (1 / temperature), (joint / joint.sum(1, keepdim=True)) ** (1 / temperature)
    want = (first / first.sum())[:, None] * second / second.sum(1, keepdim=True)
    rows = steps.sample(y.expand(n, 8), seeded(2), temperature).long()
    assert (torch.bincount(rows[:, 0] * 2 + rows[:, 1], minlength=6).view(3, 2) / n - want).abs().max() < 0.015


def test_numbers_have_no_temperature() -> None:
    steps = StepHead(heads_for(Table((Real("a"), Real("b")))), 8, hidden=16)
    with pytest.raises(Unsupported, match="temperature is of categories"):
        steps.sample(torch.zeros(2, 8), seeded(), 0.5)


# ----------------------------------------------------------------------------------------------- windows


def test_windows_score_each_target_once_and_shorter_strides_see_more() -> None:
    for block, targets in itertools.product((1, 2, 5, 8), (1, 4, 5, 8, 9, 23)):
        seen: dict[int, list[int]] = {}
        for stride in range(1, block + 1):
            context = {}
            for start, first, last in spans(targets, block, stride):
                assert 0 <= start < first <= last
                assert last - start <= block
                for t in range(first, last + 1):
                    assert t not in context
                    context[t] = t - start
            assert sorted(context) == list(range(1, targets + 1))
            assert all(context[t] == t for t in range(1, min(block, targets) + 1))
            assert all(context[t] > block - stride for t in range(block + 1, targets + 1))
            seen[stride] = [context[t] for t in sorted(context)]
        for shorter, longer in itertools.pairwise(range(1, block + 1)):
            assert sum(seen[shorter]) >= sum(seen[longer])
            assert min(seen[shorter][block:], default=1) >= min(seen[longer][block:], default=1)


@pytest.mark.parametrize(("block", "in_memory"), [(1, 2**20), (3, 0), (8, 50), (50, 2**20)])
def test_windows_cover_every_target_in_every_epoch(block: int, in_memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows_module, "IN_MEMORY", in_memory)  # bytes, two a step
    sizes, place = [1, 0, 7, 8, 9, 0, 0, 30, 2, 0], 0
    rows = []
    for size in sizes:
        rows.append(torch.arange(place, place + size))
        place += size
    stretches = (row.split(5) if len(row) else (row,) for row in rows)
    windows = Windows(stretches, torch.arange(10, 10 + len(sizes)), -1, -2, torch.int16, block)
    assert isinstance(windows.steps, np.memmap) == (in_memory < 2 * len(windows.steps))
    owner = torch.repeat_interleave(torch.arange(10, 10 + len(sizes)), torch.tensor(sizes))
    for epoch in range(block + 2):
        windows.set_epoch(epoch)
        index = torch.arange(len(windows))
        pieces = windows[index]
        assert pieces.shape == (len(windows), block + 1)
        targets = pieces[:, 1:]
        assert set(targets[targets >= 0].tolist()) == set(range(place))
        ends = (targets == -1) & (pieces[:, :-1] >= 0)
        last = pieces[:, :-1][ends]
        assert set(last.tolist()) == {sum(sizes[: k + 1]) - 1 for k in range(len(sizes))}
        start, beyond = windows.start(index), pieces == -2
        assert torch.equal(beyond, start[:, None] + torch.arange(block + 1) > place + len(sizes))
        empty = (start[:, None] + torch.arange(block))[(targets == -1) & (pieces[:, :-1] == -1)]
        assert set(empty.tolist()) == {sum(sizes[:k]) + k for k, size in enumerate(sizes) if not size}
        for piece, who in zip(pieces, windows.owner(index).tolist(), strict=True):
            inside = piece[piece >= 0]
            if len(inside):
                assert owner[inside[0]] == who or piece[0] == -1
            if piece[0] >= 0:
                assert owner[piece[0]] == who
            elif len(inside) and piece[1] >= 0:
                assert owner[piece[1]] == who


@pytest.mark.parametrize("vocabulary", [0, 300])
def test_windows_over_excerpts_are_those_of_the_text(vocabulary: int) -> None:
    text = np.random.default_rng(0).integers(97, 107, 3000).astype(np.uint8)
    edges = np.array([0, 7, 7, 500, 1300, 1301, 3000])
    every = RaggedRows(text, edges[:-1], edges[1:], -1, torch.int64)
    rows = every.take(torch.tensor([0, 1, 2, 4, 5]))  # one is left out
    model = Gpt(GptConfig(16, 1, 2, block=32, vocabulary=vocabulary), Text(has_eos=False, length=2000))
    model.prepare(rows, None, None, seeded())
    steps = torch.from_numpy(np.array(model.training_set(rows).steps)).long()  # type: ignore[attr-defined]
    for part, at in ((text[:500], 0), (text[1300:], 1)):
        whole = model.codec.encode(torch.from_numpy(part.astype(np.int64))[None])[0]
        begins = (steps == -1).nonzero()[at, 0]
        assert torch.equal(steps[begins + 1 : begins + 1 + len(whole)], whole)


def test_whole_pieces() -> None:
    x = torch.tensor([[3, 4, -1], [5, -1, -1], [6, 7, 8], [-1, -1, -1]])
    pieces = Whole(x, lambda rows: rows, -1, -2, (x >= 0).sum(1))
    assert pieces[torch.tensor([1, 2, 3])].tolist() == [[-1, 5, -1, -2, -2], [-1, 6, 7, 8, -1], [-1, -1, -2, -2, -2]]
    assert len(pieces) == 4


def test_runs_are_rows_that_go_on() -> None:
    starts, ends = np.array([0, 3, 7, 12, 15]), np.array([3, 7, 10, 15, 20])
    rows = RaggedRows(np.arange(20), starts, ends, -1, torch.int64)
    runs, first = rows.runs()
    assert first.tolist() == [0, 3]
    assert runs[:1].tolist() == [list(range(10))]
    assert runs[torch.tensor([1])].tolist() == [list(range(12, 20))]
    shuffled, first = rows.take(torch.tensor([1, 0, 2])).runs()
    assert first.tolist() == [0, 1, 2]
    assert shuffled.lengths.tolist() == [4, 3, 3]


# ---------------------------------------------------------------------------------------------- families


def gpt(space: Text | Audio | Sequence, context: Label | None = None, **options: object) -> Gpt:
    config = GptConfig(**({"width": 16, "layers": 2, "n_heads": 2, "block": 8, "inner_width": 16} | options))  # type: ignore[arg-type]
    model = shaken(Gpt(config, space, context))
    assert isinstance(model, Gpt)
    return model


def rnn(space: Text | Audio | Sequence, context: Label | None = None) -> Rnn:
    model = shaken(Rnn(RnnConfig(width=16, layers=2, block=8, inner_width=16), space, context))
    assert isinstance(model, Rnn)
    return model


LETTERS = Text("abc", True, 7)
ROWS = Sequence(Table((Category("kind", ("a", "b")), Real("size"))), True, 7)


def some_rows(space: Text | Audio | Sequence, n: int, longest: int, shortest: int = 1) -> Tensor:
    """Rows of random lengths, the first as long as it goes."""
    sizes = torch.randint(shortest, longest + 1, (n,), generator=seeded(4))
    sizes[0] = longest
    if isinstance(space, Sequence):
        kind = torch.randint(0, 2, (n, longest, 1), generator=seeded(5)).double()
        x = torch.cat([kind, torch.randn(n, longest, 1, generator=seeded(6), dtype=torch.float64)], -1)
    else:
        x = torch.randint(0, 3, (n, longest), generator=seeded(5))
    beyond = torch.arange(longest) >= sizes[:, None]
    return x.masked_fill(beyond.view(n, longest, *[1] * (x.ndim - 2)), space.fill)


@pytest.mark.parametrize("space", [LETTERS, ROWS, Audio(10, 3, "linear", True, 7)], ids=["text", "rows", "sound"])
@pytest.mark.parametrize("make", [gpt, rnn])
def test_the_loss_is_the_likelihood(make: type, space: Text) -> None:
    """Of whole data: minus log p over the number by which all losses are divided, with every mask right."""
    model, x = make(space), some_rows(space, 20, 7, shortest=0)
    assert (space.lengths(x) == 0).any()
    training_set = model.training_set(x)
    assert isinstance(training_set, Whole)
    loss = loss_of(model, training_set[torch.arange(20)])
    lik = model.log_prob(x)
    torch.testing.assert_close(loss * model.steps, -lik.nats.float(), atol=1e-4, rtol=1e-4)


def loss_of(model: Continuing, pieces: Tensor, c: Tensor | None = None) -> Tensor:
    """The objective's term of each piece [B]."""
    learner = model.learner(model.recipe(model.space))
    return learner.objective(Batch(pieces, c, None, 0, len(pieces), 0.0, 0), seeded())["loss"]  # type: ignore[attr-defined]


def test_the_loss_of_windows_is_the_likelihood_of_what_they_hold() -> None:
    space = Text("abc", True, 30)
    model, x = rnn(space), some_rows(space, 1, 30)
    training_set = model.training_set(x)
    assert isinstance(training_set, Windows)
    first = loss_of(model, training_set[torch.tensor([0])]) * model.steps
    torch.testing.assert_close(first, -model.given().log_probs(x)[:, :8].sum(1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("block", [3, 4], ids=["windows", "whole"])
def test_empty_texts_are_as_likely_as_they_are_frequent(block: int) -> None:
    x = torch.full((100, 3), -1)
    x[torch.randperm(100, generator=seeded())[30:], 0] = 0
    part = Part(x)
    data = Data("as", "memory", Text("a", True, 3), part, part, part)
    options = {"width": 16, "layers": 1, "n_heads": 2, "block": block}
    model = fit(data, "gpt", steps=60, options=options, recipe={"batch": 100}).model
    p = model.log_prob(torch.tensor([[0] * k + [-1] * (3 - k) for k in range(4)])).nats.exp()
    assert abs(p[0].item() - 0.3) < 0.03
    assert 0.97 < p.sum().item() < 1 + 1e-6


def test_a_window_is_judged_by_its_own_datum_where_there_is_a_context() -> None:
    space, context = Text("abc", False, 4), Label(("x", "y"))
    x = torch.tensor([[0, 1, 2, 0], [2, 2, 1, 1]])
    model = gpt(space, context)
    with torch.no_grad():
        model.given_in.weight.normal_(generator=seeded())  # type: ignore[union-attr]
    training_set = model.training_set(x)
    pieces, owner = training_set[torch.arange(2)], training_set.owner(torch.arange(2))  # type: ignore[attr-defined]
    assert pieces[0].tolist() == [-1, 0, 1, 2, 0, -1, 2, 2, 1]
    loss = loss_of(model, pieces, owner) * model.steps
    alone = -model.given(owner).log_prob(x).nats.float()  # type: ignore[union-attr]
    torch.testing.assert_close(loss, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("space", [Text("abc", False, 40), Sequence(ROWS.step, False, 40)], ids=["text", "rows"])
@pytest.mark.parametrize("options", [{}, {"window": 3}, {"positions": "learned", "block": 7}, {"block": 1}])
def test_beyond_the_block_samples_are_drawn_as_they_are_scored(space: Text, options: dict[str, object]) -> None:
    model, x = gpt(space, **options), some_rows(space, 5, 40, 40)
    scored = model.given().log_probs(x).detach()[:, :40]
    for first in {1, min(5, model.config.block)}:
        reader = model.reader(5, None, 41, model.stride)
        line = torch.cat([model.emission.beginning(5).to(x.dtype), x], 1)
        with torch.no_grad():
            y, got = reader.read(line[:, :first])[:, -1], []
            for t in range(first, 41):
                got.append(model.emission.log_prob(y[:, None], line[:, t : t + 1])[:, 0])
                y = reader.read(line[:, t : t + 1])[:, -1]
        torch.testing.assert_close(torch.stack(got, 1), scored[:, first - 1 :], atol=1e-4, rtol=1e-4)
    drawn = model.sample(5, generator=seeded())
    assert drawn.shape == x.shape
    assert drawn.dtype == space.dtype


@pytest.mark.parametrize("length", [1, 2, 5])
def test_excerpts_shorter_than_half_a_block(length: int) -> None:
    model = gpt(Text("ab", False, length), block=64)
    assert model.sample(3).shape == (3, length)
    assert model.sample(3, sampler=StepByStep(length=9)).shape == (3, 9)


def test_any_stride_gives_probabilities_and_more_context_no_worse_ones() -> None:
    source = chains.levels(4, 30)
    space = source.space
    model = gpt(space, block=6)
    x = source.sample(3, seeded())
    scores = {}
    for stride in (1, 2, 3, 6):
        window = Windowed(stride)
        each = model.given().log_probs(x, request=window)
        scores[stride] = each[:, 6:].sum().item()
        torch.testing.assert_close(each[:, :6], model.given().log_probs(x)[:, :6], atol=1e-5, rtol=1e-5)
        for k in (0, 5, 6, 7, 13):
            begun = x[:1, :k].clamp(min=0).expand(4, k)
            nexts = model.given().log_probs(torch.cat([begun, torch.arange(4)[:, None]], 1), request=window)[:, k]
            end = model.given().log_probs(begun[:1], request=window)[0, k]
            assert abs((nexts.exp().sum() + end.exp()).item() - 1) < 1e-5
    assert len({round(s, 4) for s in scores.values()}) == 4
    with pytest.raises(UsageError, match=r"stride of 7 is longer than the block of 6"):
        model.log_prob(x, request=Windowed(stride=7))
    with pytest.raises(UsageError, match=r"does not answer Windowed"):
        rnn(space).log_prob(x, request=Windowed(stride=2))


@pytest.mark.parametrize("make", [gpt, rnn])
def test_empty_data_and_batches(make: type) -> None:
    model = make(LETTERS)
    nothing = LETTERS.parse(["", ""])
    assert torch.equal(model.log_prob(nothing).nats, model.given().log_probs(nothing)[:, 0].double())
    assert model.given(before=nothing).sample(3).shape[:2] == (3, 2)
    padded = torch.full((2, 3), -1)
    torch.testing.assert_close(model.log_prob(padded).nats, model.log_prob(nothing).nats, atol=1e-5, rtol=1e-5)


def test_log_probs_have_one_width_over_all_passes() -> None:
    model = gpt(LETTERS)
    x = torch.full((model.rows_per_pass() + 5, 7), 1)
    x[: model.rows_per_pass(), 2:] = -1
    each = model.given().log_probs(x)
    assert each.shape == (len(x), 8)
    torch.testing.assert_close(each.double().sum(1), model.log_prob(x).nats, atol=1e-5, rtol=1e-5)


def test_beginnings_longer_than_the_context_are_named() -> None:
    model = gpt(LETTERS)
    before = torch.zeros(1, 9, dtype=torch.int64)
    with pytest.raises(UsageError, match=r"9 steps is longer than the context of 8"):
        model.given(before=before).sample(1)
    assert model.given(before=before).log_prob(before[:, :2]).nats.isfinite().all()  # type: ignore[union-attr]


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_start_on_the_scale_of_learned_positions(tied: bool) -> None:
    shape = {"width": 64, "layers": 1, "n_heads": 2, "block": 64, "tied": tied}
    model = Gpt(GptConfig(**shape, positions="learned"), Text("", True, 9))  # type: ignore[arg-type]
    assert isinstance(model.emission, TokenHead)
    assert isinstance(model.net, Transformer)
    assert model.net.position is not None
    assert abs(model.emission.table.weight.std() / model.net.position.std() - 1).item() < 0.05


def test_reals_keep_their_digits() -> None:
    """Times in seconds since 1970 need more than float32 has."""
    space = Sequence(Table((Real("time"),)), False, 3)
    model = gpt(space)
    t = 1.7e9 + torch.rand(50, 3, 1, generator=seeded(), dtype=torch.float64)
    model.prepare(t, None, None, seeded())
    drawn = model.sample(200)
    assert drawn.dtype == torch.float64
    assert drawn.unique().numel() > 500


# --------------------------------------------------------------------------------------------- subwords


def subwords(space: Text, texts: list[str], size: int = 262) -> Gpt:
    pytest.importorskip("tokenizers")
    model = Gpt(GptConfig(width=16, layers=1, n_heads=2, block=16, vocabulary=size), space)
    codec = model.codec
    assert isinstance(codec, Subwords)
    codec.learn(texts)
    shaken(model)
    return model


def test_one_spelling_bounds_the_sum_over_all() -> None:
    space = Text("ab", True, 6)
    model = subwords(space, ["abab", "aab", "abba", "abab"])
    tokenizer = model.codec.tokenizer  # type: ignore[union-attr]
    words = {tokenizer.id_to_token(k): k for k in range(tokenizer.get_vocab_size())}
    assert len(words) > 3

    def spellings(text: str) -> list[list[int]]:
        if not text:
            return [[]]
        heads = (w for w in words if text.startswith(w))
        return [[words[w], *rest] for w in heads for rest in spellings(text[len(w) :])]

    for text in ("ab", "abab", "aabb", "bbba"):
        lik = model.log_prob(space.parse([text]))
        assert isinstance(lik, LowerBound)
        every = []
        for ids in spellings(text):
            line = torch.tensor([[-1, *ids, -1]])
            each = model.emission.log_prob(model.net(model.emission.embed(line[:, :-1])), line[:, 1:])
            every.append(each.sum().double())
        truth = torch.stack(every).logsumexp(0).item()
        assert lik.nats[0].item() <= truth + 1e-5
        assert any(abs((lik.nats[0] - e).item()) < 1e-4 for e in every)
    total = sum(model.log_prob(strings(torch.arange(2), n)).nats.exp().sum().item() for n in range(1, 7))
    assert total < 1


def test_every_string_of_bytes_has_its_own_spelling() -> None:
    space = Text("", True, 8)
    model = subwords(space, ["déjà vu", "dejà-vu", "ab"], 270)
    rows = [b"d\xc3\xa9j\xc3", b"\xff\xfe", b"\xef\xbf\xbd", b"ab\x80", b"", b"\xc3\xa9\x00\xe9", "déjà".encode()]
    x = torch.full((len(rows), 8), -1)
    for row, data in zip(x, rows, strict=True):
        row[: len(data)] = torch.tensor(list(data), dtype=torch.int64)
    u = model.codec.encode(x)
    assert len({tuple(row.tolist()) for row in u}) == len(rows)
    back = model.codec.decode(u)
    assert torch.equal(back, x[:, : back.shape[1]])
    assert (x[:, back.shape[1] :] == -1).all()


@pytest.mark.parametrize("space", [Text("abé", True, 12), Text("", True, 12)], ids=["characters", "bytes"])
def test_subwords_draw_strings_of_the_space(space: Text) -> None:
    model = subwords(space, ["abé", "éé", "ab"], 262)
    drawn = model.sample(40, generator=seeded())
    space.check(drawn)
    assert space.lengths(drawn).max() <= 12
    assert model.given(before=space.parse(["ab"])).sample(3).shape[:2] == (3, 1)


def test_a_run_keeps_its_tokenizer(tmp_path: object) -> None:
    pytest.importorskip("tokenizers")
    source = chains.strings()
    parts = [Part(source.sample(n, seeded(n))) for n in (200, 30, 40)]
    data = Data("strings", "memory", source.space, *parts)
    options = {"width": 16, "layers": 1, "n_heads": 2, "block": 16, "vocabulary": 270}
    run = fit(data, "gpt", steps=20, options=options, recipe={"batch": 16}, out=f"{tmp_path}/run")
    again = read_run(f"{tmp_path}/run").model
    a, b = (m.log_prob(parts[2].x) for m in (run.model, again))
    assert isinstance(a, LowerBound)
    assert torch.equal(a.nats, b.nats)  # type: ignore[union-attr]
    assert torch.equal(run.model.codec.learned, again.codec.learned)  # type: ignore[union-attr, arg-type]
    assert isinstance(fit(data, "gpt", steps=2, options=options | {"vocabulary": 0}).model.log_prob(parts[2].x), Exact)


def test_computing_layers_again_changes_no_gradient():
    grads = []
    for recompute in (False, True):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = Transformer(Shape(width=16, layers=2, n_heads=2, block=8, recompute=recompute))
        for k, p in enumerate(net.parameters()):
            torch.nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(k))
        x = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(1))
        net.train()(x).square().sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert torch.allclose(*grads, atol=1e-5)
