"""What the rows of a run were: a digest of each part, and whether data that were read again are still the same."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

import pofx
from pofx.core.errors import DataChanged
from pofx.data.blocks import BLOCK, BlockRows
from pofx.data.ragged import RaggedRows

CHUNK = 2**24  # bytes that are hashed at a time: a file that is mapped into memory never stands in it whole


def digest(part: Any) -> str:
    """BLAKE2b of the rows in their order: their values, contexts, labels, weights and numbers in the source."""
    found = hashlib.blake2b(digest_size=16)
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if isinstance(value, RaggedRows):
            found.update(f"{field.name} {value.values.dtype} {value.values.shape[1:]}".encode())
            _update(found, value.lengths.numpy())
            for start, end in zip(value.starts.tolist(), value.ends.tolist(), strict=True):
                _update(found, value.values[start:end])
        elif isinstance(value, Tensor):
            array = value.detach().cpu().numpy()
            found.update(f"{field.name} {array.dtype} {array.shape}".encode())
            _update(found, array)
        elif isinstance(value, BlockRows):  # as of a tensor: the same rows are the same data, wherever they are
            found.update(f"{field.name} float64 {value.shape}".encode())
            for start in range(0, len(value), BLOCK):
                _update(found, value[start : start + BLOCK].numpy())
    return found.hexdigest()


def _update(found: Any, array: np.ndarray[Any, Any]) -> None:
    rows = max(1, CHUNK * len(array) // max(1, array.nbytes))
    for start in range(0, len(array), rows):
        found.update(np.ascontiguousarray(array[start : start + rows]).reshape(-1).view(np.uint8))


def of_data(data: Any) -> dict[str, str]:
    """A digest of each part, and of what the values mean: the space, the context and the classes."""
    meaning = [data.space.to_json(), None if data.context is None else data.context.to_json(), data.labels]
    space = hashlib.blake2b(json.dumps(meaning).encode(), digest_size=16).hexdigest()
    return {part: digest(getattr(data, part)) for part in ("train", "valid", "test")} | {"space": space}


WORDS = {"train": "training rows", "valid": "validation rows", "test": "test rows", "space": "types or classes"}


def differences(recorded: Mapping[str, str], data: Any) -> str:
    """What of the data is not as in the digests ``recorded``, in words; "" where all is."""
    now = data.digest
    changed = [words for key, words in WORDS.items() if now[key] != recorded[key]]
    same = [words for key, words in WORDS.items() if now[key] == recorded[key]]
    if not changed:
        return ""
    return f"changed: {', '.join(changed)}; as before: {', '.join(same) or 'nothing'}"


def same_data(record: Mapping[str, Any], data: Any, what: str) -> None:
    """Make sure that ``data`` are what a run or a comparison was made with, whose ``record`` has an entry "data".

    Raises DataChanged.
    """
    if found := differences(record["data"]["digest"], data):
        version = "" if record["pofx"] == pofx.__version__ else f" (or pofx {record['pofx']} read it otherwise)"
        raise DataChanged(
            f"{data.source} has changed since {what} was made{version} ({found}). "
            "Its rows are split anew, so those that are called test rows now may have been trained on.",
            "Restore the data or fit again; for rows of your choice, name their file: 'pofx log-prob RUN FILE'.",
        )
