"""What a run folder holds, each file with a digest of its own content: a flipped bit is found when it is read.

Trees of tensors and plain values go into one safetensors file (the plain part travels as JSON in its header), so
tensors and counters can never come from two different moments. Nothing is pickled, nothing read is executed.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from pofx.core.errors import CorruptCheckpoint, NewerFormat, NoRun, OlderFormat
from pofx.core.files import write_atomic, write_json

if TYPE_CHECKING:
    import numpy as np

Tree = Any  # nested dicts, lists and tuples of tensors and plain values

DIGITS = 32  # of a digest in hexadecimal
BLANK = b"0" * DIGITS  # stands in for the digest while it is computed


def _digest(*pieces: bytes | memoryview) -> bytes:
    found = blake2b(digest_size=DIGITS // 2)
    for piece in pieces:
        found.update(piece)
    return found.hexdigest().encode()


def _damaged(path: Path, reason: str) -> CorruptCheckpoint:
    return CorruptCheckpoint(f"{path} is damaged: {reason}.", "Restore the file from a copy, or run again.")


CHANGED = "its content was changed since pofx wrote it (the digest does not fit)"


def _read(path: Path) -> bytes:
    """Raises NoRun where there is no such file and CorruptCheckpoint where it cannot be read."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NoRun(
            f"{path.parent} is no run folder: it has no {path.name}.", "Give the folder that 'pofx fit' made."
        ) from error
    except OSError as error:
        raise CorruptCheckpoint(
            f"{path} cannot be read: {error.strerror}.", "Check its permissions, or give another folder."
        ) from error


# -- records: JSON objects -----------------------------------------------------------------------------------


def _plain_digest(record: Mapping[str, Any]) -> str:
    """Of what JSON keeps of it, however it is spelt."""
    return _digest(json.dumps(record, sort_keys=True).encode()).decode()


def write_sealed(path: Path, record: Mapping[str, Any]) -> None:
    """A record and its digest as JSON. Raises CannotSave."""
    kept = json.loads(json.dumps(record, allow_nan=False))
    write_json(path, kept | {"digest": _plain_digest(kept)})


def read_sealed(path: Path, newest: int | None = None) -> dict[str, Any]:
    """The record that ``write_sealed`` wrote; with ``newest``, its "format" is that.

    Raises NoRun, CorruptCheckpoint, OlderFormat or NewerFormat.
    """
    try:
        record = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(record, dict):
        raise _damaged(path, "it holds no record")
    digest = record.pop("digest", None)
    if newest is not None:
        version = record.get("format")
        if not isinstance(version, int):
            raise CorruptCheckpoint(f"{path} is not one of pofx.", "Give the folder that pofx made.")
        if version > newest:
            raise NewerFormat(
                f"{path} has format {version} (pofx {record.get('pofx')}); this pofx reads up to {newest}.",
                "Upgrade: pip install -U pofx.",
            )
        if version < newest:
            raise OlderFormat(
                f"{path} has format {version} (pofx {record.get('pofx')}); this pofx reads {newest}.",
                "Run again, or read it with the pofx that wrote it.",
            )
    if digest != _plain_digest(record):
        raise _damaged(path, CHANGED)
    return record


def write_lines(path: Path, entries: list[dict[str, Any]]) -> None:
    """One JSON object a line, and a last one with their digest. Raises CannotSave."""
    body = "".join(json.dumps(entry) + "\n" for entry in entries).encode()
    write_atomic(path, body + json.dumps({"digest": _digest(body).decode()}).encode() + b"\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """What ``write_lines`` wrote. Raises NoRun or CorruptCheckpoint."""
    content = _read(path)
    body, _, last = content.removesuffix(b"\n").rpartition(b"\n")
    body += b"\n" if body else b""
    if last != b'{"digest": "' + _digest(body) + b'"}':
        raise _damaged(path, CHANGED)
    return [json.loads(line) for line in body.splitlines()]


# -- arrays --------------------------------------------------------------------------------------------------


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Arrays as .npz; the comment at the end of the archive is their digest. Raises CannotSave."""
    import numpy as np

    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = BLANK
    body = file.getvalue()[:-DIGITS]
    write_atomic(path, body + _digest(body))


def read_arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """What ``write_arrays`` wrote. Raises NoRun or CorruptCheckpoint."""
    import numpy as np

    content = _read(path)
    if content[-DIGITS:] != _digest(content[:-DIGITS]):
        raise _damaged(path, CHANGED)
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


# -- trees of tensors ----------------------------------------------------------------------------------------


def save_tree(path: Path, tree: Tree) -> None:
    """Save nested dicts/lists of tensors and plain values in one atomic file. Raises CannotSave."""
    tensors: dict[str, Tensor] = {}
    plain = _pack(tree, "", tensors)
    # Every tensor gets memory of its own: the format refuses tensors that share it.
    own = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    content = save(own, metadata={"tree": json.dumps(plain), "digest": BLANK.decode()})
    before, after = _around_digest(content, BLANK)
    write_atomic(path, b"".join((before, _digest(before, BLANK, after), after)))


def load_tree(path: Path) -> Tree:
    """The inverse of ``save_tree``. Raises NoRun or CorruptCheckpoint."""
    content = _read(path)
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        digest, plain = header["digest"].encode(), header["tree"]
        before, after = _around_digest(content, digest)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"it is cut short ({len(content)} bytes) or its header is broken") from error
    if digest != _digest(before, BLANK, after):
        raise _damaged(path, CHANGED)
    return _unpack(json.loads(plain), load(content))


def _around_digest(content: bytes, digest: bytes) -> tuple[memoryview, memoryview]:
    """What stands before and after the digest in the header. Raises ValueError where it is not there."""
    key = b'"digest":"'
    start = content.index(key + digest + b'"') + len(key)
    view = memoryview(content)
    return view[:start], view[start + len(digest) :]


def _pack(node: Tree, key: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, Tensor):
        tensors[key] = node
        return {"tensor": key}
    if isinstance(node, dict):  # as pairs: optimizer states have integer keys
        return {"dict": [[k, _pack(v, f"{key}/{k}" if key else str(k), tensors)] for k, v in node.items()]}
    if isinstance(node, list | tuple):
        return {"list": [_pack(v, f"{key}/{i}", tensors) for i, v in enumerate(node)]}
    return {"value": node}


def _unpack(node: Any, tensors: dict[str, Tensor]) -> Tree:
    ((tag, body),) = node.items()
    if tag == "tensor":
        return tensors[body]
    if tag == "dict":
        return {k: _unpack(v, tensors) for k, v in body}
    if tag == "list":
        return [_unpack(v, tensors) for v in body]
    return body


def load_into(model: torch.nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Copy the tensors of ``state`` into the model. Raises OlderFormat where they have other names than the model's,
    CorruptCheckpoint where they do not fit it otherwise."""
    wrong = put(model, state)
    if model.state_dict().keys() != state.keys():
        raise OlderFormat(
            f"{path} holds the weights of another model than today's {type(model).__name__}: {wrong}.",
            "Fit again, or use the pofx that wrote it.",
        )
    if wrong:
        raise CorruptCheckpoint(f"{path} does not fit its config.json: {wrong}.", "Fit again.")


def put(model: torch.nn.Module, state: dict[str, Tensor]) -> str | None:
    """``load_state_dict`` that takes as long as there are tensors: torch's own looks at all of them for every module,
    and a wide table has a module for every column. An empty tensor is one whose size the state alone knows (a learned
    tokenizer), as are those that a module calls ``elastic`` (trees that grow). What does not fit, in words, or None
    where all was copied."""
    own = model.state_dict(keep_vars=True)
    modules = [(f"{place}." if place else "", module) for place, module in model.named_modules()]
    elastic = {place + name for place, module in modules for name in getattr(module, "elastic", ())}
    if differ := sorted(own.keys() ^ state.keys()):
        return f"{differ[0]} is {'missing' if differ[0] in own else 'not of this model'}"
    for name, tensor in own.items():
        if tensor.numel() and name not in elastic and tensor.shape != state[name].shape:
            return f"{name} has shape {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
    with torch.no_grad():
        for name, tensor in own.items():
            if tensor.shape != state[name].shape:
                tensor.resize_(state[name].shape)
            tensor.copy_(state[name])
    return None
