"""The tensors of Hugging Face checkpoints: which of theirs is which of ours, and their files."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pofx.core.errors import CorruptCheckpoint, MissingSource, Unsupported
from pofx.nn.transformer import Shape


@dataclass(frozen=True)
class Place:
    """Our tensor, and those of theirs that stand in it one below the other.

    ``sizes`` are the shapes of theirs; ``turned``: theirs are [in, out], ours [out, in] (GPT-2's Conv1D).
    """

    ours: str
    theirs: tuple[str, ...]
    sizes: tuple[tuple[int, ...], ...]
    turned: bool = False


def places(kind: str, shape: Shape, vocabulary: int, tied: bool) -> list[Place]:
    """Every tensor of a checkpoint of this kind."""
    found = (_gpt2_places if kind == "gpt2" else _llama_places)(shape)
    prefix = "transformer.wte" if kind == "gpt2" else "model.embed_tokens"
    table = ((vocabulary, shape.width),)
    found.append(Place("emission.table.weight", (f"{prefix}.weight",), table))
    if not tied:
        found.append(Place("emission.out.weight", ("lm_head.weight",), table))
    return found


def _gpt2_places(shape: Shape) -> list[Place]:
    w, inner = shape.width, shape.inner
    found = [Place("net.position", ("transformer.wpe.weight",), ((shape.block, w),))]
    norms, linears = [("net.norm", "transformer.ln_f")], []
    for i in range(shape.layers):
        a, b = f"net.layers.{i}", f"transformer.h.{i}"
        norms += [(f"{a}.norm1", f"{b}.ln_1"), (f"{a}.norm2", f"{b}.ln_2")]
        linears += [
            (f"{a}.qkv", f"{b}.attn.c_attn", w, 3 * w),
            (f"{a}.out", f"{b}.attn.c_proj", w, w),
            (f"{a}.up", f"{b}.mlp.c_fc", w, inner),
            (f"{a}.down", f"{b}.mlp.c_proj", inner, w),
        ]
    for a, b in norms:
        found += [Place(f"{a}.{k}", (f"{b}.{k}",), ((w,),)) for k in ("weight", "bias")]
    for a, b, enter, leave in linears:
        found.append(Place(f"{a}.weight", (f"{b}.weight",), ((enter, leave),), turned=True))
        found.append(Place(f"{a}.bias", (f"{b}.bias",), ((leave,),)))
    return found


def _llama_places(shape: Shape) -> list[Place]:
    w, inner, q, k = shape.width, shape.inner, shape.n_heads * shape.each, shape.groups * shape.each
    full, some = shape.bias == "all", shape.bias != "none"
    found = [Place("net.norm.weight", ("model.norm.weight",), ((w,),))]
    for i in range(shape.layers):
        a, b = f"net.layers.{i}", f"model.layers.{i}"
        norms = [("norm1.weight", "input_layernorm", w), ("norm2.weight", "post_attention_layernorm", w)]
        if shape.qk_norm:
            norms += [("q_norm", "self_attn.q_norm", shape.each), ("k_norm", "self_attn.k_norm", shape.each)]
        found += [Place(f"{a}.{ours}", (f"{b}.{theirs}.weight",), ((size,),)) for ours, theirs, size in norms]
        for ours, theirs, enter, leave, bias in (
            ("qkv", [f"self_attn.{x}_proj" for x in "qkv"], w, (q, k, k), some),
            ("out", ["self_attn.o_proj"], q, (w,), full),
            ("up", ["mlp.gate_proj", "mlp.up_proj"], w, (inner, inner), full),
            ("down", ["mlp.down_proj"], inner, (w,), full),
        ):
            sizes = tuple((n, enter) for n in leave)
            found.append(Place(f"{a}.{ours}.weight", tuple(f"{b}.{x}.weight" for x in theirs), sizes))
            if bias:
                sizes_ = tuple((n,) for n in leave)
                found.append(Place(f"{a}.{ours}.bias", tuple(f"{b}.{x}.bias" for x in theirs), sizes_))
    return found


def joined(place: Place, tensors: Tensors) -> Tensor:
    """Our tensor of this place, float32, of theirs."""
    whole = torch.cat([tensors.take(n, s).float() for n, s in zip(place.theirs, place.sizes, strict=True)])
    return (whole.T if place.turned else whole).contiguous()


def parted(place: Place, whole: Tensor) -> dict[str, Tensor]:
    """Theirs of ours, each in memory of its own: the inverse of ``joined``."""
    whole = whole.detach().cpu()
    parts = (whole.T,) if place.turned else whole.split([size[0] for size in place.sizes])
    return {name: part.contiguous().clone() for name, part in zip(place.theirs, parts, strict=True)}


class Tensors:
    """The tensors of a folder by their full names, read one by one."""

    def __init__(self, folder: Path, kind: str, stack: ExitStack) -> None:
        self.folder, self.kind, self.used = folder, kind, set[str]()
        index = folder / "model.safetensors.index.json"
        files = [folder / "model.safetensors"]
        if not files[0].is_file():
            if not index.is_file():
                raise without_weights(folder)
            names = read_json(index).get("weight_map")
            if not isinstance(names, dict) or any(Path(str(n)).name != n for n in names.values()):
                raise CorruptCheckpoint(f"{index} does not say which file holds which tensor.", "Get it again.")
            files = [folder / name for name in sorted(set(names.values()))]
        self.where: dict[str, tuple[Any, str]] = {}  # full name -> the open file, the name in it
        for file in files:
            if not file.is_file():
                raise MissingSource(f"{folder} lacks {file.name}, one of {len(files)} shards.", "Get it, too.")
            try:
                opened = stack.enter_context(safe_open(file, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise CorruptCheckpoint(f"{file} is damaged or cut short: {error}.", "Get it again.") from error
            self.where |= {self._full(name): (opened, name) for name in opened.keys()}  # noqa: SIM118 (no mapping)

    def _full(self, name: str) -> str:
        """Names without the first part are those of the model without its head, as GPT-2's are published."""
        prefix = "transformer." if self.kind == "gpt2" else "model."
        return name if name.startswith((prefix, "lm_head.")) else prefix + name

    def take(self, name: str, size: tuple[int, ...]) -> Tensor:
        if name not in self.where:
            raise CorruptCheckpoint(
                f"{self.folder} has no tensor {name}, which its config.json asks for.", "Get the whole checkpoint."
            )
        self.used.add(name)
        tensor: Tensor = self.where[name][0].get_tensor(self.where[name][1])
        if tuple(tensor.shape) != size:
            raise CorruptCheckpoint(
                f"{name} in {self.folder} has shape {tuple(tensor.shape)}; its config.json says {size}.",
                "Get weights and config.json from the same place.",
            )
        return tensor

    def all_used(self, tied: bool) -> None:
        """Raises CorruptCheckpoint where a tensor has no place."""
        # old files keep masks and frequencies, which follow from the config
        derived = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
        left = {n for n in self.where if n not in self.used and not n.endswith(derived)}
        left -= {"lm_head.weight"} if tied else set()
        if left:
            raise CorruptCheckpoint(
                f"{self.folder} holds {len(left)} tensors without a place in a {self.kind}, e.g. {min(left)}.",
                "Read a causal language model without adapters or other heads.",
            )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises MissingSource, CorruptCheckpoint."""
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingSource(
            f"{path.parent} has no {path.name}.", "Give the folder of a Hugging Face checkpoint."
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorruptCheckpoint(f"{path} is damaged: {error}.", "Get it again.") from error
    if not isinstance(content, dict):
        raise CorruptCheckpoint(f"{path} holds a {type(content).__name__}, not an object.", "Get it again.")
    return content


def without_weights(folder: Path) -> MissingSource | Unsupported:
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if pickles:
        return Unsupported(
            f"{folder} has its weights in {pickles[0]}, a pickle, which can run any code when it is read.",
            "Use the repository's safetensors, or convert where you trust the file: "
            "AutoModelForCausalLM.from_pretrained(old).save_pretrained(new).",
        )
    return MissingSource(f"{folder} has no model.safetensors.", "Get the weights, too.")
