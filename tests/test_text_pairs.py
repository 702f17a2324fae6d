"""Texts given texts: learned, decoded for many contexts at once, and told to the net in either way."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pofx
from pofx.codecs.windows import Whole
from pofx.core.errors import Unsupported, UsageError
from pofx.core.family import idle
from pofx.core.requests import Decoding, StepByStep
from pofx.data.parts import Data, Part
from pofx.decode.net import NetDecoder
from pofx.families.sequence import Gpt, GptConfig
from pofx.nn.emission import TokenHead
from pofx.nn.encoders import Encoded, TextEncoder
from pofx.nn.transformer import ROOM, Shape, Transformer
from pofx.spaces import Image, Label, Real, Table, Text
from pofx.train.checkpoint import read_sealed, write_sealed
from pofx.train.run import FORMAT, read_run

WORDS, FEW = Text("abcdefgh", True, 7), Text("abc", True, 4)
SMALL: dict[str, Any] = {"width": 32, "layers": 2, "n_heads": 2, "block": 32, "context_layers": 1}
WAYS: dict[str, dict[str, Any]] = {
    "attention": {},
    "prefix": {"context_as": "prefix", "context_layers": 0},
    "subwords": {"context_vocabulary": 270, "context_width": 16},
    "few queries": {"n_kv_heads": 1},
}


def texts(space: Text, n: int, seed: int, least: int = 1) -> list[str]:
    """Strings of any length up to the space's."""
    g = torch.Generator().manual_seed(seed)
    sizes = torch.randint(least, space.length + 1, (n,), generator=g).tolist()
    letters = torch.randint(len(space.alphabet), (n, space.length), generator=g).tolist()
    return ["".join(space.alphabet[k] for k in row[:size]) for row, size in zip(letters, sizes, strict=True)]


def model(way: str = "attention", space: Text = WORDS, seed: int = 0, **options: Any) -> Gpt:
    """Of random weights, in double precision, whose branches all say something."""
    torch.manual_seed(seed)
    made = Gpt(GptConfig(**SMALL | WAYS[way] | options), space, WORDS)
    made.prepare(space.parse(texts(space, 50, 1)), WORDS.parse(texts(WORDS, 50, 2)), None, torch.Generator())
    for p in made.parameters():
        p.data += 0.2 * torch.randn(p.shape)
    return made.double().eval()


def nats(m: Gpt, x: Any, c: Any) -> Tensor:
    with torch.no_grad():
        return m.given(c).log_prob(x).nats


@cache
def reversals() -> Data:
    """A string, given the same from its end on."""
    seen = list(dict.fromkeys(texts(WORDS, 2600, 0, least=2)))
    x, c = WORDS.parse(seen), WORDS.parse([text[::-1] for text in seen])
    parts = [Part(x[rows], c[rows]) for rows in (slice(300, None), slice(100), slice(100, 300))]
    return Data("reversals", "", WORDS, *parts, context=WORDS)


@cache
def reverser(way: str) -> Any:
    recipe = {"batch": 64, "warmup": 20, "ema": 0.95, "lr": 1e-2}
    steps = 300 if way == "prefix" else 220
    return pofx.fit(reversals(), "gpt", steps=steps, options=SMALL | WAYS[way], recipe=recipe, checks=1).model


@pytest.mark.parametrize("way", ["attention", "prefix"])
def test_a_reversal_is_learned(way):
    asked = [reversals().space.spell(row) for row in reversals().test.c]
    for sampler in (Decoding(greedy=True), Decoding(beams=3)):
        drawn = reverser(way).given(asked).sample(1, sampler=sampler)[0]
        right = sum(WORDS.spell(row) == text[::-1] for row, text in zip(drawn, asked, strict=True))
        assert right >= 0.9 * len(asked), (sampler, right)


# -- what a number depends on --------------------------------------------------------------------------------------


@pytest.fixture
def double():
    """Sums are in double precision, too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("way", WAYS)
def test_what_stands_beside_a_context_changes_no_number(way, double):
    m, x, c = model(way), texts(WORDS, 12, 3), texts(WORDS, 12, 4)
    together = nats(m, x, c)
    alone = torch.stack([nats(m, [a], [b])[0] for a, b in zip(x, c, strict=True)])
    assert torch.allclose(together, alone, rtol=0, atol=1e-10)
    padded = torch.nn.functional.pad(WORDS.parse(c), (0, 9), value=-1)
    assert torch.allclose(together, nats(m, x, padded), rtol=0, atol=1e-10)
    assert (together - nats(m, x, c[1:] + c[:1])).abs().min() > 1e-4  # and it is told the context


@pytest.mark.parametrize("way", WAYS)
def test_no_symbol_depends_on_a_later_one(way, double):
    m = model(way)
    with torch.no_grad():
        one, other = (m.given("abc").log_probs(text) for text in ("abcdefg", "abchhha"))
    assert torch.allclose(one[:3], other[:3], rtol=0, atol=1e-12)
    assert (one[4:7] - other[4:7]).abs().min() > 1e-6


@pytest.mark.parametrize("way", WAYS)
def test_step_by_step_is_one_pass(way):
    """Also where rows are taken, repeated and left out on the way."""
    m, x = model(way), WORDS.parse(texts(WORDS, 6, 5, least=7))
    h = m.encode_context(WORDS.parse(texts(WORDS, 6, 6)))
    u = torch.cat([m.emission.beginning(6), m.codec.encode(x)], 1)
    with torch.no_grad():
        for rows in ([0, 0, 1, 1, 2, 2], [5, 3, 3], [1, 4, 1, 1, 0, 2, 2]):  # of equally many, and not
            reader = NetDecoder(m.net, m.emission, u[:, :1], 8, h)
            before = torch.cat([reader.read(u[:, 1:2]), reader.read(u[:, 2:3])], 1)
            assert torch.allclose(before, m.outputs(u[:, :3], h)[:, 1:], atol=1e-10)
            some = torch.tensor(rows)
            reader.reorder(some)
            after = [reader.read(u[some, 3:4]), reader.read(u[some, 4:7])]
            assert torch.allclose(torch.cat(after, 1), m.outputs(u[some, :7], h[some])[:, 3:], atol=1e-10)


def test_a_cache_grows():
    net = Transformer(Shape(16, 2, 2, block=3 * ROOM)).eval()
    for layer in net.layers:
        torch.nn.init.normal_(layer.out.weight)
        torch.nn.init.normal_(layer.down.weight)
    x = torch.randn(2, 3 * ROOM, 16)
    cache = net.cache(2, 3 * ROOM)
    with torch.no_grad():
        parts = [cache.extend(x[:, : ROOM - 1]), *(cache.step(x[:, t])[:, None] for t in range(ROOM - 1, ROOM + 2))]
        parts.append(cache.extend(x[:, ROOM + 2 :]))
        assert torch.allclose(torch.cat(parts, 1), net(x), atol=1e-5)
    with pytest.raises(UsageError):
        cache.step(x[:, 0])


# -- many contexts at once -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "sampler", [Decoding(beams=1), Decoding(beams=3, length_penalty=0.6, hasty=True), Decoding(greedy=True)]
)
def test_many_contexts_are_decoded_as_each_alone(way, sampler, monkeypatch):
    m, c = model(way), texts(WORDS, 20, 7)
    n = sampler.beams or 1
    monkeypatch.setattr(type(m), "rows_per_draw", lambda self: 12)  # several chunks
    together = m.given(c).sample(n, sampler=sampler)
    for i, text in enumerate(c):
        alone = m.given(text).sample(n, sampler=sampler)
        assert [WORDS.spell(row) for row in together[:, i]] == [WORDS.spell(row) for row in alone]


def test_beginnings_of_any_length_go_with_their_contexts():
    m, c, before = model(), texts(WORDS, 6, 8), ["a", "", "bcd", "b", "a", "cab"]
    together = m.given(c, before=before).sample(2, sampler=Decoding(beams=2))
    assert together.shape[:2] == (2, 6)
    for i, (text, start) in enumerate(zip(c, before, strict=True)):
        alone = m.given(text, before=start).sample(2, sampler=Decoding(beams=2))
        assert [WORDS.spell(row) for row in together[:, i]] == [WORDS.spell(row) for row in alone]


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_wide_search_finds_the_best_of_all(penalty):
    m, c = model(space=FEW), texts(WORDS, 4, 9)
    every = ["".join(s) for k in range(4) for s in itertools.product("abc", repeat=k)]  # 40, and those without an end
    found = m.given(c).sample(2, sampler=Decoding(beams=40, length_penalty=penalty, length=4))
    for i, text in enumerate(c):
        with torch.no_grad():
            ended = m.given(text).log_prob(FEW.parse(every)).nats
            cut = ["".join(s) for s in itertools.product("abc", repeat=4)]
            going = m.given(text).log_probs(FEW.parse(cut))[:, :4].sum(1)
        value = torch.cat([ended, going]) / torch.tensor([len(s) + 1.0 for s in every] + [4.0] * len(cut)) ** penalty
        best = value.topk(2).indices.tolist()
        assert [FEW.spell(row) for row in found[:, i]] == [[*every, *cut][k] for k in best]


def test_ended_rows_are_left_out_of_greedy_decoding(monkeypatch):
    m, read = reverser("attention"), []
    step = type(m.net.cache(1, 1)).step
    monkeypatch.setattr(type(m.net.cache(1, 1)), "step", lambda self, x: read.append(len(x)) or step(self, x))
    asked = ["ab"] * 40 + ["abcdefg"]
    drawn = m.given(asked).sample(1, sampler=Decoding(greedy=True))[0]
    assert [WORDS.spell(row) for row in drawn] == ["ba"] * 40 + ["gfedcba"]
    assert read[0] == 41
    assert read[-1] == 1


# -- options -------------------------------------------------------------------------------------------------------


def pairs_of_bytes() -> Data:
    space = Text("", True, 40)
    english = [f"a {a} {b} runs" for a in ("red", "big", "old", "new") for b in ("dog", "cat", "fox", "cow")] * 8
    german = [text.replace("runs", "läuft").replace("a ", "ein ") for text in english]
    part = Part(space.parse(german), space.parse(english))
    return Data("pairs", "", space, part, part[:16], part[:16], context=space)


def test_subwords_of_both_sides_travel_with_the_run(tmp_path):
    options = SMALL | {"vocabulary": 280, "context_vocabulary": 290, "tied": True, "smoothing": 0.1, "dropout": 0.1}
    run = pofx.fit(pairs_of_bytes(), "gpt", steps=3, options=options, out=tmp_path / "run")
    again, test = read_run(tmp_path / "run").model, pairs_of_bytes().test
    encoder: Any = again.context_encoder
    assert encoder.subwords.json == run.model.context_encoder.subwords.json
    assert encoder.embed.weight.shape == (290, 64)
    assert "runs" in encoder.subwords.tokenizer.get_vocab() or "Ġruns" in encoder.subwords.tokenizer.get_vocab()
    assert torch.equal(nats(again, test.x, test.c), nats(run.model, test.x, test.c))
    assert len(again.given(["a red dog runs", "a big cow runs"]).sample(1, sampler=StepByStep())) == 1


def test_runs_from_before_there_were_widths_are_read(tmp_path):
    """A context was 64 wide then, whatever the net was."""
    data = reversals()
    run = pofx.fit(data, "gpt", steps=1, options=SMALL | {"context_width": 64, "context_layers": 2}, out=tmp_path / "r")
    info = read_sealed(tmp_path / "r" / "config.json", FORMAT)
    for name in ("context_width", "context_layers", "context_vocabulary", "context_as", "smoothing"):
        del info["options"][name]
    write_sealed(tmp_path / "r" / "config.json", info)
    again, test = read_run(tmp_path / "r").model, data.test
    assert again.config.context_width == 64
    assert torch.equal(nats(again, test.x, test.c), nats(run.model, test.x, test.c))
    for width in (SMALL["width"], 96):
        assert pofx.fit(data, "gpt", steps=1, options=SMALL | {"width": width}).model.known == max(64, width)


def test_options_of_contexts_say_where_they_mean_nothing():
    every = {"context_dropout", "context_width", "context_layers", "context_vocabulary", "context_as"}

    def unused(context: Any) -> set[str]:
        changed = GptConfig(
            context_dropout=0.1, context_width=8, context_layers=3, context_vocabulary=300, context_as="prefix"
        )
        return every & set(idle(Gpt, WORDS, context, changed))

    assert unused(None) == every
    assert unused(Label(("a", "b"))) == {"context_layers", "context_vocabulary", "context_as"}
    assert unused(Image(8, 8, 1, 2)) == {"context_layers", "context_vocabulary"}
    assert unused(WORDS) == set()
    with pytest.raises(UsageError, match="context_vocabulary is 100"):
        GptConfig(context_vocabulary=100)
    with pytest.raises(UsageError, match="even width, not 15"):
        Gpt(GptConfig(context_width=15), WORDS, WORDS)
    for more in ({"positions": "learned"}, {"window": 8}):
        with pytest.raises(Unsupported, match="context_as=prefix"):
            Gpt(GptConfig(context_as="prefix", **more), WORDS, WORDS)
    with pytest.raises(Unsupported, match="smoothing"):
        Gpt(GptConfig(smoothing=0.1), dataclasses.replace(WORDS, has_eos=False), None)


def test_smoothing_is_a_loss_and_no_likelihood():
    head = TokenHead(5, 8)
    torch.nn.init.normal_(head.out.weight)
    y, u = torch.randn(3, 4, 8), torch.tensor([[0, 1, 4, -1], [2, 2, 2, 2], [3, -1, 0, 0]])
    log_p = head.logits(y).log_softmax(-1)
    own = log_p.gather(-1, torch.where(u < 0, 5, u)[..., None])[..., 0]
    assert torch.allclose(head.log_prob(y, u), own, atol=1e-6)
    assert torch.allclose(head.log_prob(y, u, smoothing=0.3), 0.7 * own + 0.3 * log_p.mean(-1), atol=1e-6)
    plain, smooth = model(), model(smoothing=0.3)
    assert torch.equal(nats(plain, ["abc"], ["ab"]), nats(smooth, ["abc"], ["ab"]))


def test_contexts_of_several_batches_are_joined():
    short, long = Encoded(torch.zeros(1, 2), torch.ones(1, 3, 4)), Encoded(torch.ones(2, 2), torch.ones(2, 5, 4))
    both = Encoded.cat([short, long])
    assert both.tokens.shape == (3, 5, 4)
    assert both.mask[0].tolist() == [True] * 3 + [False] * 2
    assert bool(both.mask[1:].all())


def test_batches_are_of_one_length_and_hold_every_piece_once():
    sizes = torch.randint(1, 50, (1003,), generator=torch.Generator().manual_seed(0))
    rows = torch.where(torch.arange(50) < sizes[:, None], 0, -1)
    pieces = Whole(rows, lambda x: x, -1, -2, sizes)
    order = pieces.order(16, torch.Generator().manual_seed(1))
    assert torch.equal(order.sort().values, torch.arange(1003))
    batches = order[: 1003 // 16 * 16].view(-1, 16)
    spread = (sizes[batches].max(1).values - sizes[batches].min(1).values).double().mean()
    assert spread < 4 < (sizes[: 62 * 16].view(-1, 16).max(1).values - 1).double().mean()
    firsts = sizes[batches].double().mean(1)
    assert abs(float(torch.corrcoef(torch.stack([firsts, torch.arange(len(firsts)).double()]))[0, 1])) < 0.3


def test_a_long_context_is_cut_into_few_tokens():
    encoder = TextEncoder(Text("ab", True, 1000), 16)
    assert encoder(torch.zeros(1, 1000, dtype=torch.int64)).tokens.shape[1] <= 257


def test_null_contexts_stand_before_the_steps_as_well(double):
    m = model("prefix", context_dropout=0.5)
    c, dropped = WORDS.parse(["ab", "cabbage"]), torch.tensor([True, True])
    u = torch.cat([m.emission.beginning(2), m.codec.encode(WORDS.parse(["ab", "cab"]))], 1)
    with torch.no_grad():
        none = m.given(null=True).log_prob(["ab", "cab"]).nats
        ends = torch.nn.functional.pad(u[:, 1:], (0, 1), value=-1)
        log_p = m.emission.log_prob(m.outputs(u, m.encode_context(c, dropped)), ends)
    assert math.isclose(float(log_p[0, :3].sum()), float(none[0]), abs_tol=1e-9)
    assert math.isclose(float(log_p[1].sum()), float(none[1]), abs_tol=1e-9)


def test_the_command_line_searches_given_a_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pofx.cli import main

    pofx.fit(reversals(), "gpt", steps=1, options=SMALL, out=tmp_path / "run")
    assert main(["sample", str(tmp_path / "run"), "2", "--given", "abc", "--beams", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["texts"]) == len(found["log_prob"]) == 2
    with torch.no_grad():
        lik = read_run(tmp_path / "run").model.given("abc").log_prob(found["texts"])
    assert torch.allclose(lik.nats, torch.tensor(found["log_prob"], dtype=lik.nats.dtype), atol=1e-4)
    assert main(["sample", str(tmp_path / "run"), "1", "--given", "abb.txt"]) != 0
    assert "There is no file 'abb.txt', and as what is given it is wrong: The character '.'" in capsys.readouterr().err


def test_a_file_that_is_not_there_is_told_where_its_name_is_a_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pofx.cli import main

    x = Text("ab.tx", True, 8).parse(["ab.txt", "ba", "a.b", "tt"])
    part = Part(x, x)
    data = Data("copies", "memory", Text("ab.tx", True, 8), part, part, part, Text("ab.tx", True, 8))
    pofx.fit(data, "gpt", steps=1, options=SMALL, out=tmp_path / "run")
    for given, said in (("ab.txt", True), ("ab", False), ("a.b", False)):
        assert main(["sample", str(tmp_path / "run"), "1", "--given", given]) == 0
        assert (f"There is no file {given!r}: it is taken as a text" in capsys.readouterr().err) == said


def test_a_column_that_is_not_given_is_no_row_to_be_corrected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pofx.cli import main

    x = torch.randn(40, 1, dtype=torch.float64)
    data = Data("line", "memory", Table((Real("y"),)), *3 * [Part(x, x + 1)], Table((Real("age"),)))
    pofx.fit(data, "gaussian", steps=1, out=tmp_path / "run")
    assert main(["sample", str(tmp_path / "run"), "1", "--given", "age=30,income=3"]) != 0
    told = " ".join(capsys.readouterr().err.split())
    assert "--given age=30,income=3: " in told
    assert "Give age=VALUE." in told
    assert "row" not in told.partition("Give age")[2]
