"""NumPy: arrays in memory, .npy, and archives of named arrays."""

from __future__ import annotations

import math
import re
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pofx.core.errors import BadValue, CorruptFile, EmptyData, WrongShape
from pofx.data import audio, image, sequences
from pofx.data.image import PARTS, NDArray
from pofx.data.ragged import excerpts
from pofx.data.raw import RATE, SECONDS, STEPS, Options, Raw, RawTable, corrupt, table_of
from pofx.data.split import TRAIN
from pofx.data.tabular import MOST_CATEGORIES

X_WORDS = ("x", "images", "image", "data", "features", "inputs")
Y_WORDS = ("y", "labels", "label", "targets", "target")


def load_arrays(path: Path) -> Any:
    """An array, or a dict of arrays, without pickle."""
    try:
        loaded = np.load(path, allow_pickle=False)
        return loaded if isinstance(loaded, np.ndarray) else {k: loaded[k] for k in loaded.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        if "Object arrays" in str(e):
            raise BadValue(f"{path} holds Python objects, which are never loaded.", "Save plain arrays.") from e
        raise corrupt(path, "NumPy", e) from e


def from_array(array: NDArray, name: str, options: Options, names: list[str] | None = None) -> Raw:
    """[N, D] or [N] numbers or text: a table; more dimensions: images."""
    if array.dtype.names:
        fields = array.dtype.names
        return table_of(fields, lambda j: np.ascontiguousarray(array[fields[j]]), len(array), name)
    if array.ndim == 0 or array.size == 0:
        raise EmptyData(f"{name} is empty (shape {list(array.shape)}).", "Give an array of rows.")
    if array.dtype.kind not in "biufUS":
        raise BadValue(f"{name} holds {array.dtype} values.", "Give numbers or text.")
    notes = []
    if options.shape is not None:
        array = _shaped(array, name, options.shape)
    if array.ndim > 2:
        return image.from_array(array, name, options.known)
    array = array[:, None] if array.ndim == 1 else array
    if array.dtype == np.uint8 and array.shape[1] > 16 and array.max() > 1:
        notes.append(
            f"{name} {list(array.shape)} was read as a table of {array.shape[1]} columns; for flat or bit-packed "
            "images give their shape: shape=(28, 28)."
        )
    raw = table_of(names or [f"x{j + 1}" for j in range(array.shape[1])], lambda j: array[:, j], len(array), name)
    raw.notes += notes
    return raw


def _shaped(array: NDArray, name: str, shape: tuple[int, ...]) -> NDArray:
    """Flat or bit-packed rows [N, D] as [N, *shape]."""
    size = math.prod(shape)
    flat = array.reshape(len(array), -1)
    if flat.shape[1] == size:
        return flat.reshape(-1, *shape)
    if array.dtype == np.uint8 and flat.shape[1] == (size + 7) // 8:
        return np.unpackbits(flat, axis=1, count=size).reshape(-1, *shape)
    raise WrongShape(
        f"{name} {list(array.shape)} has {flat.shape[1]} numbers per row; shape {list(shape)} needs {size}, or "
        f"{(size + 7) // 8} bytes of packed bits."
    )


def from_npz(path: Path, options: Options) -> Raw:
    """Arrays by their names: x / X / images / data, y / labels, each with train, valid or test before or after."""
    arrays: dict[str, NDArray] = load_arrays(path)
    if not all(isinstance(a, np.ndarray) for a in arrays.values()):
        raise CorruptFile(f"{path} is a zip archive, but no .npz of arrays.", "Unpack it, or save a sheet as CSV.")
    if audio.is_audio(arrays):
        return excerpts(audio.from_arrays(arrays, path.name, options.audio), SECONDS * RATE, options.audio.like)
    if sequences.is_sequences(arrays):
        return excerpts(sequences.from_arrays(arrays, path.name, options.steps), STEPS, options.steps.like)
    xs: dict[int | None, str] = {}
    ys: dict[int | None, str] = {}
    for key in arrays:
        words = re.split(r"[_\-. ]+", key.lower())
        parts = [PARTS[w] for w in words if w in PARTS]
        rest = [w for w in words if w not in PARTS]
        if len(parts) > 1 or len(rest) > 1 or not (parts or rest):
            continue
        into = ys if rest and rest[0] in Y_WORDS else xs if not rest or rest[0] in X_WORDS else None
        if into is not None and arrays[key].ndim:
            into.setdefault(parts[0] if parts else None, key)
    if not xs:
        wide = [k for k, a in arrays.items() if a.ndim >= 2]
        if len(wide) == 1:
            xs = {None: wide[0]}
    shown = ", ".join(f"{k} {list(a.shape)} {a.dtype}" for k, a in arrays.items())
    shapes = {arrays[k].shape[1:] for k in xs.values()}
    if not xs or (None in xs and len(xs) > 1) or len(shapes) > 1 or (len(xs) > 1 and TRAIN not in xs):
        raise WrongShape(
            f"{path.name} holds {shown}: which array is the data is not clear.",
            "Name them x and y, or train_x, train_y, test_x, ...; or load one array: pofx.load(archive['key']).",
        )
    order = sorted(xs, key=lambda p: -1 if p is None else p)
    stacked = np.concatenate([arrays[xs[p]] for p in order]) if len(order) > 1 else arrays[xs[order[0]]]
    counts = [len(arrays[xs[p]]) for p in order]
    bits = arrays.get("num_vars")  # rows of packed bits
    if bits is not None and bits.ndim == 0 and stacked.ndim == 2 and stacked.shape[1] == (int(bits) + 7) // 8:
        options = replace(options, shape=(int(bits),))
    names = [str(n) for n in arrays.get("columns", arrays.get("feature_names", []))]
    raw = from_array(
        stacked, ", ".join(xs[p] for p in order), options, names if len(names) == stacked.shape[-1] else None
    )
    if len(order) > 1:
        raw.part = np.repeat(np.array(order), counts)
    used = {*xs.values()}
    if set(order) == set(ys):
        y = np.concatenate([arrays[ys[p]] for p in order])
        if y.size == len(stacked):
            used |= {*ys.values()}
            _attach(raw, y.reshape(-1), ys[order[0]])
    if unused := [k for k in arrays if k not in used and k not in ("num_vars", "columns", "feature_names")]:
        raw.notes.append(f"Arrays not used: {', '.join(unused)}.")
    return raw


def _attach(raw: Raw, y: NDArray, name: str) -> None:
    """y as the rows' classes, or as one more column where its values are no classes."""
    whole = y.dtype.kind != "f" or bool(np.isfinite(y).all() and (y == np.rint(y)).all())
    if whole and len(np.unique(y)) <= min(MOST_CATEGORIES, max(2, len(y) // 2)):
        raw.label = y.astype(np.int64) if y.dtype.kind == "f" else y
    elif isinstance(raw, RawTable) and name not in raw.columns:
        raw.columns[name] = lambda: y
        raw.notes.append(f"{name!r} holds no classes: it became a column of the table.")
