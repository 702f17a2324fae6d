"""Language models for others: Hugging Face folders in both directions, and a step as a program; the same numbers."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pofx.cli import main
from pofx.codecs.steps import SPELLING, Subwords
from pofx.core.errors import BadValue, MissingSource, RunExists, Unsupported, UsageError
from pofx.core.likelihood import LowerBound
from pofx.core.requests import Decoding
from pofx.families.sequence import Gpt, GptConfig, Rnn
from pofx.interop.export import example, export_step, write_step
from pofx.interop.model import is_checkpoint, read_model, write_model
from pofx.nn.emission import TokenHead
from pofx.spaces import Label, Text

TEXTS = ["the cat sat on the mat", "a dog ran", "the dog sat on a cat", "naïve cats, déjà vu"] * 20
SIZES: dict[str, Any] = {"width": 16, "layers": 2, "n_heads": 2, "block": 24, "marginal": False}
SIZES |= {"norm": "rms", "mlp": "swiglu"}  # a Qwen3
GPT2: dict[str, Any] = {"positions": "learned", "norm": "layer", "mlp": "gelu", "bias": "all", "qk_norm": False}


def transformers() -> Any:
    return pytest.importorskip("transformers", reason="needs transformers to compare with")


def made(symbols: str, *, has_eos: bool = True, **options: Any) -> Gpt:
    """A random gpt over characters, bytes or subwords."""
    torch.manual_seed(0)
    alphabet = "" if symbols == "bytes" else "".join(sorted(set("".join(TEXTS))))
    config = GptConfig(**(SIZES | options), vocabulary=300 if symbols == "subwords" else 0)
    model = Gpt(config, Text(alphabet, has_eos, 40))
    if isinstance(model.codec, Subwords):
        model.codec.learn(TEXTS)
    for p in model.parameters():
        p.data += 0.2 * torch.randn(p.shape)
    return model.eval()


def logits_of(model: Gpt, u: Tensor) -> Tensor:
    """After fill and each of the symbols u [N, L]."""
    assert isinstance(model.emission, TokenHead)
    fill = u.new_full((len(u), 1), -1)
    with torch.no_grad():
        return model.emission.logits(model.net(model.emission.embed(torch.cat([fill, u], 1))))


# ---------------------------------------------------------------------------------- to Hugging Face


@pytest.mark.parametrize("has_eos", [True, False])
@pytest.mark.parametrize("symbols", ["characters", "bytes", "subwords"])
def test_transformers_reads_what_is_exported(symbols: str, has_eos: bool, tmp_path: Path) -> None:
    auto = transformers()
    model = made(symbols, has_eos=has_eos, tied=symbols == "bytes")
    note = write_model(model, tmp_path)
    assert (note is None) == has_eos
    theirs = auto.AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = auto.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("the cat sat", "déjà vu, a cat"):
        u = model.codec.encode(model.space.parse([text]))
        ids = tokenizer(text, return_tensors="pt").input_ids
        assert torch.equal(ids[:, 1:], u), "our symbols, after the one that begins"
        assert tokenizer.decode(ids[0], skip_special_tokens=True) == text
        with torch.no_grad():
            ours, found = logits_of(model, u), theirs(ids).logits
        if not has_eos:  # the end of an excerpt has no probability here; there it is suppressed
            assert isinstance(model.emission, TokenHead)
            assert theirs.generation_config.suppress_tokens == [model.emission.end]
            ours, found = (x[..., : model.emission.end] for x in (ours, found))
        assert float(ours.std()) > 0.1
        assert float((ours - found).abs().max()) < 1e-4


def test_an_architecture_of_theirs_computes_each_variant(tmp_path: Path) -> None:
    auto = transformers()
    for i, options in enumerate((GPT2, {"qk_norm": False}, {"qk_norm": False, "bias": "qkv"}, {"window": 5})):
        model = made("characters", **options)
        write_model(model, tmp_path / str(i))
        theirs = auto.AutoModelForCausalLM.from_pretrained(tmp_path / str(i))
        u = model.codec.encode(model.space.parse(["the cat sat on a mat"]))
        assert isinstance(model.emission, TokenHead)
        ids = torch.cat([torch.tensor([[model.emission.begin]]), u], 1)
        with torch.no_grad():
            assert float((logits_of(model, u) - theirs(ids).logits).abs().max()) < 1e-4


def test_what_no_file_can_hold_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"qwen3, .* Fit with --options\.norm rms --options\.mlp swiglu\.$"):
        write_model(made("characters", mlp="relu2", norm="layer"), tmp_path)
    with pytest.raises(Unsupported, match=r"gpt2, .* Fit with --options\.no-qk-norm\.$"):
        write_model(made("characters", **(GPT2 | {"qk_norm": True})), tmp_path)
    model = made("characters", marginal=True)
    assert isinstance(model.emission, TokenHead)
    model.emission.prepare(torch.tensor([1, 2, 2]), 1)
    with pytest.raises(Unsupported, match=r"--options\.no-marginal"):
        write_model(model, tmp_path)
    space = Text("abc", True, 9)
    with pytest.raises(Unsupported, match="rnn"):
        write_model(Rnn(Rnn.tiny(space), space), tmp_path)
    with pytest.raises(Unsupported, match="context"):
        write_model(Gpt(Gpt.tiny(space), space, Label(("x", "y"))), tmp_path)
    assert not [*tmp_path.iterdir()]


def test_without_marginal_symbols_start_alike() -> None:
    for marginal in (True, False):
        model = Gpt(dataclasses.replace(GptConfig(**SIZES), marginal=marginal), Text("abc", True, 9))
        model.prepare(model.space.parse(["aab", "aaa"]), None, None, torch.Generator().manual_seed(0))
        assert isinstance(model.emission, TokenHead)
        assert bool((model.emission.base == 0).all()) != marginal


# -------------------------------------------------------------------------------- from Hugging Face


def theirs_in(folder: Path, block: int = 32) -> Any:
    """A small random GPT-2 with a byte-level tokenizer in a folder; another symbol begins than ends."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    module = transformers()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(1)
    sizes = {"vocab_size": tokenizer.get_vocab_size(), "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": block}
    config = module.GPT2Config(**sizes, initializer_range=0.4, bos_token_id=0, eos_token_id=1)
    model = module.GPT2LMHeadModel(config).eval()
    model.save_pretrained(folder)
    return model


def test_a_checkpoint_scores_what_transformers_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = theirs_in(tmp_path / "hf")
    assert is_checkpoint(tmp_path / "hf")
    model = read_model(tmp_path / "hf").model
    assert isinstance(model, Gpt)
    x = model.space.parse(["the cat sat on déjà vu"])
    u = model.codec.encode(x)
    ids = torch.cat([torch.tensor([[0]]), u, torch.tensor([[1]])], 1)  # <s> ... </s>
    with torch.no_grad():
        log_p = theirs(ids).logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
        found = model.log_prob(x)
    assert isinstance(found, LowerBound)
    assert float(found.nats) == pytest.approx(float(log_p.sum()), abs=1e-3)

    assert main(["log-prob", str(tmp_path / "hf"), "--say", "the cat sat on déjà vu", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["nats"] == pytest.approx(float(log_p.sum()), abs=1e-3)
    assert told["text_rates"]["symbol"] == "subword"
    (tmp_path / "t.txt").write_text("\n".join(TEXTS))
    assert main(["log-prob", str(tmp_path / "hf"), str(tmp_path / "t.txt"), "--stride", "5"]) == 0
    assert "perplexity per subword" in capsys.readouterr().out
    assert main(["log-prob", str(tmp_path / "hf")]) == 2
    assert "Name a SOURCE" in capsys.readouterr().err

    assert main(["sample", str(tmp_path / "hf"), "1", "--prompt", "the cat", "--length", "5", "--greedy"]) == 0
    start = tuple(torch.cat([torch.tensor([[0]]), model.codec.encode(model.space.parse(["the cat"]))], 1)[0].tolist())
    ids = torch.tensor([start])
    for _ in range(5):
        with torch.no_grad():
            ids = torch.cat([ids, theirs(ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert isinstance(model.codec, Subwords)
    expected = model.codec.tokenizer.decode(ids[0].tolist())
    told = capsys.readouterr().out.rstrip("\n�")
    assert expected.split("</s>")[0].startswith(told)
    assert len(told.encode()) <= len("the cat") + 5


def test_a_checkpoint_goes_through_and_comes_back(tmp_path: Path) -> None:
    theirs_in(tmp_path / "a")
    first = read_model(tmp_path / "a").model
    write_model(first, tmp_path / "b")
    assert not (tmp_path / "b" / "generation_config.json").exists()
    again = read_model(tmp_path / "b").model
    x = first.space.parse(["a dog sat"])
    for model in (first, again):
        assert isinstance(model, Gpt)
        assert isinstance(model.emission, TokenHead)
        assert (model.emission.begin, model.emission.end) == (0, 1)
        assert not model.emission.base.any()
    with torch.no_grad():
        assert torch.equal(first.given().log_probs(x), again.given().log_probs(x))


@pytest.mark.parametrize("has_eos", [True, False])
@pytest.mark.parametrize("symbols", ["characters", "bytes", "subwords"])
def test_our_own_export_reads_as_the_same_model(symbols: str, has_eos: bool, tmp_path: Path) -> None:
    model = made(symbols, has_eos=has_eos)
    write_model(model, tmp_path)
    again = read_model(tmp_path).model
    text = "the dog sat on déjà vu, cats a"
    with torch.no_grad():
        a, b = (m.log_prob(m.space.parse([text])) for m in (model, again))
    assert float(a.nats) == pytest.approx(float(b.nats), abs=1e-3)
    assert isinstance(b, LowerBound)


def test_a_folder_without_a_tokenizer_and_one_that_loses_text(tmp_path: Path) -> None:
    theirs_in(tmp_path / "hf")
    file = tmp_path / "hf" / "tokenizer.json"
    described = json.loads(file.read_text())
    described["normalizer"] = {"type": "Lowercase"}
    file.write_text(json.dumps(described))
    model = read_model(tmp_path / "hf").model
    model.log_prob(model.space.parse(["the cat"]))
    with pytest.raises(BadValue, match="'The cat' comes back as 'the cat'"):
        model.log_prob(model.space.parse(["The cat"]))
    file.unlink()
    with pytest.raises(MissingSource, match=r"tokenizer\.json"):
        read_model(tmp_path / "hf")


def test_a_tokenizer_that_begins_with_a_space_goes_on_with_one(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    theirs_in(tmp_path / "hf")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.train_from_iterator(["the cat sat on"] * 9, trainers.BpeTrainer(vocab_size=60, show_progress=False))
    tokenizer.save(str(tmp_path / "hf" / "tokenizer.json"))
    model = read_model(tmp_path / "hf").model
    assert isinstance(model, Gpt)
    assert isinstance(model.codec, Subwords)
    whole, start = ("the cat sat on", "the cat")
    ids, before = (model.codec.encode(model.space.parse([t])) for t in (whole, start))
    after = model.codec.decode_after(before, ids[:, before.shape[1] :])
    assert isinstance(model.space, Text)
    assert model.space.spell(after[0]) == " sat on"


def test_bytes_have_the_characters_of_gpt2() -> None:
    from tokenizers import pre_tokenizers

    assert sorted(SPELLING) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert SPELLING[ord(" ")] == "Ġ"


# ----------------------------------------------------------------------------------------- the step


@pytest.mark.parametrize("options", [{}, GPT2, {"window": 4}, {"n_heads": 4, "n_kv_heads": 2, "mlp": "relu2"}])
def test_the_exported_step_gives_the_logits(options: dict[str, Any], tmp_path: Path) -> None:
    model = made("characters", **options)
    write_step(model, tmp_path / "step", texts=2, length=12)
    program = torch.export.load(tmp_path / "step" / "step.pt2").module()
    u = model.codec.encode(model.space.parse(["the cat sat", "a dog ran o"]))
    symbols, place, keys, values = example(model, 2, 12)
    expected = logits_of(model, u)
    for t in range(12):
        with torch.no_grad():
            logits, keys, values = program(symbols, place + t, keys, values)
        assert float((logits - expected[:, t]).abs().max()) < 1e-5
        symbols = u[:, t] if t < u.shape[1] else symbols
    about = json.loads((tmp_path / "step" / "step.json").read_text())
    assert about["cache"] == list(keys.shape)
    with pytest.raises(RunExists):
        write_step(model, tmp_path / "step")


def test_a_step_has_possible_sizes() -> None:
    for texts, length in ((0, 5), (1, 0), (1, 25)):
        with pytest.raises(UsageError, match="1 to 24"):
            export_step(made("characters"), texts, length)


def test_greedy_texts_of_export_and_model_agree() -> None:
    model = made("characters")
    program = export_step(model, 1, 20).module()
    symbols, place, keys, values = example(model, 1, 20)
    drawn: list[int] = []
    for t in range(12):
        with torch.no_grad():
            logits, keys, values = program(symbols, place + t, keys, values)
        symbols = logits.argmax(-1)
        drawn.append(int(symbols))
    found = model.sample(1, sampler=Decoding(length=12, greedy=True))[0]
    assert isinstance(model.emission, TokenHead)
    whole = drawn[: drawn.index(model.emission.end)] if model.emission.end in drawn else drawn
    assert found[found >= 0].tolist() == whole
    with torch.no_grad():
        assert math.isfinite(float(model.log_prob(found[None]).nats))
