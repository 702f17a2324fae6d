"""Any source as a RawTable or RawImages: files by their content, arrays, frames, and built-in sets by name."""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import math
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet
import torch

from pofx.core.errors import BadValue, CorruptFile, EmptyData, MissingSource, RaggedTable, UsageError, WrongShape
from pofx.core.space import Column, Image, Table
from pofx.data import audio, image, sequences, text
from pofx.data.image import PARTS, NDArray, RawImages
from pofx.data.ragged import RawRagged, excerpts
from pofx.data.split import TRAIN
from pofx.data.synthetic import SOURCES, Mixture
from pofx.data.tabular import MISSING, MOST_CATEGORIES, Array, decode

IN_MEMORY = "<memory>"
SECONDS, RATE, STEPS = 2, 8000, 256  # of an excerpt of a long sound, at a usual rate; steps of one of a long series
STANDARD_LIBRARY = "python-source"
SKLEARN = ("breast-cancer", "diabetes", "digits", "iris", "wine")
SYNTHETIC_ROWS = 10_000


Fetch: TypeAlias = Callable[[], Array]


@dataclass
class RawTable:
    """Columns as read, each fetched when asked for, and what the source says about each row."""

    columns: dict[str, Fetch]
    n: int
    label: NDArray | None = None  # [N] class names or numbers that are no column
    part: NDArray | None = None  # [N] TRAIN, VALID or TEST where the source brings its own split
    notes: list[str] = field(default_factory=list)
    types: dict[str, Column] = field(default_factory=dict)  # of columns whose type is known, not inferred
    numbers: None = None  # rows are never picked while reading


Raw: TypeAlias = RawTable | RawImages | RawRagged


@dataclass(frozen=True)
class Options:
    """How to read: what ``pofx.load`` was told, and for new rows the space they must be of."""

    texts: Collection[str] = ()  # columns of a CSV file to take as text whatever they look like
    shape: tuple[int, ...] | None = None  # of one datum in a flat or bit-packed array
    resize: int | None = None
    known: Image | None = None  # new images must be of this space
    alone: bool = False  # a training file is read without its test twin
    max_rows: int | None = None  # of a folder; all other sources are read whole
    seed: int = 0  # of max_rows and of synthetic sources
    kind: str | None = None  # "table", "text", "audio" or "sequence", whatever a source looks like
    text: text.Reading = field(default_factory=text.Reading)
    audio: audio.Reading = field(default_factory=audio.Reading)
    steps: sequences.Reading = field(default_factory=sequences.Reading)


def read(source: Any, options: Options) -> Raw:
    """Raises DataError by name where the source is missing, empty, ragged, corrupt or unclear."""
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.exists():
            return _folder(path, options) if path.is_dir() else _file(path, options)
        name = str(source).replace("_", "-").lower()
        if name == STANDARD_LIBRARY:
            return text.from_standard_library(options.text)
        if name in SOURCES or name in SKLEARN:
            return _synthetic(name, options) if name in SOURCES else _sklearn(name, options)
        raise _missing(str(source))
    if isinstance(source, pa.Table | pa.RecordBatch):
        return _arrow(pa.table(source) if isinstance(source, pa.RecordBatch) else source)
    if isinstance(source, torch.Tensor):
        return _array(source.detach().cpu().numpy(), "the tensor", options)
    if isinstance(source, np.ndarray):
        return _array(source, "the array", options)
    library = type(source).__module__.partition(".")[0]
    if library == "pandas":
        return _pandas(source)
    if library == "polars":
        return _arrow(source.to_arrow())
    raise UsageError(
        f"Cannot load a {type(source).__name__}.",
        "Give a path, a built-in name, an array, a tensor, a pandas or polars frame, or a pyarrow Table.",
    )


def _missing(name: str) -> MissingSource:
    if name == IN_MEMORY:
        return MissingSource("These data were given in memory, not in a file.", "Give the same data again.")
    folder = Path(name).parent
    beside = [str(folder / p.name) for p in folder.iterdir()] if folder.is_dir() else []
    near = difflib.get_close_matches(name, [*SOURCES, *SKLEARN, STANDARD_LIBRARY, *beside], n=3, cutoff=0.6)
    built_in = ", ".join([*SKLEARN, STANDARD_LIBRARY, *SOURCES])
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Built-in sets: {built_in}."
    return MissingSource(f"There is no file, folder or built-in set {name!r}.", hint)


# ---------------------------------------------------------------------------------------------- files


def _folder(path: Path, options: Options) -> Raw:
    if image.idx_files(path):
        return image.from_idx(path, options.known, options.alone)
    kind = options.kind or _most_files(path)
    if kind == "text":
        return text.from_folder(path, options.text)
    if kind == "audio":
        return excerpts(audio.from_folder(path, options.audio, options.max_rows, options.seed), SECONDS * RATE)
    return image.from_folder(path, options.resize, options.known, options.max_rows, options.seed)


def _file(path: Path, options: Options) -> Raw:
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as e:
        raise MissingSource(f"{path} cannot be opened: {e.strerror}.", "Check its permissions.") from e
    if not head:
        raise EmptyData(f"{path} is empty.", "Give a file with rows.")
    suffix = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if suffix in ("jsonl", "ndjson"):
        return text.from_jsonl(path, options.text)
    if f".{suffix}" in audio.SUFFIXES:
        return excerpts(audio.from_file(path, options.audio), SECONDS * RATE)
    if options.text.column is None and (
        options.kind == "text" or (options.kind is None and text.is_text(path) and not _is_table(path))
    ):
        return text.from_file(path, options.text)
    raw = _by_content(path, head, suffix, options)
    if options.text.column is not None:
        return _text_column(raw, options)
    if isinstance(raw, RawTable) and (options.kind == "sequence" or options.steps.sequence is not None):
        return excerpts(sequences.from_table(raw, options.steps, str(path)), STEPS)
    return raw


def _most_files(path: Path) -> str:
    """Of which kind are most of the first files that the folder and its sub-folders hold?"""
    files = [p for p, _ in zip((p for p in path.rglob("*") if p.is_file()), range(1000), strict=False)]
    counts = {
        "image": sum(p.suffix.lower() in (".png", ".jpg", ".jpeg") for p in files),
        "audio": sum(p.suffix.lower() in audio.SUFFIXES for p in files),
        "text": sum(map(text.is_text, files)),
    }
    return max(counts, key=lambda kind: counts[kind])


def _is_table(path: Path) -> bool:
    """Do the first lines of a text file have as many fields each, most of them numbers?"""
    if not path.name.lower().removesuffix(".gz").endswith(".txt"):
        return False
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        lines = [line for line in file.read(1 << 14).decode(errors="replace").splitlines() if line.strip()][1:50]
    if not lines:
        return False
    delimiter = _delimiter(lines)
    rows = [[c for c in row if c.strip()] for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True)]
    cells = [c for row in rows[:-1] for c in row]
    return len(cells) > 0 and sum(map(_is_number, cells)) > len(cells) / 2


def _text_column(raw: Raw, options: Options) -> RawRagged:
    """One column of a table as texts; the source's own parts and labels stay."""
    name = options.text.column or ""
    if not isinstance(raw, RawTable) or name not in raw.columns:
        known = ", ".join([*raw.columns][:20]) if isinstance(raw, RawTable) else "none"
        raise UsageError(f"There is no column {name!r} of texts.", f"Columns: {known}.")
    values = raw.columns[name]()
    texts = ["" if v is None else str(v) for v in (values.to_pylist() if hasattr(values, "to_pylist") else values)]
    return text.from_documents(texts, options.text, f"column {name!r}", raw.label, raw.part)


def _by_content(path: Path, head: bytes, suffix: str, options: Options) -> Raw:
    if head[:4] == b"PAR1" or suffix in ("parquet", "pq"):
        return _parquet(path)
    if head[:6] in (b"ARROW1", b"FEA1\0\0") or suffix in ("arrow", "feather", "ipc"):
        return _ipc(path)
    if head[:4] == b"PK\x03\x04":
        return _npz(path, options)
    if head[:6] == b"\x93NUMPY" or suffix in ("npy", "npz"):
        return _array(_numpy(path), path.name, options)
    if re.search(r"idx\d-ubyte(\.gz)?$", path.name) or head[:3] == b"\0\0\x08":
        return image.from_idx(path, options.known, options.alone)
    if suffix in ("png", "jpg", "jpeg"):
        raise WrongShape(f"{path} is a single image.", "Give the folder that holds the images.")
    return _csv(path, options)


def _corrupt(path: Path, kind: str, why: object) -> CorruptFile:
    return CorruptFile(f"{path} cannot be read as {kind}: {why}.".replace("..", "."), "Fetch or write the file again.")


def _parquet(path: Path) -> RawTable:
    try:
        file = pa.parquet.ParquetFile(path, memory_map=True)
    except (pa.ArrowException, OSError) as e:
        raise _corrupt(path, "Parquet", e) from e

    def column(j: int) -> Array:
        try:
            return file.read(columns=[names[j]]).column(0)
        except (pa.ArrowException, OSError) as e:
            raise _corrupt(path, "Parquet", e) from e

    names = file.schema_arrow.names
    return _table(names, column, file.metadata.num_rows, str(path))


def _ipc(path: Path) -> RawTable:
    try:
        with pa.memory_map(str(path)) as source:
            try:
                table = pa.ipc.open_file(source).read_all()
            except pa.ArrowInvalid:
                source.seek(0)
                table = pa.ipc.open_stream(source).read_all()
    except (pa.ArrowException, OSError) as e:
        raise _corrupt(path, "Arrow", e) from e
    return _arrow(table, str(path))


def _arrow(table: pa.Table, where: str = "the table") -> RawTable:
    return _table(table.column_names, table.column, table.num_rows, where)


def _pandas(frame: Any) -> RawTable:
    def column(j: int) -> Array:
        try:
            return pa.chunked_array([pa.array(frame.iloc[:, j], from_pandas=True)])
        except (pa.ArrowException, TypeError) as e:
            problem = f"Column {frame.columns[j]!r} mixes types: {str(e).splitlines()[0]}."
            raise BadValue(problem, "Convert it: frame[column].astype(str).") from e

    return _table([str(c) for c in frame.columns], column, len(frame), "the frame")


def _table(names: Iterable[str], column: Callable[[int], Array], rows: int, where: str) -> RawTable:
    names = [n.strip() for n in names]
    if not names:
        raise EmptyData(f"{where} has no columns.", "Give a table with columns.")
    twice = sorted({n for n in names if names.count(n) > 1 and n})
    if twice:
        raise BadValue(f"{where} has {names.count(twice[0])} columns named {twice[0]!r}.", "Rename all but one.")
    if not rows:
        raise EmptyData(f"{where} has columns ({', '.join(names[:5])}) but no rows.", "Give rows.")
    notes: list[str] = []
    columns: dict[str, Fetch] = {}
    for j, name in enumerate(names):
        # a separator at the end of every line makes a column without name and values
        if not name and getattr(column(j), "null_count", 0) == rows:
            notes.append(f"Column {j + 1} was left out: it has neither a name nor a value.")
        else:
            columns[name or f"column{j + 1}"] = partial(column, j)
    return RawTable(columns, rows, notes=notes)


# ------------------------------------------------------------------------------------------------ CSV


def _csv(path: Path, options: Options) -> RawTable:
    data = _text_bytes(path)
    head = data[: 1 << 16].decode(errors="replace")
    lines = [line for line in head.splitlines() if line.strip()][:50]
    if not lines:
        raise EmptyData(f"{path} is empty.", "Give a file with rows.")
    if "\0" in head:
        known = "CSV, Parquet, Arrow, .npy, .npz, images or IDX files"
        raise CorruptFile(f"{path} is neither text nor a format that pofx knows.", f"Give {known}.")
    whole = lines[:-1] if len(data) > 1 << 16 and len(lines) < 50 else lines
    delimiter = _delimiter(whole)
    if delimiter == " " and b'"' not in data:  # columns aligned by blanks
        data = b"\n".join(b" ".join(line.split()) for line in data.splitlines())
        whole = [" ".join(line.split()) for line in whole]
    cells = list(csv.reader(whole, delimiter=delimiter, skipinitialspace=True))
    header = _has_header(cells)
    names = [c.strip() for c in cells[0]] if header else [f"x{j + 1}" for j in range(len(cells[0]))]
    comma = delimiter != "," and _decimal_comma(cells[1:])
    missing = [*MISSING, *(" " + m for m in MISSING if m)]
    try:
        table = pa.csv.read_csv(
            pa.py_buffer(data),
            pa.csv.ReadOptions(column_names=names, skip_rows=0, skip_rows_after_names=int(header)),
            pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=b'"' in data),
            pa.csv.ConvertOptions(
                null_values=missing,
                strings_can_be_null=True,
                column_types={n: pa.string() for n in options.texts if n in names},
                decimal_point="," if comma else ".",
            ),
        )
    except pa.ArrowInvalid as e:
        raise _ragged(path, data, delimiter, len(names)) or _corrupt(path, "CSV", e) from e
    raw = _table(table.column_names, table.column, table.num_rows, str(path))
    if not header:
        raw.notes.append(f"The first line holds values, so the columns were named x1 to x{len(names)}.")
    if delimiter != ",":
        spelled = {"\t": "tabs", " ": "blanks"}.get(delimiter, repr(delimiter))
        raw.notes.append(f"Fields are separated by {spelled}.")
    if comma:
        raw.notes.append("Numbers are written with a decimal comma.")
    return raw


def _text_bytes(path: Path) -> bytes:
    """The file's bytes, unpacked, as UTF-8 (an Excel export in UTF-16 is converted)."""
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (EOFError, OSError, zlib.error) as e:
        raise _corrupt(path, "gzip", e) from e
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        try:
            data = data.decode("utf-16").encode()
        except UnicodeDecodeError as e:
            raise _corrupt(path, "UTF-16", e) from e
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        data = data.lstrip(b"\r\n")
        if data[:1] == b"#":  # the header line of numpy.savetxt
            data = data[1:].lstrip(b" ")
        data[: data.find(b"\n") + 1 or len(data)].decode()
    except UnicodeDecodeError as e:
        raise CorruptFile(
            f"{path} is not UTF-8: byte {data[e.start]:#x} in its first line.",
            "Convert the file, for example: iconv -f latin1 -t utf-8 OLD > NEW.",
        ) from e
    return data


def _delimiter(lines: list[str]) -> str:
    """The separator that splits most lines alike; of several, the one that less often stands inside a field."""

    def alike(delimiter: str) -> float:
        rows = [line.strip() for line in lines] if delimiter == " " else lines
        counts = [len(row) for row in csv.reader(rows, delimiter=delimiter, skipinitialspace=True)]
        most = max(set(counts), key=counts.count)
        return counts.count(most) / len(counts) if most > 1 else 0.0

    best = max("\t;|, ", key=alike)  # the first of equals
    return best if alike(best) else ","


def _has_header(rows: list[list[str]]) -> bool:
    """A first line is a header unless the columns of numbers begin with numbers there.

    Numbers are names all the same where they count up (years; 0, 1, 2, ... of an unnamed frame) above
    values that do not.
    """
    names, below = [], []
    for first, *rest in zip(*rows, strict=False):
        present = [c.strip() for c in rest if c.strip() not in MISSING]
        if present and first.strip() not in MISSING and all(map(_is_number, [first, *present])):
            names.append(first.strip())
            below += present
    counting = (
        len(names) > 1 and all(n.isdigit() for n in names) and len({int(n) - j for j, n in enumerate(names)}) == 1
    )
    return not names or (counting and not all(b.isdigit() for b in below))


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\s*[-+]?(\d+([.,]\d*)?|[.,]\d+)([eE][-+]?\d+)?\s*", text) is not None


def _decimal_comma(rows: list[list[str]]) -> bool:
    cells = [c.strip() for row in rows for c in row]
    with_comma = sum(re.fullmatch(r"[-+]?\d+,\d+", c) is not None for c in cells)
    with_point = sum(re.fullmatch(r"[-+]?\d+\.\d+", c) is not None for c in cells)
    return with_comma > with_point


def _ragged(path: Path, data: bytes, delimiter: str, width: int) -> RaggedTable | None:
    """The first line of another width, by its number in the file."""
    reader = csv.reader(io.StringIO(data.decode(errors="replace"), newline=""), delimiter=delimiter)
    for row in reader:
        if row and len(row) != width:
            return RaggedTable(
                f"{path}, line {reader.line_num}: {len(row)} fields where the first line has {width}.",
                "Correct the line (a separator inside a field needs quotes around the field).",
            )
    return None


# ---------------------------------------------------------------------------------------------- NumPy


def _numpy(path: Path) -> Any:
    """An array, or a dict of arrays, without pickle."""
    try:
        loaded = np.load(path, allow_pickle=False)
        return loaded if isinstance(loaded, np.ndarray) else {k: loaded[k] for k in loaded.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        if "Object arrays" in str(e):
            raise BadValue(f"{path} holds Python objects, which are never loaded.", "Save plain arrays.") from e
        raise _corrupt(path, "NumPy", e) from e


def _array(array: NDArray, name: str, options: Options, names: list[str] | None = None) -> Raw:
    """[N, D] or [N] numbers or text: a table; more dimensions: images."""
    if array.dtype.names:
        fields = array.dtype.names
        return _table(fields, lambda j: np.ascontiguousarray(array[fields[j]]), len(array), name)
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
    raw = _table(names or [f"x{j + 1}" for j in range(array.shape[1])], lambda j: array[:, j], len(array), name)
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


X_WORDS = ("x", "images", "image", "data", "features", "inputs")
Y_WORDS = ("y", "labels", "label", "targets", "target")


def _npz(path: Path, options: Options) -> Raw:
    """Arrays by their names: x / X / images / data, y / labels, each with train, valid or test before or after."""
    arrays: dict[str, NDArray] = _numpy(path)
    if not all(isinstance(a, np.ndarray) for a in arrays.values()):
        raise CorruptFile(f"{path} is a zip archive, but no .npz of arrays.", "Unpack it, or save a sheet as CSV.")
    if audio.is_audio(arrays):
        return excerpts(audio.from_arrays(arrays, path.name, options.audio), SECONDS * RATE)
    if sequences.is_sequences(arrays):
        return excerpts(sequences.from_arrays(arrays, path.name, options.steps), STEPS)
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
    raw = _array(stacked, ", ".join(xs[p] for p in order), options, names if len(names) == stacked.shape[-1] else None)
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


# -------------------------------------------------------------------------------------------- built-in


def _sklearn(name: str, options: Options) -> Raw:
    from sklearn import datasets

    if name == "digits":
        bunch = datasets.load_digits()
        raw: Raw = image.from_array(bunch.images, name, options.known)
        raw.label = bunch.target
        return raw
    # diabetes as measured; scikit-learn would centre and scale it
    loader = getattr(datasets, "load_" + name.replace("-", "_"))
    bunch = loader(scaled=False) if name == "diabetes" else loader()
    names = [re.sub(r" \(cm\)$", "", n).replace(" ", "_").replace("/", "_") for n in bunch.feature_names]
    raw = _table(names, lambda j: bunch.data[:, j], len(bunch.data), name)
    if name == "diabetes":
        raw.columns["progression"] = lambda: bunch.target
    else:
        raw.label = np.array(bunch.target_names)[bunch.target]
    return raw


def _synthetic(name: str, options: Options) -> Raw:
    source = SOURCES[name]()
    generator = torch.Generator().manual_seed(options.seed)
    n, label = options.max_rows or SYNTHETIC_ROWS, None
    if isinstance(source, Mixture):
        x, label = source.sample_labelled(n, generator)
    else:
        x = source.sample(n, generator)
    notes = [f"Drawn from a known source with an entropy of {source.entropy:.4f} nats: no model can do better."]
    labels = None if label is None else np.char.add("part ", label.numpy().astype(str))
    if isinstance(source.space, Image):
        return RawImages(x.numpy(), source.space.levels, labels, notes=notes)
    assert isinstance(source.space, Table)
    types = {c.name: c for c in source.space.columns}
    arrays = {c.name: decode(c, x[:, j].numpy()) for j, c in enumerate(source.space.columns)}
    columns: dict[str, Fetch] = {k: partial(pa.chunked_array, [array]) for k, array in arrays.items()}
    return RawTable(columns, len(x), labels, notes=notes, types=types)
