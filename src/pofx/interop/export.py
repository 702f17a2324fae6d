"""One step of a language model as a program that needs no pofx: torch.export's ExportedProgram.

    logits, keys, values = step(symbols, place, keys, values)

All shapes are fixed: the cache is a pair of tensors that go in and come out, so that any runtime that reads
ExportedPrograms can hold it. A text begins with the symbol ``begin`` at place 0 and caches of zeros.
"""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from pofx.core.errors import RunExists, UsageError
from pofx.core.files import write_atomic, write_json
from pofx.core.model import Model
from pofx.interop.model import text_parts, tokenizer_of
from pofx.nn.emission import TokenHead
from pofx.nn.transformer import Transformer, attention, block


class Step(nn.Module):
    """Reads one symbol of each of n texts and gives the logits of the next."""

    def __init__(self, net: Transformer, emission: TokenHead) -> None:
        super().__init__()
        self.net, self.emission = net, emission

    def forward(self, symbols: Tensor, place: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            symbols: [n] int64.
            place: [1] int64: how many symbols were read before.
            keys, values: [layers, n, heads of keys, length, width of a head]: of the symbols read before.

        Returns:
            Logits [n, V] of the next symbol; keys and values with those of this one.
        """
        net, shape = self.net, self.net.shape
        x = self.emission.embed(symbols[:, None])
        if net.position is not None:
            x = x + net.position.index_select(0, place)
        rotation = None if net.rotation is None else net.rotation.index_select(1, place)[:, :, None]
        at = torch.arange(keys.shape[3], device=keys.device)
        seen = at <= place
        if shape.window:
            seen = seen & (at > place - shape.window)
        kept: list[tuple[Tensor, Tensor]] = []

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            i, here = len(kept), (at == place)[:, None]
            ks, vs = (torch.where(here, new.transpose(1, 2), old[i]) for new, old in ((k, keys), (v, values)))
            kept.append((ks, vs))
            return attention(shape, q, ks, vs, seen[None])

        for layer in net.layers:
            x = block(layer, x, rotation, attend)
        new_keys, new_values = (torch.stack(new) for new in zip(*kept, strict=True))
        return self.emission.logits(net.norm(x)[:, 0]), new_keys, new_values


def export_step(model: Model, texts: int = 1, length: int | None = None) -> ExportedProgram:
    """One step of a gpt over texts.

    Args:
        model: a gpt without context.
        texts: n, how many are written at once.
        length: of the cache, the longest text in symbols; the model's block unless said.

    Raises Unsupported for another family, UsageError for impossible sizes.
    """
    net, emission, _ = text_parts(model)
    block = net.shape.block
    length = block if length is None else length
    if texts < 1 or not 1 <= length <= block:
        raise UsageError(f"{texts} texts of {length} symbols have no step.", f"Give 1 or more texts of 1 to {block}.")
    step = Step(net, emission).eval()
    with torch.no_grad():
        return torch.export.export(step, example(model, texts, length))


def example(model: Model, texts: int, length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The inputs of the first step: the beginning, at place 0, with empty caches."""
    net, emission, _ = text_parts(model)
    shape = net.shape
    cache = net.layers[0].qkv.weight.new_zeros(shape.layers, texts, shape.groups, length, shape.each)
    begin = torch.full((texts,), emission.begin, device=cache.device)
    return begin, torch.zeros(1, dtype=torch.int64, device=cache.device), cache, torch.zeros_like(cache)


def write_step(model: Model, folder: str | Path, texts: int = 1, length: int | None = None) -> None:
    """step.pt2 (read it with torch.export.load), step.json with its sizes, tokenizer.json with its symbols.

    Raises RunExists where the folder has content, CannotSave.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise RunExists(f"{folder} exists and is not empty.", "Choose another folder.")
    program, (_, emission, space) = export_step(model, texts, length), text_parts(model)
    content = io.BytesIO()
    torch.export.save(program, content)
    cache = list(example(model, texts, length or text_parts(model)[0].shape.block)[2].shape)
    write_atomic(folder / "step.pt2", content.getvalue())
    write_atomic(folder / "tokenizer.json", tokenizer_of(model).encode())
    write_json(folder / "step.json", {
        "inputs": ["symbols", "place", "keys", "values"], "outputs": ["logits", "keys", "values"], "texts": texts,
        "cache": cache, "begin": emission.begin, "end": emission.end if space.has_eos else None,
    })  # fmt: skip
