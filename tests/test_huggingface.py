"""Checkpoints of Hugging Face: the same logits on both sides, and what cannot be read is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pofx.core.errors import CorruptCheckpoint, MissingSource, PofxError, RunExists, Unsupported
from pofx.decode.beam import beam
from pofx.decode.net import NetDecoder
from pofx.decode.strategies import collect, stream
from pofx.interop.huggingface import Checkpoint, read_checkpoint, write_checkpoint
from pofx.interop.huggingface_config import architecture
from pofx.nn.emission import TokenHead
from pofx.nn.transformer import Shape, Transformer

SIZE, BLOCK = 23, 16
ENDS = {"bos_token_id": 1, "eos_token_id": 2}
LLAMA: dict[str, Any] = {
    "vocab_size": SIZE,
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": BLOCK,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.5,
} | ENDS
GPT2 = {"vocab_size": SIZE, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": BLOCK, "initializer_range": 0.3}
QWEN2_WINDOW = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0}
THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", GPT2 | ENDS),
    "gpt2-untied": ("GPT2", GPT2 | ENDS | {"tie_word_embeddings": False, "n_inner": 24}),
    "llama": ("Llama", LLAMA),
    "llama-tied": ("Llama", LLAMA | {"tie_word_embeddings": True, "rope_parameters": {"rope_theta": 5e5}}),
    "llama-head": ("Llama", LLAMA | {"head_dim": 6, "num_key_value_heads": None}),
    "llama-bias": ("Llama", LLAMA | {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", LLAMA | {"sliding_window": 4}),
    "mistral-full": ("Mistral", LLAMA | {"sliding_window": None}),
    "qwen2": ("Qwen2", LLAMA),
    "qwen2-window": ("Qwen2", LLAMA | QWEN2_WINDOW),
    "qwen3": ("Qwen3", LLAMA | {"head_dim": 8, "tie_word_embeddings": True}),
    "qwen3-window": ("Qwen3", LLAMA | {"head_dim": 6} | QWEN2_WINDOW),
}
ROTARY: dict[str, Any] = {"positions": "rotary", "norm": "rms", "mlp": "swiglu", "qk_norm": False, "hidden": 24}
OURS: dict[str, Shape] = {
    "gpt2": Shape(16, 2, 4, block=BLOCK, positions="learned", norm="layer", mlp="gelu", qk_norm=False, bias="all"),
    "llama": Shape(16, 2, 4, block=BLOCK, **ROTARY, theta=500.0, eps=1e-3),
    "llama-bias": Shape(16, 1, 4, n_kv_heads=1, block=BLOCK, **ROTARY, bias="all"),
    "mistral": Shape(16, 2, 4, n_kv_heads=2, head_dim=6, block=BLOCK, **ROTARY, window=3),
    "qwen2": Shape(16, 2, 4, block=BLOCK, **ROTARY, bias="qkv"),
    "qwen2-window": Shape(16, 2, 4, head_dim=6, block=BLOCK, **ROTARY, bias="qkv", window=4),
    "qwen3": Shape(16, 2, 4, n_kv_heads=2, block=BLOCK, **(ROTARY | {"qk_norm": True})),
    "qwen3-window": Shape(16, 3, 2, head_dim=10, block=BLOCK, **(ROTARY | {"qk_norm": True}), window=4),
}


def transformers() -> Any:
    return pytest.importorskip("transformers", reason="needs transformers to compare with")


def shaken(module: torch.nn.Module) -> None:
    """Every parameter random: zeros and ones would hide what is swapped."""
    g = torch.Generator().manual_seed(3)
    for p in module.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=g)


def made(name: str, folder: Path, shard: str = "5GB") -> Any:
    """A small random checkpoint of theirs in ``folder``; the model."""
    kind, options = THEIRS[name]
    module = transformers()
    torch.manual_seed(0)
    name = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    model = getattr(module, name)(getattr(module, f"{kind}Config")(**options))
    shaken(model)
    model.eval().save_pretrained(folder, max_shard_size=shard)
    return model


def ours_of(checkpoint: Checkpoint) -> Callable[[Tensor], Tensor]:
    net, emission = checkpoint.build()
    net.eval()
    return lambda symbols: emission.logits(net(emission.embed(symbols)))


def symbols() -> Tensor:
    return torch.randint(0, SIZE, (3, BLOCK), generator=torch.Generator().manual_seed(1))


def agree(ours: Checkpoint, theirs: Any) -> None:
    with torch.no_grad():
        a, b = ours_of(ours)(symbols()), theirs(symbols()).logits
    assert float(b.std()) > 0.3, "the comparison would see nothing"
    assert float((a - b).abs().max()) < 1e-4


def random(shape: Shape, tied: bool) -> Checkpoint:
    torch.manual_seed(0)
    net, emission = Transformer(shape), TokenHead(SIZE, shape.width, end=2, tied=tied)
    shaken(net)
    shaken(emission)
    return Checkpoint.of(net, emission)


# ------------------------------------------------------------------------------------- the same logits


@pytest.mark.parametrize("name", THEIRS)
def test_we_compute_their_logits(name: str, tmp_path: Path) -> None:
    theirs = made(name, tmp_path / "a")
    ours = read_checkpoint(tmp_path / "a")
    agree(ours, theirs)
    assert (ours.begin, ours.end) == (1, 2)
    write_checkpoint(ours, tmp_path / "b")  # and back again: the same tensors under the same names
    a, b = (load_file(tmp_path / f / "model.safetensors") for f in "ab")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    agree(ours, transformers().AutoModelForCausalLM.from_pretrained(tmp_path / "b"))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", OURS)
def test_they_compute_our_logits(name: str, tied: bool, tmp_path: Path) -> None:
    ours = random(OURS[name], tied)
    write_checkpoint(ours, tmp_path)
    theirs, report = transformers().AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), "every tensor found its place"
    assert theirs.config.model_type == name.split("-")[0]
    agree(ours, theirs.eval())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", OURS)
def test_we_read_what_we_wrote(name: str, tied: bool, tmp_path: Path) -> None:
    ours = random(OURS[name], tied)
    write_checkpoint(ours, tmp_path)
    again = read_checkpoint(tmp_path)
    assert again.shape == replace(
        ours.shape, **{k: getattr(again.shape, k) for k in ("head_dim", "n_kv_heads", "hidden")}
    )
    assert again.state.keys() == ours.state.keys()
    assert all(torch.equal(again.state[k], ours.state[k]) for k in ours.state)
    assert (again.vocabulary, again.tied, again.begin, again.end) == (SIZE, tied, 2, 2)


@pytest.mark.parametrize("name", ["gpt2", "mistral", "qwen3-window"])
def test_we_write_what_they_write(name: str, tmp_path: Path) -> None:
    """Greedy and beam search with our cache against ``generate`` with theirs."""
    theirs = made(name, tmp_path)
    net, emission = read_checkpoint(tmp_path).build()
    prompt = symbols()[:, :4]
    same = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 9, "do_sample": False, "pad_token_id": 2}

    ours = collect(stream(NetDecoder(net.eval(), emission, prompt, 9), 9, None, end=2))
    assert torch.equal(ours.masked_fill(ours < 0, 2), theirs.generate(prompt, **same)[:, 4:])
    best = beam(NetDecoder(net, emission, prompt, 9), 9, 3, end=2).symbols[:, 0]
    wanted = theirs.generate(prompt, num_beams=3, early_stopping="never", **same)[:, 4:]
    assert torch.equal(best.masked_fill(best < 0, 2)[:, : wanted.shape[1]], wanted)


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_shards_are_one_model(name: str, tmp_path: Path) -> None:
    theirs = made(name, tmp_path, "8KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    agree(read_checkpoint(tmp_path), theirs)
    shards[1].unlink()
    with pytest.raises(MissingSource, match=shards[1].name):
        read_checkpoint(tmp_path)


def test_old_and_small_files(tmp_path: Path) -> None:
    """GPT-2 as first published: names without their first part, masks in the file, half precision; Llama 2's config."""
    theirs = made("gpt2", tmp_path / "gpt2")
    file = tmp_path / "gpt2" / "model.safetensors"
    tensors = {k.removeprefix("transformer."): v.half() for k, v in load_file(file).items()}
    tensors |= {"h.0.attn.bias": torch.ones(1, 1, BLOCK, BLOCK), "h.1.attn.masked_bias": torch.tensor(-1e4)}
    save_file(tensors, file)
    theirs.load_state_dict({k: v.half().float() for k, v in theirs.state_dict().items()})
    ours = read_checkpoint(tmp_path / "gpt2")
    agree(ours, theirs)
    assert ours.state["net.position"].dtype == torch.float32

    theirs = made("llama-tied", tmp_path / "llama")
    rewrite(tmp_path / "llama", rope_parameters=None, rope_theta=5e5, rope_scaling=None)
    agree(read_checkpoint(tmp_path / "llama"), theirs)


def test_the_tokenizer_goes_along(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers to make one")
    words = {w: i for i, w in enumerate(["a", "b", "<end>", *map(str, range(20))])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=words, merges=[]))
    tokenizer.add_special_tokens(["<end>"])
    ours = replace(random(OURS["llama"], True), tokenizer=tokenizer.to_str())
    write_checkpoint(ours, tmp_path)
    assert read_checkpoint(tmp_path).tokenizer == ours.tokenizer
    theirs = transformers().AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("ab7<end>").input_ids == [0, 1, 10, 2]
    assert theirs.eos_token == "<end>"


# ----------------------------------------------------------------------------------- what is not read


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("name", "changes", "error", "match"),
    [
        ("llama", {"model_type": "mamba"}, Unsupported, "mamba.*gpt2, llama"),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 8}}, Unsupported, "rope_type='llama3'"),
        ("llama", {"rope_parameters": None, "rope_scaling": {"type": "linear"}}, Unsupported, "rope_type='linear'"),
        ("qwen3", {"rope_parameters": {"full_attention": {"rope_theta": 5e5}}}, Unsupported, "one per kind of layer"),
        ("llama", {"partial_rotary_factor": 0.5}, Unsupported, "partial_rotary_factor=0.5"),
        ("llama", {"attention_bias": True}, Unsupported, "attention_bias"),
        ("llama", {"hidden_act": "gelu"}, Unsupported, "hidden_act='gelu'"),
        ("llama", {"quantization_config": {"bits": 4}}, Unsupported, "quantization_config"),
        ("llama", {"hidden_size": 32}, CorruptCheckpoint, r"has shape \(.*config.json says"),
        ("llama", {"num_hidden_layers": 3}, CorruptCheckpoint, "no tensor model.layers.2"),
        ("llama", {"num_hidden_layers": 1}, CorruptCheckpoint, "without a place.*model.layers.1"),
        ("llama", {"num_hidden_layers": None}, CorruptCheckpoint, "num_hidden_layers=None"),
        ("llama", {"num_attention_heads": 3}, CorruptCheckpoint, "heads"),
        ("llama", {"eos_token_id": 99}, CorruptCheckpoint, "eos_token_id=99"),
        ("llama", {"bos_token_id": None, "eos_token_id": None}, CorruptCheckpoint, "eos_token_id=None"),
        ("gpt2", {"activation_function": "gelu"}, Unsupported, "activation_function='gelu'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, Unsupported, "scale_attn"),
        ("gpt2", {"tie_word_embeddings": False}, CorruptCheckpoint, "no tensor lm_head.weight"),
        ("qwen2", QWEN2_WINDOW | {"max_window_layers": 1, "layer_types": None}, Unsupported, "same window"),
    ],
)
def test_other_variants_are_named(
    name: str, changes: dict[str, Any], error: type[PofxError], match: str, tmp_path: Path
) -> None:
    write_checkpoint(random(OURS[name], tied=name == "gpt2"), tmp_path)
    rewrite(tmp_path, **changes)
    with pytest.raises(error, match=match):
        read_checkpoint(tmp_path)


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingSource, match="config.json"):
        read_checkpoint(tmp_path / "nowhere")
    folder = tmp_path / "a"
    write_checkpoint(random(OURS["qwen2"], False), folder)
    with pytest.raises(RunExists, match="not empty"):
        write_checkpoint(random(OURS["qwen2"], False), folder)
    weights, config = (folder / "model.safetensors").read_bytes(), (folder / "config.json").read_text()
    for content in (weights[:-8], weights[:100], b"", b"not tensors at all"):
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(CorruptCheckpoint, match="damaged"):
            read_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(MissingSource, match="model.safetensors"):
        read_checkpoint(folder)
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(Unsupported, match="pickle.*save_pretrained"):
        read_checkpoint(folder)
    for index in ({"weight_map": {"lm_head.weight": "../secret.safetensors"}}, {"metadata": {}}):
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(CorruptCheckpoint, match="which file"):
            read_checkpoint(folder)
    for text in (config[:40], "[]"):
        (folder / "config.json").write_text(text)
        with pytest.raises(CorruptCheckpoint, match="config.json"):
            read_checkpoint(folder)


@pytest.mark.parametrize(
    ("shape", "match"),
    [
        (Shape(), "mlp='relu2'"),
        (replace(OURS["gpt2"], window=4), "gpt2.*window=4"),
        (replace(OURS["gpt2"], positions="rotary"), "positions='rotary'"),
        (replace(OURS["gpt2"], head_dim=6), "each=6"),
        (replace(OURS["qwen3"], bias="qkv"), "qwen2.*qk_norm=True.*--options.no-qk-norm"),
        (replace(OURS["mistral"], bias="all"), "llama.*window=3.*--options.window 0"),
    ],
)
def test_shapes_that_no_architecture_has_are_named(shape: Shape, match: str) -> None:
    with pytest.raises(Unsupported, match=match):
        architecture(shape)


def test_a_base_of_its_own_has_no_place_in_a_file() -> None:
    emission = TokenHead(SIZE, 16, end=2)
    emission.base[3] = 1.0
    with pytest.raises(Unsupported, match="log-frequencies"):
        Checkpoint.of(Transformer(OURS["llama"]), emission)
