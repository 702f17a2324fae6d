"""NumPy: arrays in memory, .npy, and archives of named arrays."""

from __future__ import annotations

import lzma
import math
import os
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pofx.core.errors import BadValue, CorruptFile, EmptyData, UsageError, WrongShape
from pofx.data import audio, image, packed, sequences
from pofx.data.folders import beside, by_part
from pofx.data.options import Options
from pofx.data.ragged import NDArray, excerpts
from pofx.data.raw import Raw, RawArray, RawTable, corrupt, table_of
from pofx.data.split import TEST, TRAIN, VALID
from pofx.data.tabular import MOST_CATEGORIES
from pofx.spaces import Reals

X_WORDS = ("x", "images", "image", "data", "features", "inputs")
REALS = "reals"
Y_WORDS = ("y", "labels", "label", "targets", "target")


# what zipfile and NumPy raise on damaged archives; zipfile raises RuntimeError for unknown methods and encryption, and
# NumPy allocates what a header says before it reads
DAMAGE = (
    ValueError, SyntaxError, TypeError, KeyError, OSError, EOFError, MemoryError, RuntimeError, tokenize.TokenError,
    zipfile.BadZipFile, zlib.error, lzma.LZMAError,
)  # fmt: skip


def is_archive(source: Any) -> bool:
    """Is the source a file of several named arrays?"""
    return isinstance(source, str | os.PathLike) and os.path.isfile(source) and zipfile.is_zipfile(source)


def load_array(path: Path) -> NDArray:
    """A .npy file, without pickle."""
    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except DAMAGE as e:
        raise _damaged(path, str(path), e) from e
    _check_text(path, str(path), array)
    return array


def load_arrays(path: Path) -> dict[str, NDArray]:
    """The arrays of an .npz by their names, without pickle."""
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if not all(m.filename.endswith(".npy") for m in members):
                what = f"{path} is a zip archive, but no .npz of arrays."
                raise CorruptFile(what, "Unpack it, or save a sheet as CSV.")
            most = packed.most_unpacked(path.stat().st_size)
            if sum(m.file_size for m in members) > most:
                raise packed.too_large(path, most)
            for member in members:
                if member.flag_bits & 1:
                    raise CorruptFile(f"{path} is encrypted.", "Save the arrays without a password.")
                with archive.open(member) as file:
                    array = np.lib.format.read_array(file, allow_pickle=False)
                name = member.filename.removesuffix(".npy")
                _check_text(path, f"{name!r} of {path}", array)
                arrays[name] = array
    except DAMAGE as e:
        raise _damaged(path, str(path), e) from e
    return arrays


def _damaged(path: Path, what: str, e: Exception) -> CorruptFile | BadValue:
    if "Object arrays" in str(e):
        return BadValue(f"{what} holds Python objects, which are never loaded.", "Save plain arrays.")
    if isinstance(e, MemoryError):
        return corrupt(path, "NumPy", "a header tells of more values than the memory holds")
    return corrupt(path, "NumPy", e)


def _check_text(path: Path, what: str, array: NDArray) -> None:
    """Raise CorruptFile unless text is Unicode, which NumPy looks at only when a value is taken out."""
    if array.dtype.kind == "U" and array.size:
        codes = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))).view(np.uint32)
        if (codes > sys.maxunicode).any():
            raise corrupt(path, "NumPy", f"text of {what} is not Unicode")


def from_tensor(tensor: torch.Tensor, options: Options) -> Raw:
    """A dense tensor of numbers; what NumPy has no type for (bfloat16 and smaller) becomes float32, which holds it."""
    plain = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_nested
    if not plain or tensor.device.type == "meta":
        kind = f"{tensor.layout} {tensor.dtype}".replace("torch.", "")
        raise BadValue(
            f"The tensor is no plain one ({kind}, on {tensor.device.type}).",
            "Give a dense tensor of numbers in memory: tensor.to_dense(), tensor.dequantize().",
        )
    if tensor.is_complex():
        raise BadValue(f"The tensor holds {tensor.dtype} values.", "Give numbers: torch.view_as_real(tensor).")
    tensor = tensor.detach().cpu().resolve_neg()
    narrow = tensor.dtype.is_floating_point and tensor.dtype not in (torch.float16, torch.float32, torch.float64)
    return from_array((tensor.float() if narrow else tensor).numpy(), "the tensor", options)


def from_array(array: NDArray, name: str, options: Options, names: list[str] | None = None) -> Raw:
    """[N, D] or [N] numbers or text: a table; more dimensions: images; or any shape as reals."""
    if array.dtype.names:
        fields = array.dtype.names
        if array.ndim != 1:
            raise WrongShape(f"{name} is {list(array.shape)} of records.", "Give one record per row: [N].")
        return table_of(fields, lambda j: array[fields[j]], len(array), name)
    if array.ndim == 0 or array.size == 0:
        raise EmptyData(f"{name} is empty (shape {list(array.shape)}).", "Give an array of rows.")
    if array.dtype.kind not in "biufUS" + "Mm" * (array.ndim < 3):
        raise BadValue(f"{name} holds {array.dtype} values.", "Give numbers or text.")
    notes = []
    if options.shape is not None:
        array = _shaped(array, name, tuple(options.shape))
    if options.kind == REALS:
        if array.dtype.kind not in "biuf" or np.ma.is_masked(array):
            raise BadValue(f"{name} holds {array.dtype} values, or masked ones.", "Give numbers as reals.")
        return RawArray(np.asarray(array, np.float64), Reals(array.shape[1:]))
    if array.ndim > 2:
        if np.ma.is_masked(array):
            raise BadValue(f"{name} has masked pixels, and images have no missing ones.", "Give array.filled(VALUE).")
        return image.from_array(np.asarray(array), name, options.known)
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
    """Arrays by their names: x / X / images / data, y / labels, each with train, valid or test before or after.

    ``options.arrays`` and ``options.label_array`` name them instead: "x28" is also train_x28 and test_x28.
    """
    arrays = load_arrays(path)
    if options.arrays and (options.kind == "audio" or audio.is_audio(arrays)):
        arrays = _renamed(arrays, [*options.arrays], "audio", path)
    if audio.is_audio(arrays):
        return excerpts(audio.from_arrays(arrays, path.name, options), options)
    if options.kind == "audio":
        raise WrongShape(f"{path.name} holds no sounds ({_shown(arrays)}).", "Add offsets [N + 1] and sample_rate.")
    if sequences.is_sequences(arrays):
        return excerpts(sequences.from_arrays(arrays, path.name, options), options)
    xs, ys = _roles(arrays)
    if options.arrays:
        chosen = [_named(arrays, name, path) for name in options.arrays]
        if any(set(c) != set(chosen[0]) for c in chosen):
            raise WrongShape(f"{', '.join(options.arrays)} of {path.name} are not of the same parts.", "Name others.")
    else:
        if not xs:
            wide = [k for k, a in arrays.items() if a.ndim >= 2]
            xs = {None: wide[0]} if len(wide) == 1 else {}
        chosen = [xs]
    if options.label_array is not None:
        ys = _named(arrays, options.label_array, path)
    parts = sorted(chosen[0], key=lambda p: -1 if p is None else p)
    shapes = [{arrays[k].shape[1:] for k in by.values()} for by in chosen]
    if (
        not parts
        or (None in parts and len(parts) > 1)
        or any(len(s) > 1 for s in shapes)
        or (len(parts) > 1 and TRAIN not in parts)
    ):
        raise WrongShape(
            f"{path.name} holds {_shown(arrays)}: which array is the data is not clear.",
            "Name it (--arrays NAME; its labels: --label-array NAME), or call them x and y, or train_x, test_x, ....",
        )
    joined = [
        np.concatenate([arrays[by[p]] for p in parts]) if len(parts) > 1 else arrays[by[parts[0]]] for by in chosen
    ]
    where = ", ".join(by[p] for by in chosen for p in parts)
    if len(chosen) > 1:
        raw: Raw = side_by_side(joined, [*options.arrays], where)
    else:
        bits, x = arrays.get("num_vars"), joined[0]  # rows of packed bits
        if bits is not None and bits.ndim == 0 and x.ndim == 2 and x.shape[1] == (int(bits) + 7) // 8:
            options = replace(options, shape=(int(bits),))
        names = [str(n) for n in arrays.get("columns", arrays.get("feature_names", np.empty(0))).reshape(-1)]
        raw = from_array(x, where, options, names if x.ndim and len(names) == x.shape[-1] else None)
    if len(parts) > 1:
        raw.part = np.repeat(np.array(parts), [len(arrays[chosen[0][p]]) for p in parts])
    used = {k for by in chosen for k in by.values()}
    y = np.concatenate([arrays[ys[p]].reshape(-1) for p in parts]) if set(parts) == set(ys) else None
    if y is not None and y.size == raw.n:
        used |= {*ys.values()}
        _attach(raw, y, ys[parts[0]], options.label_array is not None)
    elif options.label_array is not None:
        listed = ", ".join(f"{k} {list(arrays[k].shape)}" for k in ys.values())
        raise WrongShape(f"{listed} is not one label for each of the {raw.n} rows of {where}.", "Name another array.")
    data = {k for by in chosen for k in by.values()}
    raw.beside = beside(arrays, [k for k in arrays if k not in data], parts, raw.n)
    used |= {k for k in arrays if k in options.beside or by_part([k]).keys() & {*options.beside}}
    if unused := [k for k in arrays if k not in used and k not in ("num_vars", "columns", "feature_names")]:
        raw.notes.append(f"Arrays not used: {', '.join(unused)}.")
    return raw


def is_classes(y: NDArray) -> bool:
    """Are values [N] few enough, and whole, to be classes?"""
    whole = y.dtype.kind != "f" or bool(np.isfinite(y).all() and (y == np.rint(y)).all())
    return whole and len(np.unique(y)) <= min(MOST_CATEGORIES, max(2, len(y) // 2))


def _roles(arrays: Mapping[str, NDArray]) -> tuple[dict[int | None, str], dict[int | None, str]]:
    """Which arrays are the data and which the labels, for each part, by the words of their names."""
    xs: dict[int | None, str] = {}
    ys: dict[int | None, str] = {}
    for word, by in by_part(arrays).items():
        into = ys if word in Y_WORDS else xs if not word or word in X_WORDS else None
        for part, key in by.items():
            if into is not None and arrays[key].ndim:
                into.setdefault(part, key)
    return xs, ys


def _named(arrays: Mapping[str, NDArray], name: str, path: Path) -> dict[int | None, str]:
    """The array of a name, or those of its parts: "x28" is x28, or train_x28 and test_x28."""
    by: dict[int | None, str] = {None: name} if name in arrays else by_part(arrays).get(name.lower(), {})
    if not by or any(not arrays[k].ndim for k in by.values()):
        raise UsageError(f"{path.name} has no array {name!r} of rows.", f"There are: {_shown(arrays)}.")
    return by


def _renamed(arrays: Mapping[str, NDArray], names: Sequence[str], to: str, path: Path) -> dict[str, NDArray]:
    """The same archive with the one array that was chosen in the place of ``to``."""
    if len(names) != 1:
        raise UsageError(f"{', '.join(names)} are {len(names)} arrays; a sound is one.", "Name one array.")
    words = {TRAIN: "train_", VALID: "valid_", TEST: "test_", None: ""}
    chosen = _named(arrays, names[0], path)
    rest = {k: a for k, a in arrays.items() if k not in by_part(arrays).get(to, {}).values()}
    return rest | {f"{words[p]}{to}": arrays[k] for p, k in chosen.items()}


def _shown(arrays: Mapping[str, NDArray]) -> str:
    return ", ".join(f"{k} {list(a.shape)} {a.dtype}" for k, a in arrays.items())


def side_by_side(arrays: list[NDArray], names: list[str], where: str) -> RawTable:
    """Several arrays [N] or [N, D] as the columns of one table, each of its own type."""
    if any(a.ndim > 2 or len(a) != len(arrays[0]) or a.dtype.names for a in arrays):
        shapes = ", ".join(f"{n} {list(a.shape)}" for n, a in zip(names, arrays, strict=True))
        raise WrongShape(f"{shapes} make no table.", "Name one array, or several of [N] or [N, D] with the same N.")
    wide = [a.reshape(len(a), -1) for a in arrays]
    columns = [column for a in wide for column in a.T]
    titles = [
        n if a.shape[1] == 1 else f"{n}{j + 1}" for n, a in zip(names, wide, strict=True) for j in range(a.shape[1])
    ]
    return table_of(titles, lambda j: np.ascontiguousarray(columns[j]), len(wide[0]), where)


def _attach(raw: Raw, y: NDArray, name: str, wanted: bool) -> None:
    """y as the rows' classes, or as one more column where its values are no classes."""
    if is_classes(y):
        raw.label = y.astype(np.int64) if y.dtype.kind == "f" else y
    elif isinstance(raw, RawTable) and name not in raw.columns:
        raw.columns[name] = lambda: y
        raw.notes.append(f"{name!r} holds no classes: it became a column of the table.")
    elif wanted:
        raise BadValue(
            f"{name!r} holds {len(np.unique(y))} values in {len(y)} rows: no classes.", "Name another array."
        )
    else:
        raw.notes.append(f"{name!r} holds no classes: it was left out.")
