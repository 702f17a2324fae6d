"""Language models to and from Hugging Face checkpoints: config.json, safetensors (in shards too), tokenizer.json.

    model_type  positions  norm   MLP     biases                     queries, keys   window
    gpt2        learned    layer  gelu    all                        as they are     none
    llama       rotary     rms    swiglu  none or all                as they are     none
    mistral     rotary     rms    swiglu  none                       as they are     all layers or none
    qwen2       rotary     rms    swiglu  queries, keys and values   as they are     all layers or none
    qwen3       rotary     rms    swiglu  none                       rms per head    all layers or none

Only safetensors are read: a pickle can run code. transformers itself is not needed. Dropout belongs to training
and is not taken over.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from pofx.core.errors import RunExists, Unsupported
from pofx.core.files import write_atomic, write_json
from pofx.interop.huggingface_config import CLASSES, Config, architecture, config_of, ends_of, kind_of, shape_of
from pofx.interop.huggingface_tensors import Tensors, joined, parted, places, read_json
from pofx.nn.emission import TokenHead
from pofx.nn.transformer import Shape, Transformer


@dataclass(frozen=True)
class Checkpoint:
    """A language model outside any family: a transformer between a table of symbols and logits of the next one.

    Attributes:
        shape: of the transformer.
        vocabulary: symbols, with those that begin and end a text.
        tied: one matrix embeds symbols and reads them out.
        begin, end: the symbols that begin and end a text; often the same.
        state: ``state_dict`` of a module with ``net`` (Transformer) and ``emission`` (TokenHead), float32.
        tokenizer: the text of tokenizer.json; None where there is none.
    """

    shape: Shape
    vocabulary: int
    tied: bool
    begin: int
    end: int
    state: dict[str, Tensor]
    tokenizer: str | None = None

    @classmethod
    def of(cls, net: Transformer, emission: TokenHead, tokenizer: str | None = None) -> Checkpoint:
        """What ``write_checkpoint`` writes of a model's parts.

        Raises Unsupported where the emission has a start of its own for each symbol, which no file can hold. That
        an end is impossible is left out: in a file its logit is what the weights give.
        """
        base = emission.base[emission.base.isfinite()]
        if float(base.max() - base.min()) != 0:
            raise Unsupported(
                "This model adds the symbols' own log-frequencies to its logits; Hugging Face's architectures do not.",
                "Fit it without them: --options.no-marginal.",
            )
        state = {f"net.{k}": v for k, v in net.state_dict().items()}
        state |= {f"emission.{k}": v for k, v in emission.state_dict().items()}
        size = len(emission.table.weight)
        return cls(net.shape, size, emission.out is None, emission.begin, emission.end, state, tokenizer)

    def build(self) -> tuple[Transformer, TokenHead]:
        """The transformer and the emission, with the checkpoint's weights."""
        net = Transformer(self.shape)
        emission = TokenHead(self.vocabulary, self.shape.width, end=self.end, begin=self.begin, tied=self.tied)
        for name, part in (("net.", net), ("emission.", emission)):
            part.load_state_dict({k.removeprefix(name): v for k, v in self.state.items() if k.startswith(name)})
        return net, emission


def read_checkpoint(folder: str | Path) -> Checkpoint:
    """Read a folder of a Hugging Face causal language model.

    Raises MissingSource (no folder, config, weights or shard), CorruptCheckpoint (damaged, or weights that do
    not fit the config), Unsupported (another architecture or variant; weights in pickles).
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    kind = kind_of(config, folder)
    shape, vocabulary, tied = shape_of(kind, config, folder)
    begin, end = ends_of(config, vocabulary, folder)
    with ExitStack() as stack:
        tensors = Tensors(folder, kind, stack)
        state = {p.ours: joined(p, tensors) for p in places(kind, shape, vocabulary, tied)}
        tensors.all_used(tied)
    state["emission.base"] = torch.zeros(vocabulary)
    file = folder / "tokenizer.json"
    return Checkpoint(shape, vocabulary, tied, begin, end, state, file.read_text() if file.is_file() else None)


def write_checkpoint(checkpoint: Checkpoint, folder: str | Path) -> None:
    """Write a folder that transformers' AutoModelForCausalLM and AutoTokenizer read, in the one architecture that fits.

    Raises Unsupported where none does, RunExists where the folder has content, CannotSave.
    """
    folder, shape = Path(folder), checkpoint.shape
    kind = architecture(shape)
    if folder.is_dir() and any(folder.iterdir()):
        raise RunExists(f"{folder} exists and is not empty.", "Choose another folder.")
    tensors: dict[str, Tensor] = {}
    for place in places(kind, shape, checkpoint.vocabulary, checkpoint.tied):
        tensors |= parted(place, checkpoint.state[place.ours])
    config = {
        "architectures": [CLASSES[kind]],
        "model_type": kind,
        "vocab_size": checkpoint.vocabulary,
        "tie_word_embeddings": checkpoint.tied,
        "bos_token_id": checkpoint.begin,
        "eos_token_id": checkpoint.end,
        "dtype": str(checkpoint.state["emission.table.weight"].dtype).removeprefix("torch."),
    }
    write_atomic(folder / "model.safetensors", save(tensors, metadata={"format": "pt"}))
    if checkpoint.tokenizer is not None:
        write_atomic(folder / "tokenizer.json", checkpoint.tokenizer.encode())
        write_json(folder / "tokenizer_config.json", _tokenizer_config(checkpoint))
    write_json(folder / "config.json", config | config_of(kind, shape))  # last: a folder without it is no checkpoint


def _tokenizer_config(checkpoint: Checkpoint) -> Config:
    config: Config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": checkpoint.shape.block}
    words = {t["id"]: t["content"] for t in json.loads(checkpoint.tokenizer or "{}").get("added_tokens", [])}
    for name, symbol in (("bos_token", checkpoint.begin), ("eos_token", checkpoint.end)):
        if symbol in words:
            config[name] = words[symbol]
    return config
