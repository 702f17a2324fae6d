"""Texts from the command line and in Python: sampled in every way, scored in every unit, shown where they surprise."""

from __future__ import annotations

import io
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.csv
import pytest
import torch
from torch import Tensor

from pofx.cli import main
from pofx.codecs.steps import Subwords
from pofx.commands.shared import Terminal
from pofx.commands.surprise import COLOURS, legend, show, style_of
from pofx.core.errors import PofxError, UsageError
from pofx.core.likelihood import Unavailable
from pofx.core.model import Model
from pofx.core.requests import Decoding, StepByStep, Windowed
from pofx.core.spelling import shown, visible
from pofx.data.parts import Part
from pofx.decode.net import NetDecoder
from pofx.evaluate.likelihood import mean_log_prob
from pofx.evaluate.text import Counts, Mark, marks, rates
from pofx.families.sequence import Gpt, GptConfig, Rnn, RnnConfig
from pofx.spaces import Audio, Label, Text
from pofx.train.run import read_run

WORDS = ["the", "cat", "sat", "on", "a", "mat", "while", "dögs", "ran", "far", "away", "ånd", "birds", "sang"]
TINY = ["--options.width", "16", "--options.layers", "1", "--options.n-heads", "2", "--options.block", "32"]
BLOCK = 16


def written(path: Path, lines: int, separator: str = "\n") -> str:
    draw = random.Random(0)
    path.write_text(separator.join(" ".join(draw.choices(WORDS, k=draw.randint(2, 6))) for _ in range(lines)))
    return str(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Small runs over excerpts of characters, documents of subwords, documents of bytes."""
    place = tmp_path_factory.mktemp("runs")
    lines, book = written(place / "lines.txt", 300), written(place / "book.txt", 600)
    wanted = {
        "book": [book, "gpt", "--split", "0.5", "0.25", "0.25"],
        "subwords": [lines, "gpt", "--separator", "\\n", "--options.vocabulary", "280"],
        "bytes": [lines, "gpt", "--separator", "\\n", "--symbols", "bytes"],
    }
    for name, args in wanted.items():
        run = ["fit", *args, "--steps", "30", "--checks", "1", "--quiet", "--json", "--out", str(place / name)]
        assert main([*run, *TINY]) == 0
    return {name: str(place / name) for name in wanted} | {"lines": lines, "place": str(place)}


def random_model(
    alphabet: str = "ab cd", *, has_eos: bool = True, family: type[Model] = Gpt, vocabulary: int = 0
) -> Any:
    torch.manual_seed(3)
    space = Text(alphabet, has_eos, 40)
    config: Any
    if family is Gpt:
        config = GptConfig(width=16, layers=1, n_heads=2, block=BLOCK, vocabulary=vocabulary)
    else:
        config = RnnConfig(width=16, layers=1, block=BLOCK, vocabulary=vocabulary)
    model = family(config, space)
    if isinstance(model.codec, Subwords):
        model.codec.learn(["déjà vu, dear cat", "a cat and a dog"] * 9)
    for p in model.parameters():
        p.data += 0.3 * torch.randn(p.shape)
    return model.eval()


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize("family", [Gpt, Rnn])
@pytest.mark.parametrize("has_eos", [True, False])
def test_an_empty_decoding_draws_what_the_model_draws(family: type[Model], has_eos: bool) -> None:
    model = random_model(has_eos=has_eos, family=family)
    before = model.space.parse(["a", "ab cd ab", "cd"])  # ragged, and longer than the block together with the draw
    x, y = (
        model.given(before=before).sample(3, sampler=how(length=50), generator=generator())
        for how in (StepByStep, Decoding)
    )
    assert torch.equal(x, y)


@pytest.mark.parametrize("has_eos", [True, False])
def test_one_beam_a_draft_and_greedy_agree_beyond_the_block(has_eos: bool) -> None:
    model, draft = random_model(has_eos=has_eos), random_model(has_eos=has_eos)
    for p in draft.parameters():
        p.data += 0.1 * torch.randn(p.shape)
    before = model.space.parse(["a", "ab cd ab", "cd"])
    ways = [{"greedy": True}, {"beams": 1, "length_penalty": 0.0}, {"greedy": True, "draft": draft}]
    found = [model.given(before=before).sample(1, sampler=Decoding(length=60, **way)) for way in ways]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    # and greedy is what the scores say: each symbol is the likeliest given those before it
    own = model.given(before=before).log_probs(found[0])
    for k in range(model.space.symbols):
        other = found[0].clone()
        i = 20
        there = other[0, :, i] >= 0 if other.shape[-1] > i else torch.zeros(3, dtype=torch.bool)
        if there.any():
            other[0, there, i] = k
            assert (model.given(before=before).log_probs(other)[0, there, i] <= own[0, there, i] + 1e-4).all()


def test_a_stop_string_does_not_spell_the_end() -> None:
    """Texts that end before it, drawn with a draft or without, are whole."""
    model = random_model(has_eos=True)
    for draft in (None, random_model(has_eos=True)):
        decoding = Decoding(length=30, stop=("cdcdc",), draft=draft)
        drawn = model.sample(40, sampler=decoding, generator=generator())
        ended = (drawn >= 0).sum(1) < drawn.shape[1]
        assert ended.any()
        assert all("cdcdc" not in model.space.spell(row) for row in drawn[ended])


def test_windows_of_a_decoder_are_those_that_score() -> None:
    model = random_model(has_eos=False)
    x = model.space.parse(["abc d" * 9])[:, :40].clamp(min=0)
    u = torch.cat([torch.full((1, 1), -1), x], 1)
    with torch.no_grad():
        expected = model.given().log_probs(x)[0, :40]

        def log_p(logits: Tensor) -> Tensor:
            return logits.log_softmax(-1).gather(-1, x[0][:, None])[:, 0]

        one = NetDecoder(model.net, model.emission, u[:, :1], 50, stride=model.stride)
        steps = [one.logits()[0]]
        for t in range(39):
            if t % 7 == 3:  # read ahead, and go back
                one.extend(x[:, t : t + 6])
                one.rewind(min(6, 40 - t))
            one.push(x[:, t])
            steps.append(one.logits()[0])
        assert torch.allclose(log_p(torch.stack(steps)), expected, atol=1e-4)
        many = NetDecoder(model.net, model.emission, u[:, :1], 50, stride=model.stride)
        logits = torch.cat([many.logits()[:, None], many.extend(x[:, :25]), many.extend(x[:, 25:39])], 1)
        assert torch.allclose(log_p(logits[0]), expected, atol=1e-4)


def test_n_of_a_search_are_the_n_best() -> None:
    model = random_model()
    before = model.space.parse(["a", "ab c"])
    x = model.given(before=before).sample(3, sampler=Decoding(length=6, beams=40, length_penalty=0.0))
    assert x.shape[:2] == (3, 2)
    found = model.given(before=before).log_prob(x)
    assert not isinstance(found, Unavailable)
    cut = (x >= 0).sum(-1) == 6  # these are prefixes: their ends were not searched
    nats = torch.where(cut, found.nats - model.given(before=before).log_probs(x)[..., -1], found.nats)
    assert (nats[:-1] >= nats[1:] - 1e-5).all()
    with pytest.raises(UsageError, match="no 3 best"):
        model.sample(3, sampler=Decoding(beams=2))


@pytest.mark.parametrize(("alphabet", "vocabulary"), [("ab cd", 0), ("", 0), ("", 270), ("déjà vu,rctnoga", 270)])
def test_a_stream_is_the_sample(alphabet: str, vocabulary: int) -> None:
    model = random_model(alphabet, vocabulary=vocabulary)
    before = model.space.parse(["d"])
    ways = (StepByStep(30), Decoding(30, top_k=4, repetition_penalty=1.3), Decoding(30, stop=("a", "dd")))
    for sampler in ways:
        for seed in range(3):
            x = model.given(before=before).sample(1, sampler=sampler, generator=generator(seed))
            pieces = [*model.given(before=before).stream(sampler=sampler, generator=generator(seed))]
            assert "".join(pieces).rstrip("�") == model.space.spell(x[0, 0]).rstrip("�")


@pytest.mark.parametrize("vocabulary", [0, 270])
def test_an_empty_text_is_one(vocabulary: int) -> None:
    model = random_model("", vocabulary=vocabulary)
    none = model.space.parse([""])
    with torch.no_grad():
        found, whole = model.log_prob(none), model.log_prob(model.space.parse(["", "a"]))
        assert not isinstance(found, Unavailable)
        assert not isinstance(whole, Unavailable)
        assert float(found.nats[0]) == pytest.approx(float(whole.nats[0]), abs=1e-4)
    x, y = (m.sample(2, sampler=StepByStep(9), generator=generator()) for m in (model.given(), model))
    assert torch.equal(x, y)
    z = model.given(before=none).sample(2, sampler=StepByStep(9), generator=generator())
    assert torch.equal(x, z[:, 0])


def test_a_text_stops_after_its_string() -> None:
    model = random_model("", vocabulary=270)
    for seed in range(5):
        sampler = Decoding(length=60, stop=("a", "e"))
        text = model.space.spell(model.sample(1, sampler=sampler, generator=generator(seed))[0])
        assert not any(s in text[:-1] for s in "ae")


def test_streams_spell_characters_when_they_are_whole() -> None:
    model = random_model("")
    spell = model.codec.detokenizer([])
    assert [spell(b) for b in "é€".encode()] + [spell(None)] == ["", "é", "", "", "€", ""]
    assert [spell(0xE2), spell(None)] == ["", "�"]


@pytest.mark.parametrize(
    "values",
    [
        {"greedy": True, "temperature": 0.5},
        {"beams": 3, "top_k": 4},
        {"beams": 0},
        {"beams": 2, "greedy": True},
        {"beams": 2, "stop": ("x",)},
        {"length_penalty": 1.0},
        {"hasty": True},
        {"draft_symbols": 3},
        {"stop": ("",)},
        {"temperature": 0.0},
        {"top_p": 0.0},
    ],
)
def test_decodings_that_cannot_be_are_named(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Decoding(**values)


def test_contexts_and_beginnings_go_together() -> None:
    torch.manual_seed(0)
    space, context = Text("ab cd", True, 20), Label(("x", "y"))
    model, draft = (Gpt(GptConfig(width=16, layers=1, n_heads=2, block=BLOCK), space, context).eval() for _ in "12")
    for p in (*model.parameters(), *draft.parameters()):
        p.data += 0.3 * torch.randn(p.shape)
    c, before = torch.tensor([0, 1, 1]), space.parse(["a", "ab cd", "ab"])
    for way in ({"greedy": True}, {"beams": 1, "length_penalty": 0.0}, {"greedy": True, "draft": draft}):
        found = model.given(c, before=before).sample(1, sampler=Decoding(length=30, **way))[0]
        for i in range(3):  # alone each goes on as in the batch
            sampler = Decoding(length=30, greedy=True)
            alone = model.given(c[i : i + 1], before=before[i : i + 1]).sample(1, sampler=sampler)[0, 0]
            assert space.spell(alone) == space.spell(found[i])
    assert len([*model.given(c[:1]).stream()]) >= 1
    with pytest.raises(UsageError, match="not 3"):
        next(model.given(c).stream())
    sampler = Decoding(draft=random_model())
    with pytest.raises(UsageError, match="draft"):
        model.given(c).sample(1, sampler=sampler)


def test_only_symbols_are_decoded() -> None:
    space = Audio(100, 256, length=9)
    model = Gpt(Gpt.tiny(space), space)
    with pytest.raises(UsageError, match="does not answer Decoding, but StepByStep"):
        model.sample(1, sampler=Decoding(greedy=True))
    with pytest.raises(PofxError):
        next(model.given().stream())


# -------------------------------------------------------------------------------------------- scoring


@pytest.mark.parametrize(("alphabet", "vocabulary"), [("déjà vu,rctnoga", 0), ("", 0), ("", 270)])
@pytest.mark.parametrize("has_eos", [True, False])
def test_rates_are_of_one_number(alphabet: str, vocabulary: int, has_eos: bool) -> None:
    model = random_model(alphabet, has_eos=has_eos, vocabulary=vocabulary)
    texts = ["déjà vu, a cat", "a dog", "déjà déjà vu vu"]
    part = Part(model.space.parse(texts))
    counts = Counts(model)
    found = rates(model, counts, mean_log_prob(model, part, watch=counts.add))
    with torch.no_grad():
        each = [model.given().log_probs(part.x[i : i + 1])[0].double() for i in range(3)]
    surprise = torch.cat([-e[: n + has_eos] for e, n in zip(each, _steps(model, part.x), strict=True)])
    assert found.nats == pytest.approx(-float(surprise.sum()), abs=1e-3)
    assert found.symbols == len(surprise)
    assert found.perplexity_per_symbol == pytest.approx(math.exp(float(surprise.mean())), rel=1e-4)
    assert (found.characters, found.words) == (sum(map(len, texts)), 10)
    assert found.bytes == sum(len(t.encode()) for t in texts)
    bits = -found.nats / math.log(2)
    assert found.bits_per_byte * found.bytes == pytest.approx(bits)
    assert found.bits_per_character * found.characters == pytest.approx(bits)
    assert found.nats_per_character == pytest.approx(found.bits_per_character * math.log(2))
    assert math.log2(found.perplexity_per_word) * found.words == pytest.approx(bits)
    assert found.text.startswith("≤" if vocabulary else "=")
    for text, x in zip(texts, part.x, strict=True):
        row = x[x >= 0]
        stretches = marks(model, row)
        assert "".join(m.text for m in stretches) == text
        whole = model.log_prob(row[None])
        assert not isinstance(whole, Unavailable)
        assert sum(m.bits for m in stretches) == pytest.approx(-float(whole.nats.detach()) / math.log(2), rel=1e-4)
        assert (stretches[-1].text == "") == has_eos


def _steps(model: Any, x: Tensor) -> Iterator[int]:
    return (len(s) for s in model.rows_spans(x))


def test_a_text_is_tokenised_once(runs: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    tokenised, made = list[str](), Subwords.tokenizer.fget  # type: ignore[attr-defined]

    class Counting:
        def __init__(self, codec: Subwords) -> None:
            self.tokenizer = made(codec)

        def encode_batch(self, texts: list[str], **options: Any) -> Any:
            tokenised.extend(texts)
            return self.tokenizer.encode_batch(texts, **options)

    monkeypatch.setattr(Subwords, "tokenizer", property(Counting))
    texts = [f"{a} {b} {c}" for a in WORDS for b in WORDS for c in WORDS]  # more than one block, and one pass
    place = Path(runs["place"]) / "once.txt"
    place.write_text("\n".join(texts))
    assert main(["log-prob", runs["subwords"], str(place), "--out", str(place.with_suffix(".csv"))]) == 0
    assert sorted(tokenised) == sorted(texts)


def test_parts_of_a_character_are_one_stretch() -> None:
    model = random_model("", has_eos=False)
    x = model.space.parse(["aé€"])[0]
    assert [(m.text, m.symbols) for m in marks(model, x)] == [("a", 1), ("é", 2), ("€", 3)]
    broken = torch.tensor([97, 0xE2, 0x82, 98, 0xC3])  # no UTF-8: still a string of bytes
    found = marks(model, broken)
    assert "".join(m.text for m in found) == model.space.spell(broken)
    assert sum(m.symbols for m in found) == 5


def test_a_smaller_stride_sees_more(runs: dict[str, str]) -> None:
    model = read_run(runs["book"]).model
    x = model.space.parse([Path(runs["lines"]).read_text()[:300]])
    windows = (Windowed(stride=1), None, Windowed(stride=32))
    with torch.no_grad():
        fine, own, coarse = (float(model.given().log_probs(x, request=w).sum()) for w in windows)
    assert len({fine, own, coarse}) == 3


def test_the_terminal_shows_what_cannot_be_seen() -> None:
    assert visible("a\x1b[2J\n\t\u202eb") == "a\\x1b[2J\n\t\\u202eb"
    assert shown("\n") == "↵\n"
    assert shown("\r\t") == "\\r⇥\t"
    assert shown("") == "∎"
    stream = io.StringIO()
    console = Terminal(file=stream, force_terminal=True, color_system="truecolor", width=80)
    show(console, [Mark("[b]q", 0.5), Mark("\x1b", 9.0), Mark("", 3.0)])
    told = stream.getvalue()
    assert "[b]q" in told
    assert "\x1b[37;48" in told
    assert "12.50 bits over 3 symbols, the end included" in told
    assert style_of(0.99) == ""
    assert style_of(1.0) == COLOURS[1][1]
    assert style_of(1e9) == COLOURS[-1][1]
    assert "12 or more" in legend().plain


# ------------------------------------------------------------------------------------- the commands


def call(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> str:
    """Standard output of a command, or standard error of one that fails."""
    assert main([*args]) == code
    told = capsys.readouterr()
    return told.err if code else told.out


def test_sampling_from_the_command_line(runs: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    book, place = runs["book"], Path(runs["place"])
    one = call(capsys, "sample", book, "1", "--prompt", "the cat", "--length", "70", "--temperature", "0.7")
    assert one.startswith("the cat")
    assert len(one) == len("the cat") + 70 + 1
    assert len(call(capsys, "sample", book, "1", "--prompt", "", "--length", "20")) == 21
    (place / "prompts.txt").write_text("a mat\n\nthe birds sang\n")
    args = ["sample", book, "2", "--prompt", "on", "--prompts", str(place / "prompts.txt"), "--length", "40"]
    found = json.loads(call(capsys, *args, "--json", "--top-p", "0.9"))["texts"]
    assert [len(t) for t in found] == [len(p) + 40 for p in ("on", "a mat", "the birds sang") for _ in range(2)]
    assert found[2].startswith("a mat")
    call(capsys, *args, "--out", str(place / "t.jsonl"))
    assert len((place / "t.jsonl").read_text().splitlines()) == 6
    best = json.loads(call(capsys, "sample", runs["subwords"], "2", "--beams", "4", "--length", "5", "--json"))
    assert len(best["log_prob"]) == len(best["texts"]) == 2
    drafts: tuple[list[str], ...] = ([], ["--draft", runs["subwords"]])
    greedy = [call(capsys, "sample", runs["subwords"], "1", "--greedy", *draft) for draft in drafts]
    assert greedy[0] == greedy[1]
    stopped = call(capsys, "sample", runs["bytes"], "1", "--stop", "a", "--stop", "e", "--seed", "3").rstrip("\n")
    assert not any(s in stopped[:-1] for s in "ae")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["book", "--prompt", "the cat " * 9], "longer than the context of 32. Give its last 32 steps"),
        (["book", "--prompt", "Zebra"], "'Z'"),
        (["book", "--draft", "subwords"], "not those of this gpt"),
        (["book", "--temperature", "0"], "greedy decoding"),
        (["book", "--greedy", "--top-k", "3"], "cannot change"),
        (["book", "--beams", "2", "--stop", "x"], "do not go together"),
        (["book", "--beams", "1"], None),
        (["book", "--length", "0"], "length is 0"),
        (["book", "--sampler", "ddim"], "no sampler"),
        (["book", "--prompts", "nowhere.txt"], "cannot be read"),
        (["book", "--draft-symbols", "3"], "without draft"),
    ],
)
def test_wrong_ways_to_sample_are_named(
    runs: dict[str, str], capsys: pytest.CaptureFixture[str], args: list[str], says: str | None
) -> None:
    args = [runs.get(a, a) for a in args]
    if says is None:  # a search of one text has nothing to stream, and is printed when it is done
        assert call(capsys, "sample", args[0], "1", "--length", "9", *args[1:]) != "\n"
        return
    assert main(["sample", args[0], "1", *args[1:]]) in (2, 3)
    assert says in " ".join(capsys.readouterr().err.split())


def test_options_of_texts_are_refused_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    assert main(["fit", "iris", "gaussian", "--out", run, "--quiet", "--json"]) == 0
    capsys.readouterr()
    assert "beginning" in call(capsys, "sample", run, "1", "--prompt", "x", code=4)
    assert "sampler direct of this gaussian takes no --greedy; it is of no other" in call(
        capsys, "sample", run, "1", "--greedy", code=2
    )
    assert "takes no --length" in call(capsys, "sample", run, "1", "--length", "5", code=2)
    assert "texts" in call(capsys, "log-prob", run, "--show", code=2)
    assert "takes no --stride" in call(capsys, "log-prob", run, "--stride", "3", code=2)
    assert "gpt" in call(capsys, "export", run, str(tmp_path / "out"), code=4)


def test_scoring_from_the_command_line(runs: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    out = Path(runs["place"]) / "scores.csv"
    told = call(capsys, "log-prob", runs["subwords"], runs["lines"], "--out", str(out))
    for what in ("nats/char", "bits/char", "bits/byte", "perplexity per subword", "perplexity per word"):
        assert what in told
    assert "a window of 32, which moves by 16" in told
    table = pyarrow.csv.read_csv(out)
    assert {"bytes", "bits_per_byte", "log_prob"} <= set(table.column_names)
    first = table.slice(0, 1).to_pylist()[0]
    line = Path(runs["lines"]).read_text().splitlines()[0]
    assert first["bytes"] == len(line.encode())
    assert first["bits_per_byte"] == pytest.approx(-first["log_prob"] / math.log(2) / first["bytes"])
    said = json.loads(call(capsys, "log-prob", runs["subwords"], "--say", line, "--stride", "4", "--json"))
    assert said["text_rates"]["stride"] == 4
    assert "".join(t for t, _, _ in said["shown"][0]) == line
    assert sum(b for _, b, _ in said["shown"][0]) == pytest.approx(-said["nats"] / math.log(2), rel=1e-4)
    assert "bits over" in call(capsys, "log-prob", runs["book"], "--show")
    assert "'Z'" in call(capsys, "log-prob", runs["book"], "--say", "Zebra", code=3)
    assert "place of a SOURCE" in call(capsys, "log-prob", runs["book"], runs["lines"], "--say", "a", code=2)
    assert "longer than the block" in call(capsys, "log-prob", runs["book"], "--stride", "99", code=2)


def test_exports_from_the_command_line(runs: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    place = Path(runs["place"])
    told = call(capsys, "export", runs["book"], str(place / "hf"), code=4)
    assert "--options.no-marginal" in told or "relu2" in told
    assert "torch" in call(capsys, "export", runs["book"], str(place / "step"), "--format", "torch", "--length", "8")
    assert (place / "step" / "step.pt2").exists()
    assert "--format torch" in call(capsys, "export", runs["book"], str(place / "x"), "--length", "8", code=2)


def test_the_report_of_a_text_run(runs: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    place = Path(runs["place"])
    (place / "odd.txt").write_text("\n".join(["<b>a & b</b>"] * 60))
    run = str(place / "odd")
    fit = ["fit", str(place / "odd.txt"), "gpt", "--separator", "\\n", "--steps", "5", "--out", run]
    assert main([*fit, "--quiet", "--json", *TINY]) == 0
    assert main(["report", run]) == 0
    page = Path(run, "report.html").read_text()
    assert "How surprised was the model, where" in page
    assert "held-out texts" in page
    assert "<b>a" not in page
    assert "&lt;" in page
    assert ' bits"' in page
