"""Decoding: processors equal transformers', sampling has its distribution, searches find what exhaustion finds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from pofx.core.errors import BadValue, UsageError, WrongShape
from pofx.decode.beam import beam
from pofx.decode.net import NetDecoder
from pofx.decode.processors import (
    UNCHANGED,
    MinP,
    Processor,
    Repetition,
    Temperature,
    TopK,
    TopP,
    Typical,
    compose,
    processors,
)
from pofx.decode.speculative import Tally, speculative
from pofx.decode.strategies import Decoder, collect, stop_strings, stream
from pofx.nn.emission import TokenHead
from pofx.nn.encoders import Encoded, told
from pofx.nn.recurrent import Lstm
from pofx.nn.sequence import SequenceNet
from pofx.nn.transformer import Shape, Transformer


def sample(decoder: Decoder, most: int, generator: torch.Generator | None, **options: Any) -> Tensor:
    return collect(stream(decoder, most, generator, **options))


def greedy(decoder: Decoder, most: int, **options: Any) -> Tensor:
    return collect(stream(decoder, most, None, **options))


class Replay:
    """The slow twin of every Decoder: it holds the symbols, and runs the net over all of them each time.

    net: symbols [N, t] -> logits [N, t, V] after each of them.
    """

    def __init__(self, net: Callable[[Tensor], Tensor], prompt: Tensor) -> None:
        self.net, self.symbols, self.passes = net, prompt, 0

    def logits(self) -> Tensor:
        return self.net(self.symbols)[:, -1]

    def push(self, symbol: Tensor) -> None:
        self.extend(symbol[:, None])

    def extend(self, symbols: Tensor) -> Tensor:
        assert symbols.shape[0] == len(self.symbols)
        assert symbols.shape[1] > 0
        assert symbols.min() >= 0
        self.passes += 1
        self.symbols = torch.cat([self.symbols, symbols], 1)
        return self.net(self.symbols)[:, -symbols.shape[1] :]

    def rewind(self, k: int) -> None:
        self.symbols = self.symbols[:, : self.symbols.shape[1] - k]

    def reorder(self, rows: Tensor) -> None:
        self.symbols = self.symbols[rows]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def table(size: int, seed: int, spread: float = 1.5) -> Callable[[Tensor], Tensor]:
    """A net that looks at the last two symbols and at the place: random logits for each case."""
    logits = spread * torch.randn(16, size, size, size, generator=generator(seed))

    def net(symbols: Tensor) -> Tensor:
        before = torch.cat([torch.zeros_like(symbols[:, :1]), symbols[:, :-1]], 1)
        return logits[torch.arange(symbols.shape[1]).clamp(max=15), before, symbols]

    return net


def start(rows: int = 1) -> Tensor:
    return torch.zeros(rows, 1, dtype=torch.int64)


def every_sequence(
    net: Callable[[Tensor], Tensor], size: int, most: int, end: int | None, processor: Processor = UNCHANGED
) -> dict[tuple[int, ...], float]:
    """log p of every sequence, cut at its end, by enumeration: the slow twin of sampling and of beam search."""
    found = {}
    for row in itertools.product(range(size), repeat=most):
        cut = row.index(end) + 1 if end in row else most
        total = 0.0
        for t in range(cut):
            seen = torch.tensor([[0, *row[:t]]])
            total += float(processor(net(seen)[:, -1], seen).log_softmax(-1)[0, row[t]])
        found[row[:cut]] = total
    return found


def p_value(drawn: Tensor, expected: dict[tuple[int, ...], float]) -> float:
    """Chi-squared of drawn sequences [N, t] (-1 after the end) against log-probabilities; rare ones pooled."""
    counts = dict.fromkeys(expected, 0)
    for row in drawn.tolist():
        counts[tuple(s for s in row if s >= 0)] += 1
    p = torch.tensor(list(expected.values())).double().exp()
    assert float(p.sum()) == pytest.approx(1, abs=1e-5)
    seen = torch.tensor(list(counts.values())).double()
    assert not seen[p == 0].any()
    often = p * len(drawn) > 8
    pool = [seen[often], seen[~often].sum()[None]], [p[often], p[~often].sum()[None]]
    observed, theory = torch.cat(pool[0]), torch.cat(pool[1]) * len(drawn)
    keep = theory > 0
    return float(stats.chisquare(observed[keep], theory[keep] * observed.sum() / theory[keep].sum()).pvalue)


# ---------------------------------------------------------------------------------- processors


def hard_logits() -> Tensor:
    """Rows with ties, with cut symbols, with one certain symbol, flat, far from zero, and ordinary ones."""
    rows = torch.randn(12, 17, generator=generator()) * torch.logspace(-2, 1.5, 12)[:, None]
    tied = rows[3:6].round()
    cut = rows[6:9].clone()
    cut[:, ::3] = -math.inf
    certain = torch.full((1, 17), -math.inf)
    certain[0, 4] = 2.0
    return torch.cat([rows, tied, cut, certain, torch.zeros(1, 17), rows[:2] + 300, rows[9:10].round() * 100])


CASES = [
    (Temperature(0.3), "TemperatureLogitsWarper", 0.3),
    (Temperature(2.5), "TemperatureLogitsWarper", 2.5),
    *[(TopK(k), "TopKLogitsWarper", k) for k in (1, 3, 17, 40)],
    *[(TopP(p), "TopPLogitsWarper", p) for p in (1e-6, 0.1, 0.5, 0.9, 1.0)],
    *[(MinP(p), "MinPLogitsWarper", p) for p in (0.0, 0.05, 0.5, 1.0)],
    *[(Typical(p), "TypicalLogitsWarper", p) for p in (1e-6, 0.2, 0.9, 0.999)],
    *[(Repetition(p), "RepetitionPenaltyLogitsProcessor", p) for p in (1.0, 1.3, 0.7)],
]


@pytest.mark.parametrize(("ours", "name", "value"), CASES, ids=[repr(c[0]) for c in CASES])
def test_processors_equal_those_of_transformers(ours: Processor, name: str, value: float) -> None:
    module = pytest.importorskip("transformers", reason="needs transformers to compare with")
    theirs = getattr(module, name)(value)
    logits = hard_logits()
    history = torch.randint(0, 17, (len(logits), 5), generator=generator(1))
    assert torch.equal(ours(logits, history), theirs(history, logits))
    empty = history[:, :0]
    assert torch.equal(ours(logits, empty), theirs(empty, logits))
    if not isinstance(ours, Repetition):
        assert torch.equal(ours(logits.double(), history), theirs(history, logits.double()))


def test_padding_in_the_history_is_nothing_repeated() -> None:
    """A padded row is treated as the same row alone without padding, and as transformers treats that."""
    module = pytest.importorskip("transformers", reason="needs transformers to compare with")
    theirs, logits = module.RepetitionPenaltyLogitsProcessor(1.7), hard_logits()[:3]
    history = torch.tensor([[-1, -1, -1, -1], [-1, -1, 16, 2], [5, 5, 0, 99]])
    got = Repetition(1.7)(logits, history)
    for i, row in enumerate(history):
        alone = row[row >= 0][None]
        assert torch.equal(got[i], theirs(alone, logits[i : i + 1])[0])
    assert torch.equal(got[0], logits[0])


def test_named_processors_come_in_the_order_of_transformers() -> None:
    module = pytest.importorskip("transformers", reason="needs transformers to compare with")
    config = module.GPT2Config(
        vocab_size=17, n_positions=8, n_embd=4, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=1
    )
    asked = module.GenerationConfig(
        do_sample=True, repetition_penalty=1.2, temperature=0.8, top_k=9, top_p=0.9, min_p=0.02, typical_p=0.95
    )
    theirs = module.GPT2LMHeadModel(config)._get_logits_processor(asked)
    assert len(theirs) == 6
    ours = processors(typical=0.95, min_p=0.02, top_p=0.9, top_k=9, temperature=0.8, repetition=1.2)
    logits, history = hard_logits(), torch.randint(0, 17, (len(hard_logits()), 5), generator=generator(1))
    assert torch.equal(ours(logits, history), theirs(history, logits))
    assert processors() == UNCHANGED
    assert torch.equal(UNCHANGED(logits, history), logits)


def test_every_cut_leaves_a_symbol() -> None:
    logits = hard_logits()
    for cut in (TopK(1), TopP(1e-9), MinP(1.0), Typical(1e-9)):
        assert cut(logits, start(len(logits))).isfinite().any(-1).all()
    both = compose(TopK(3), Temperature(0.5), Typical(0.5), TopP(0.3))
    assert both(logits, start(len(logits))).isfinite().any(-1).all()


@pytest.mark.parametrize(
    ("make", "value", "remedy"),
    [
        *[(Temperature, v, "greedy") for v in (0, 0.0, -1.0, math.nan, math.inf)],
        *[(TopK, v, "Leave it out") for v in (0, -3, 2.5)],
        *[(TopP, v, "leave it out") for v in (0.0, -0.1, 1.01, math.nan)],
        *[(MinP, v, "Leave it out") for v in (-0.1, 1.01, math.nan)],
        *[(Typical, v, "Leave it out") for v in (0.0, 1.0, 1.2, math.nan)],
        *[(Repetition, v, "1 for none") for v in (0.0, -1.0, math.nan)],
    ],
)
def test_values_that_cannot_be_are_named(make: Callable[[float], Processor], value: float, remedy: str) -> None:
    with pytest.raises(UsageError, match=remedy) as caught:
        make(value)
    assert str(value) in str(caught.value)


# ----------------------------------------------------------------------- one symbol at a time


@pytest.mark.parametrize("processor", [UNCHANGED, compose(Repetition(1.5), Temperature(0.7), TopP(0.8))])
def test_samples_have_their_distribution(processor: Processor) -> None:
    net, end = table(3, 1), 2
    drawn = sample(Replay(net, start(20_000)), 4, generator(), processor=processor, history=start(20_000), end=end)
    assert p_value(drawn, every_sequence(net, 3, 4, end, processor)) > 1e-3


def test_greedy_takes_the_likeliest_and_needs_no_draws() -> None:
    net = table(5, 3)
    prompt = torch.randint(0, 5, (6, 3), generator=generator(2))
    decoder = Replay(net, prompt)
    got = greedy(decoder, 7)
    whole = torch.cat([prompt, got], 1)
    assert torch.equal(net(whole)[:, 2:-1].argmax(-1), got)
    assert decoder.passes == 6, "the last symbol is not read"
    cold = sample(Replay(net, prompt), 7, generator(), processor=Temperature(1e-4))
    assert torch.equal(cold, got)
    assert torch.equal(sample(Replay(net, prompt), 7, generator(), processor=TopK(1)), got)


def test_a_stream_ends_with_its_rows() -> None:
    net = table(4, 5)
    steps = list(stream(Replay(net, start(50)), 12, generator(3), end=3))
    drawn = collect(steps)
    assert all(s.shape == (50,) and s.dtype == torch.int64 for s in steps)
    after = (drawn == 3).cumsum(1) - (drawn == 3).long() > 0
    assert torch.equal(after, drawn == -1), "the end itself is written, nothing after it"
    alone = sample(Replay(net, start(1)), 200, generator(), end=3)
    assert alone[0, -1] == 3
    assert alone.shape[1] < 200
    assert len(list(stream(Replay(net, start(2)), 5, generator(), end=None))) == 5
    endless = stream(Replay(net, start(2)), 10**9, generator())
    assert len([next(endless) for _ in range(4)]) == 4, "symbols come as they are drawn"


def test_stop_strings_straddle_symbols() -> None:
    pieces = ["a", "ab", "b", "ca"]

    def text(symbols: list[int]) -> str:
        return "".join(pieces[s] for s in symbols)

    drawn = sample(Replay(table(4, 6), start(200)), 12, generator(), stop=stop_strings(text, ["bc", "aaa"]))
    stopped = 0
    for row in drawn.tolist():
        new = [s for s in row if s >= 0]
        assert not any(s in text(new[:-1]) for s in ("bc", "aaa"))
        stopped += (hit := any(s in text(new) for s in ("bc", "aaa")))
        assert hit or len(new) == 12
    assert stopped > 100
    with pytest.raises(UsageError, match="stop string"):
        stop_strings(text, ["x", ""])


def test_wrong_use_is_named() -> None:
    net = table(4, 1)
    with pytest.raises(UsageError, match="0 new symbols"):
        stream(Replay(net, start()), 0, generator())
    with pytest.raises(UsageError, match=r"end symbol 4 is not in 0 .. 3"):
        stream(Replay(net, start()), 3, generator(), end=4)
    with pytest.raises(WrongShape, match="2 rows"):
        greedy(Replay(net, start(2)), 3, history=start(3))
    with pytest.raises(BadValue, match="NaN"):
        greedy(Replay(lambda s: net(s) * math.nan, start()), 3)
    with pytest.raises(BadValue, match="leave no symbol"):
        greedy(Replay(net, start()), 3, processor=lambda logits, _: torch.full_like(logits, -math.inf))
    with pytest.raises(BadValue, match="NaN"):
        beam(Replay(lambda s: net(s) * math.nan, start()), 3, 2)
    with pytest.raises(UsageError, match="0 beams"):
        beam(Replay(net, start()), 3, 0)
    with pytest.raises(UsageError, match="nan"):
        beam(Replay(net, start()), 3, 2, length_penalty=math.nan)
    with pytest.raises(UsageError, match="0 symbols"):
        speculative(Replay(net, start()), Replay(net, start()), 3, generator(), k=0)
    with pytest.raises(UsageError, match="of 5"):
        speculative(Replay(net, start()), Replay(table(5, 1), start()), 3, generator())


# ------------------------------------------------------------------------------------------- beam


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0, -0.5])
@pytest.mark.parametrize("end", [None, 1])
def test_a_wide_beam_is_exhaustive(length_penalty: float, end: int | None) -> None:
    for seed in range(3):
        net = table(3, seed)
        found = beam(Replay(net, start(2)), 4, 100, length_penalty=length_penalty, end=end)
        truth = every_sequence(net, 3, 4, end)
        ranked = sorted(((v / len(s) ** length_penalty, s) for s, v in truth.items()), reverse=True)
        for row in range(2):
            assert int(found.values[row].isfinite().sum()) == min(100, len(ranked))
            for (score, symbols), got, at in zip(ranked, found.symbols[row].tolist(), found.values[row], strict=False):
                assert float(at) == pytest.approx(score, abs=1e-4)
                assert tuple(s for s in got if s >= 0) == symbols
        assert (found.symbols[found.values == -math.inf] == -1).all()


def test_one_beam_is_greedy_and_scores_are_log_probabilities() -> None:
    net = table(6, 2)
    prompt = torch.randint(0, 6, (4, 2), generator=generator(2))
    one = beam(Replay(net, prompt), 5, 1)
    assert torch.equal(one.symbols[:, 0], greedy(Replay(net, prompt), 5))
    for width in (3, 6):
        found = beam(Replay(net, prompt), 5, width, length_penalty=0.0)
        for b in range(width):
            whole = torch.cat([prompt, found.symbols[:, b]], 1)
            log_p = net(whole)[:, 1:-1].log_softmax(-1).gather(-1, found.symbols[:, b][..., None]).sum((1, 2))
            assert torch.allclose(log_p, found.values[:, b], atol=1e-4)
        assert (found.values[:, 0] >= one.values[:, 0] * 5 - 1e-4).all()


@pytest.mark.parametrize("hasty", [False, True])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 1.7, -1.0])
def test_beam_search_equals_that_of_transformers(length_penalty: float, hasty: bool) -> None:
    module = pytest.importorskip("transformers", reason="needs transformers to compare with")
    torch.manual_seed(0)
    config = module.GPT2Config(
        vocab_size=11, n_positions=24, n_embd=8, n_layer=1, n_head=2, initializer_range=1.0, bos_token_id=0
    )
    model = module.GPT2LMHeadModel(config).eval()
    prompt = torch.randint(0, 11, (5, 3), generator=generator(2))
    for width, penalty in ((2, 1.0), (4, 1.4)):
        theirs = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            num_beams=width,
            num_return_sequences=width,
            length_penalty=length_penalty,
            repetition_penalty=penalty,
            early_stopping=False if hasty else "never",
            max_new_tokens=9,
            eos_token_id=7,
            pad_token_id=7,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
        )
        decoder = Replay(lambda s: model(s).logits, prompt)
        ours = beam(
            decoder,
            9,
            width,
            length_penalty=length_penalty,
            hasty=hasty,
            processor=Repetition(penalty),
            history=prompt,
            end=7,
        )
        assert torch.allclose(ours.values.flatten(), theirs.sequences_scores, atol=1e-4)
        new = theirs.sequences[:, 3:]
        assert torch.equal(ours.symbols.flatten(0, 1).masked_fill(ours.symbols.flatten(0, 1) < 0, 7), new)


# ------------------------------------------------------------------------------------ speculative


@pytest.mark.parametrize(
    ("processor", "end", "rows", "k"),
    [
        (UNCHANGED, None, 1, 2),
        (UNCHANGED, 2, 3, 3),
        (compose(Repetition(1.4), Temperature(0.8), TopP(0.85)), 2, 3, 2),
        (UNCHANGED, 2, 250, 4),
        (TopK(2), None, 3, 1),
    ],
)
def test_speculative_samples_are_those_of_the_target(processor: Processor, end: int | None, rows: int, k: int) -> None:
    target, draft, most, g = table(3, 1), table(3, 2, 1.0), 4, generator(7)
    drawn = []
    for _ in range(900 if rows < 10 else 16):
        steps = speculative(
            Replay(target, start(rows)),
            Replay(draft, start(rows)),
            most,
            g,
            k=k,
            processor=processor,
            history=start(rows),
            end=end,
        )
        block = collect(steps)
        drawn.append(torch.nn.functional.pad(block, (0, most - block.shape[1]), value=-1))
    assert p_value(torch.cat(drawn), every_sequence(target, 3, most, end, processor)) > 1e-3


@pytest.mark.parametrize("k", [1, 2, 5, 30])
def test_speculative_greedy_is_greedy(k: int) -> None:
    """Symbol for symbol, whatever the draft: another model, one near the target, the target itself."""
    net = table(6, 4)
    for draft in (table(6, 5), lambda s: net(s) + 0.3 * table(6, 9)(s), net):
        for end in (None, 5):
            prompt = torch.randint(0, 6, (3, 2), generator=generator(2))
            tally = Tally()
            ours = collect(speculative(Replay(net, prompt), Replay(draft, prompt), 14, None, k=k, end=end, tally=tally))
            assert torch.equal(ours, greedy(Replay(net, prompt), 14, end=end))
            assert tally.symbols == int((ours >= 0).sum())


def test_acceptance_is_one_less_the_total_variation() -> None:
    """Of a model without memory: the rate, and the symbols per pass (Leviathan et al. 2023, eq. 1)."""
    p, q = torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.25, 0.25, 0.5]).log()
    alpha, k, tally, g = 0.25 + 0.25 + 0.2, 3, Tally(), generator(1)
    target = Replay(lambda s: p.expand(*s.shape, -1), start())
    draft = Replay(lambda s: q.expand(*s.shape, -1), start())
    drawn = collect(speculative(target, draft, 3000, g, k=k, tally=tally))
    share = torch.bincount(drawn[0], minlength=3) / 3000
    assert torch.allclose(share, p.exp(), atol=5 * 0.5 / math.sqrt(3000))
    assert tally.rate == pytest.approx(alpha, abs=4 * math.sqrt(alpha * (1 - alpha) / tally.tested))
    assert tally.symbols / tally.passes == pytest.approx((1 - alpha ** (k + 1)) / (1 - alpha), rel=0.06)
    assert tally.passes <= target.passes + 1


def test_a_perfect_draft_is_never_refused() -> None:
    net, tally = table(4, 3), Tally()
    target = Replay(net, start(8))
    drawn = collect(speculative(target, Replay(net, start(8)), 20, generator(), k=4, tally=tally))
    assert drawn.shape == (8, 20)
    assert tally.rate == 1
    assert (tally.passes, target.passes) == (4, 4), "five symbols a pass"
    assert math.isnan(Tally().rate)


def test_both_caches_hold_what_was_written() -> None:
    """Exactness alone does not need a draft in step: it is seen whenever a decoder reads on."""
    prompt, written = torch.randint(0, 4, (3, 2), generator=generator(2)), list[Tensor]()

    class Watched(Replay):
        def push(self, symbol: Tensor) -> None:
            Replay.extend(self, symbol[:, None])

        def extend(self, symbols: Tensor) -> Tensor:
            so_far = torch.cat([prompt, *(s[:, None] for s in written)], 1)
            assert torch.equal(self.symbols, so_far[:, : self.symbols.shape[1]])
            unread = so_far[:, self.symbols.shape[1] :]
            assert torch.equal(unread, symbols[:, : unread.shape[1]])
            return super().extend(symbols)

    target, draft = Watched(table(4, 1), prompt), Watched(table(4, 2, 0.5), prompt)
    for symbol in speculative(target, draft, 60, generator(), k=3):
        written.append(symbol)
    assert len(written) == 60


# ------------------------------------------------------------------------------------- decoders of nets


def net_of(name: str, seed: int) -> tuple[SequenceNet, TokenHead]:
    torch.manual_seed(seed)
    shape = Shape(16, 2, 2, block=32, window=WINDOWS.get(name, 0))
    net: SequenceNet = Lstm(16, 1) if name == "lstm" else Transformer(shape, memory=8)
    emission = TokenHead(7, 16)
    for p in (*net.parameters(), *emission.parameters()):
        p.data += 0.3 * torch.randn(p.shape)
    return net.eval(), emission


WINDOWS = {"transformer": 0, "windowed": 5}
PROMPT = torch.tensor([[-1, 3, 0], [-1, 6, 6], [-1, 1, 2], [-1, 0, 5]])


def twins(name: str, seed: int) -> tuple[NetDecoder, Replay]:
    """The cached decoder of a net, and the one that runs it over all again. A row's second symbol tells its context."""
    net, emission = net_of(name, seed)
    given = Encoded(torch.randn(7, 16), torch.randn(7, 3, 8), torch.arange(3) < torch.tensor([[1, 2, 3, 3, 2, 1, 1]]).T)
    given = Encoded(given.vector) if name == "lstm" else given

    @torch.no_grad()
    def whole(symbols: Tensor) -> Tensor:
        own = given[symbols[:, 1]]
        return emission.logits(net(emission.embed(symbols) + own.vector[:, None], *told(own)))

    return NetDecoder(net, emission, PROMPT, 20, given[PROMPT[:, 1]]), Replay(whole, PROMPT)


@pytest.mark.parametrize("name", ["transformer", "windowed", "lstm"])
def test_cached_decoders_equal_their_slow_twins(name: str) -> None:
    fast, slow = twins(name, 1)
    g = generator(4)
    for action in "pperpeRppeRep":
        rows = len(slow.logits())
        symbols = torch.randint(0, 8, (rows, 3), generator=g)
        if action == "p":
            fast.push(symbols[:, 0])
            slow.push(symbols[:, 0])
        elif action == "e":
            assert torch.allclose(fast.extend(symbols), slow.extend(symbols), atol=1e-4)
        elif action == "R":
            order = torch.randint(0, rows, (rows + 1,), generator=g)
            fast.reorder(order)
            slow.reorder(order)
        elif name != "lstm":
            for d in (fast, slow):
                d.rewind(2)
                d.rewind(0)
            with pytest.raises(UsageError, match="forgotten"):
                fast.logits()
            continue
        assert torch.allclose(fast.logits(), slow.logits(), atol=1e-4)


def test_strategies_are_the_same_with_a_cache() -> None:
    for seed in range(3):
        found = []
        for way in range(2):
            make = [lambda way=way, s=s: twins("windowed", s)[way] for s in (seed, seed + 10)]
            steps = speculative(make[0](), make[1](), 12, None, k=3, end=7)
            found.append((greedy(make[0](), 12, end=7), collect(steps), beam(make[0](), 8, 4, end=7).symbols))
        for a, b in zip(*found, strict=True):
            assert torch.equal(a, b)
        assert torch.equal(found[0][0], found[0][1])


def test_a_decoder_begins_somewhere() -> None:
    net, emission = net_of("transformer", 0)
    with pytest.raises(UsageError, match="-1"):
        NetDecoder(net, emission, PROMPT[:, :0], 5)
    begun = NetDecoder(net, emission, torch.full((2, 1), -1), 5)
    with torch.no_grad():
        assert torch.allclose(
            begun.logits(), emission.logits(net(emission.table(torch.full((2, 1), 7))))[:, 0], atol=1e-5
        )
