"""Language models of Hugging Face as models of this library, and the other way round.

A checkpoint becomes a ``gpt`` over strings of bytes: its tokenizer cuts a string into subwords in one of many ways,
so that the likelihood is a lower bound of the string's.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from pofx.codecs.steps import SPELLING, PretrainedTokenizer, Subwords
from pofx.core.errors import BadValue, MissingSource, Unsupported
from pofx.core.files import write_json
from pofx.core.model import Model
from pofx.core.space import Space
from pofx.families.sequence import Gpt, GptConfig
from pofx.interop.huggingface import Checkpoint, read_checkpoint, write_checkpoint
from pofx.nn.emission import TokenHead
from pofx.nn.transformer import Transformer
from pofx.spaces import Text
from pofx.train.run import Run

END = "<|endoftext|>"  # the end of a text, among the special tokens of what is written


def is_checkpoint(folder: Path) -> bool:
    """Does the folder hold a Hugging Face model? Its config.json has the type of one, a run's its format."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "model_type" in config and "format" not in config


def read_model(folder: str | Path) -> Run:
    """A checkpoint as a run: a fitted model, with neither data nor a log.

    Raises the errors of ``read_checkpoint``, and MissingSource where there is no tokenizer.json.
    """
    folder = Path(folder)
    checkpoint = read_checkpoint(folder)
    if checkpoint.tokenizer is None:
        raise MissingSource(
            f"{folder} has no tokenizer.json, without which no text can be read.",
            "Write it: AutoTokenizer.from_pretrained(folder).save_pretrained(folder).",
        )
    _fits(checkpoint.tokenizer, checkpoint.vocabulary, folder)
    shape = {f.name: getattr(checkpoint.shape, f.name) for f in dataclasses.fields(checkpoint.shape)}
    # an embedding has no fewer rows than a text has bytes: the codec is that of subwords, whatever their number
    config = GptConfig(**shape, vocabulary=max(256, checkpoint.vocabulary), tied=checkpoint.tied, marginal=False)
    space = Text("", has_eos=not _endless(folder, checkpoint.end), length=checkpoint.shape.block)
    with torch.device("meta"):  # the weights come from the checkpoint: there is no need for others before
        model = Gpt(config, space)
    model.net, emission = checkpoint.build()
    if not space.has_eos:
        emission.forbid_end()
    model.emission = emission
    model.codec = codec = PretrainedTokenizer(space, config.vocabulary)
    codec.take(checkpoint.tokenizer)
    model.eval()
    return Run(model, {"family": Gpt.name, "data": {"source": None}}, path=folder)


def _fits(tokenizer: str, vocabulary: int, folder: Path) -> None:
    """Raises BadValue where the tokenizer has symbols that the model has not."""
    from tokenizers import Tokenizer

    symbols = Tokenizer.from_str(tokenizer).get_vocab(with_added_tokens=True)
    if symbols and max(symbols.values()) >= vocabulary:
        raise BadValue(
            f"{folder}'s tokenizer.json numbers symbols up to {max(symbols.values())}; the model has {vocabulary}.",
            "Put the tokenizer.json that belongs to this checkpoint into the folder.",
        )


def _endless(folder: Path, end: int) -> bool:
    """Does the folder say that the end is never drawn, as ``write_model`` says of excerpts?"""
    try:
        said = json.loads((folder / "generation_config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(said, dict) and end in (said.get("suppress_tokens") or [])


def write_model(model: Model, folder: str | Path) -> str | None:
    """Write a gpt over texts as a folder that transformers reads; a note on what the files cannot say.

    The tokenizer is one of characters, bytes or subwords, as the model's. Raises Unsupported for another family,
    for a model with a context, and where no architecture of Hugging Face computes the same; RunExists, CannotSave.
    """
    net, emission, space = text_parts(model)
    checkpoint = Checkpoint.of(net, emission, tokenizer_of(model))
    write_checkpoint(checkpoint, folder)
    if space.has_eos:
        return None
    write_json(Path(folder) / "generation_config.json", {
        "bos_token_id": emission.begin, "eos_token_id": emission.end, "suppress_tokens": [emission.end],
    })  # fmt: skip
    return f"Excerpts have no end: generation_config.json suppresses {END}, whose logit in the files means nothing."


def text_parts(model: Model) -> tuple[Transformer, TokenHead, Space]:
    """The net, the emission and the space of a gpt over texts. Raises Unsupported for anything else."""
    if not isinstance(model, Gpt) or model.space.alphabet is None:
        raise Unsupported(f"This is a {model.name} over {model.space}.", "Export a gpt that was fitted to texts.")
    if model.context is not None:
        raise Unsupported(f"This gpt takes a context ({model.context}).", "Export one that was fitted without --given.")
    assert isinstance(model.net, Transformer)
    assert isinstance(model.emission, TokenHead)
    return model.net, model.emission, model.space


# -- tokenizers ----------------------------------------------------------------------------------------


def tokenizer_of(model: Model) -> str:
    """tokenizer.json of the symbols of a gpt over texts, with its end as a special token, which begins texts, too."""
    _, emission, space = text_parts(model)
    codec: Any = model.codec
    if isinstance(codec, PretrainedTokenizer):
        return codec.json
    if isinstance(codec, Subwords):
        described = json.loads(codec.json)
        words = described["model"]["vocab"]
        for number in range(len(words), emission.end):  # the vocabulary may be larger than what was learned
            words[f"<|unused{number}|>"] = number
    elif space.alphabet:
        described = _described({c: i for i, c in enumerate(space.alphabet)})
        described["decoder"] = {"type": "Fuse"}
    else:
        described = _described({c: i for i, c in enumerate(SPELLING)})
        described["pre_tokenizer"] = described["decoder"] = {
            "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False,
        }  # fmt: skip
    special = {"id": emission.end, "content": END, "single_word": False, "lstrip": False, "rstrip": False,
               "normalized": False, "special": True}  # fmt: skip
    described["added_tokens"] = [special]
    described["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": END, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {END: {"id": END, "ids": [emission.begin], "tokens": [END]}},
    }
    return json.dumps(described, ensure_ascii=False)


def _described(words: dict[str, int]) -> dict[str, Any]:
    """A tokenizer that knows single characters: byte-pair encoding without pairs."""
    model: dict[str, Any] = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
             "vocab": words, "merges": []}  # fmt: skip
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
            "pre_tokenizer": None, "post_processor": None, "decoder": None, "model": model}  # fmt: skip
