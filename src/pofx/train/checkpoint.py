"""Files that are never half written: trees of tensors and plain values in one safetensors file.

One file holds both (the plain part travels as JSON in the safetensors header), so tensors and counters
can never come from two different moments. Nothing is pickled, nothing read is executed.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pofx.core.errors import CannotSave, CorruptCheckpoint, NoRun

Tree = Any  # nested dicts, lists and tuples of tensors and plain values


def write_atomic(path: Path, content: bytes) -> None:
    """Write beside ``path``, flush to disk, then rename over it: a reader sees the old file or the new.

    Raises CannotSave (unwritable folder, full disk); the old file then still stands.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        raise CannotSave(
            f"Could not write {path} ({len(content)} bytes): {error.strerror}.",
            "Free some space or choose another folder (--out); what was saved before is still there.",
        ) from error


def write_json(path: Path, data: Any) -> None:
    write_atomic(path, (json.dumps(data, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Raises NoRun where there is no file and CorruptCheckpoint where it is not JSON."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NoRun(
            f"{path.parent} is no run folder: it has no {path.name}.", "Give the folder that 'pofx fit' made."
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorruptCheckpoint(f"{path} is damaged: {error}.", "Fit again, or restore the file.") from error


def save_tree(path: Path, tree: Tree) -> None:
    """Save nested dicts/lists of tensors and plain values in one atomic file."""
    tensors: dict[str, Tensor] = {}
    plain = _pack(tree, "", tensors)
    # Every tensor gets memory of its own: the format refuses tensors that share it.
    own = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    write_atomic(path, save(own, metadata={"tree": json.dumps(plain)}))


def load_tree(path: Path) -> Tree:
    """The inverse of ``save_tree``. Raises NoRun or CorruptCheckpoint."""
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NoRun(f"There is no {path.name} in {path.parent}.", "Give the folder that 'pofx fit' made.") from error
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return _unpack(json.loads(header["__metadata__"]["tree"]), tensors)
    except (SafetensorError, KeyError, ValueError) as error:
        raise CorruptCheckpoint(
            f"{path} is damaged or cut short ({len(content)} bytes): {error}.", "Resume from another copy or fit again."
        ) from error


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
    """Copy the tensors of ``state`` into the model. Raises CorruptCheckpoint where they are not those of the model."""
    if wrong := put(model, state):
        raise CorruptCheckpoint(f"{path} does not fit its config.json: {wrong}.", "Fit again.")


def put(model: torch.nn.Module, state: dict[str, Tensor]) -> str | None:
    """``load_state_dict`` that takes as long as there are tensors: torch's own looks at all of them for every module,
    and a wide table has a module for every column. What does not fit, in words, or None where all was copied."""
    own = model.state_dict(keep_vars=True)
    if differ := sorted(own.keys() ^ state.keys()):
        return f"{differ[0]} is {'missing' if differ[0] in own else 'not of this model'}"
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            return f"{name} has shape {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])
    return None
