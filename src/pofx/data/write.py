"""Rows and columns to files: CSV, Parquet, PNG folders, .npz. Every file appears whole or not at all."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as Listed
from functools import singledispatch
from pathlib import Path
from typing import Any, TextIO, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet
import torch
from PIL import Image as Pillow
from torch import Tensor

from pofx.core.errors import CannotSave, UsageError
from pofx.core.files import replacing
from pofx.core.space import Space, join
from pofx.data.audio import SUFFIXES as SOUNDS
from pofx.data.audio import pcm, soundfile_package
from pofx.data.folders import FILE, check_free, numbered
from pofx.data.image import full_scale
from pofx.data.sequences import ROWS, number_of
from pofx.data.tabular import MISSING, decode
from pofx.data.text import ENDOFTEXT, TEXT, documents_in, unescaped
from pofx.spaces import Audio, Image, Label, Sequence, Table, Text

BETWEEN = "\n" + "-" * 40 + "\n"
ARRAY = ".npy"
TABLE_SUFFIXES = (".csv", ".tsv", ".parquet", ".arrow", ".feather")


@singledispatch
def check_place(space: Space, n: int, to: Path | None) -> None:
    """Can n rows be written there (None: to a stream)? Raises UsageError, or CannotSave for what is there already.

    An open function, as ``write_rows`` is: a space that is written otherwise adds its own case to both.
    """
    if to is not None and to.suffix.lower() not in (known := (ARRAY, *TABLE_SUFFIXES * bool(space.columns))):
        raise UsageError(f"{to} does not say which format.", f"End it in {', '.join(known)}.")


@check_place.register
def _(space: Table | Label | Sequence, n: int, to: Path | None) -> None:
    if to is not None:
        _check_table(to)


@check_place.register
def _(space: Image, n: int, to: Path | None) -> None:
    if to is None:
        raise UsageError("Images need a place to be written.", "Say --out folder/ or --out samples.npz.")
    if to.suffix == ".npz":
        return
    if to.suffix:
        raise UsageError(f"{to} is no place for images.", "Give a folder or an .npz file.")
    check_free(to)
    if space.channels not in (1, 3, 4):
        raise UsageError(f"PNG has no form for {space.channels} channels.", "Write to an .npz file.")


@check_place.register
def _(space: Audio, n: int, to: Path | None) -> None:
    if to is None:
        raise UsageError("Sounds need a place to be written.", "Say --out folder/, or for one --out sound.wav.")
    if to.suffix.lower() in SOUNDS:
        if n != 1:
            raise UsageError(f"{n} sounds do not go into one file.", "Give a folder.")
    elif to.suffix:
        raise UsageError(f"{to} is no place for sounds.", f"Give a folder or a {', '.join(SOUNDS)} file.")
    else:
        check_free(to)


@check_place.register
def _(space: Text, n: int, to: Path | None) -> None:
    if to is not None and to.suffix not in (".txt", ".jsonl"):
        raise UsageError(f"{to} is no place for texts.", "End it in .txt or .jsonl.")


Place: TypeAlias = "str | os.PathLike[str] | TextIO"
Columns: TypeAlias = "Mapping[str, pa.Array | Tensor | np.ndarray[Any, Any] | Listed[Any]]"


@singledispatch
def write_rows(
    space: Space,
    x: Tensor | Iterable[Tensor],
    to: Place,
    context: Space | None = None,
    c: Tensor | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    beside: Columns | None = None,
) -> None:
    """Rows x [N, *E], and their contexts c [N, *Ec], as files that ``load`` and ``read_rows`` understand.

    Rows may come in blocks, without contexts: those of tables are written as they come, and then forgotten. Whole rows
    may have columns ``beside`` [N] of any kind, as ``contexts_beside`` makes them: columns of a table, keys of JSON
    lines, arrays of an .npz, or metadata.csv in a folder of images or sounds.

    A table becomes CSV, TSV, Parquet or Arrow by the suffix of ``to`` (or CSV on an open text stream):
    categories as their spelling, dates in ISO form, missing fields empty, grid values as decimals; a
    context's columns come after (a label as the column "label"). Images become a folder of PNG files
    (sub-folders by label) or an .npz with x [N, H, W, C] and y; few levels are spread over 0 .. 255 in PNG.
    Texts become a .txt file, JSON lines, or lines on a stream; sounds WAV files; sequences a table whose first
    column numbers them. Names and separators are those of ``options``, with which the data were loaded. What else has
    columns is such a table or an array (.npy); what has none is an array, or spelt line by line on a stream.

    Raises UsageError for a suffix that does not fit, CannotSave where the place cannot be written.
    """
    blocks = [x] if isinstance(x, Tensor) else x
    if isinstance(to, str | os.PathLike) and str(to).endswith(ARRAY):
        with replacing(Path(to)) as scratch, open(scratch, "wb") as file:
            np.save(file, join(space, [*blocks]).detach().cpu().numpy())
    elif space.columns:
        given = dict(beside or {}) if context is None or c is None else _columns(context, c)
        placed = _placed(blocks)
        _write_tables((pa.table(_columns(space, b) | _stretch(given, first, len(b))) for first, b in placed), to)
    elif not isinstance(to, str | os.PathLike):
        to.writelines(f"{space.spell(row)}\n" for block in blocks for row in block)
    else:
        check_place(space, 0, Path(to))


@write_rows.register
def _(
    space: Sequence, x: Any, to: Place, context: Any = None, c: Any = None, *, options: Any = None, beside: Any = None
) -> None:
    name = (options or {}).get("sequence")
    name = number_of(space) if name in (None, ROWS) else name

    def tables() -> Iterator[pa.Table]:
        """Of each block all steps, and a first column that numbers their sequences."""
        for first, block in _placed([x] if isinstance(x, Tensor) else x):
            number = torch.arange(first, first + len(block)).repeat_interleave(space.lengths(block)).numpy()
            inside = block.flatten(0, 1)
            given = {k: _array(v).take(pa.array(number)) for k, v in (beside or {}).items()}
            yield pa.table({name: number} | _columns(space.step, inside[~inside[:, 0].isinf()]) | given)

    _write_tables(tables(), to)


@write_rows.register
def _(
    space: Text, x: Any, to: Place, context: Any = None, c: Any = None, *, options: Any = None, beside: Any = None
) -> None:
    write_texts([space.spell(row) for row in _whole(space, x)], to, options, beside)


@write_rows.register
def _(
    space: Audio, x: Any, to: Place, context: Any = None, c: Any = None, *, options: Any = None, beside: Any = None
) -> None:
    write_audio(space, _whole(space, x), _path(to), _classes(context, c), beside)


@write_rows.register
def _(
    space: Image, x: Any, to: Place, context: Any = None, c: Any = None, *, options: Any = None, beside: Any = None
) -> None:
    path, classes = _path(to), _classes(context, c)
    check_place(space, 0, path)
    pixels = np.moveaxis(_whole(space, x).detach().cpu().reshape(-1, *space.event_shape).numpy(), 1, -1)
    pixels = pixels if space.channels > 1 else pixels[..., 0]
    with replacing(path) as scratch:
        if path.suffix == ".npz":
            arrays: dict[str, Any] = {"x": pixels} | ({} if classes is None else {"y": np.array(classes)})
            arrays |= {k: _array(v).to_numpy(zero_copy_only=False).astype(_plain(v)) for k, v in (beside or {}).items()}
            np.savez_compressed(scratch, **arrays)
            return
        names = []
        for file, image in zip(
            numbered(scratch, len(pixels), ".png", classes), full_scale(space.levels)[pixels], strict=True
        ):
            Pillow.fromarray(image).save(file)
            names.append(file)
        _write_metadata(scratch, names, beside)


def _plain(values: Any) -> Any:
    """Of which NumPy type values are to be, so that they need no pickle."""
    return "U" if pa.types.is_string(_array(values).type) else None


def _write_metadata(folder: Path, files: Listed[Path], beside: Columns | None) -> None:
    """What stands beside each file, in the way that ``load`` reads it (``data.captions``)."""
    if beside:
        names = [file.relative_to(folder).as_posix() for file in files]
        write_columns(folder / "metadata.csv", {FILE: names, **beside})


def contexts_beside(
    context: Space, c: Tensor, names: Listed[str] | None, options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Contexts c [N, *Ec] as columns [N] that say what each is, and by which it is given again.

    Classes and columns by their names, texts under the name of what was given to ``load`` (``options``); what has no
    spelling by the ``names`` [N] of where each came from, in a column "given".
    """
    given = (options or {}).get("given")
    name = given[0] if isinstance(given, list) and len(given) == 1 else "given"
    if context.values:
        return {name if name != "given" else "label": [context.values[k] for k in c.cpu().reshape(-1).tolist()]}
    if context.columns:
        return _columns(context, c)
    if context.alphabet is not None:
        return {name: [context.spell(row) for row in c.cpu()]}
    return {} if names is None else {"given": list(names)}


def _placed(blocks: Iterable[Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Blocks of rows, with the number of the first of each."""
    first = 0
    for block in blocks:
        yield first, block
        first += len(block)


def _stretch(columns: Columns, first: int, count: int) -> dict[str, Any]:
    return {name: _array(values)[first : first + count] for name, values in columns.items()}


def _whole(space: Space, x: Tensor | Iterable[Tensor]) -> Tensor:
    return x if isinstance(x, Tensor) else join(space, [*x])


def _path(to: Place) -> Path:
    if not isinstance(to, str | os.PathLike):
        raise UsageError("Images and sounds cannot go to a text stream.", "Give a folder, an .npz or a .wav file.")
    return Path(to)


def _classes(context: Space | None, c: Tensor | None) -> list[str] | None:
    """The class of each row by name, where the context is one."""
    if context is None or c is None or not context.values:
        return None
    return [context.values[k] for k in c.cpu().reshape(-1).tolist()]


def write_audio(
    space: Audio,
    x: Tensor,
    to: str | os.PathLike[str],
    classes: Listed[str] | None = None,
    beside: Columns | None = None,
) -> None:
    """Sounds x [N, L] (or one, [L]) as 16-bit files: a folder of WAV files, in sub-folders by class, or one file.

    What stands ``beside`` each of a folder is in its metadata.csv.

    Raises UsageError for several sounds to one file, CannotSave where the place cannot be written.
    """
    soundfile, path = soundfile_package(), Path(to)
    sounds = [pcm(space, row) for row in x.detach().cpu().reshape(-1, x.shape[-1])]
    check_place(space, len(sounds), path)
    with replacing(path) as scratch:
        files = [scratch] if path.suffix else [*numbered(scratch, len(sounds), ".wav", classes)]
        for file, samples in zip(files, sounds, strict=True):
            try:
                soundfile.write(str(file), samples, space.rate, "VORBIS" if file.suffix == ".ogg" else "PCM_16")
            except soundfile.LibsndfileError as e:
                raise CannotSave(f"Cannot write {path}: {e.error_string}", "Choose another place or format.") from e
        if not path.suffix:
            _write_metadata(scratch, files, beside)


def write_texts(
    texts: Listed[str], to: Place, options: Mapping[str, Any] | None = None, beside: Columns | None = None
) -> None:
    """To a stream with a line of dashes between them, or to a file that is read back as these texts.

    A .txt file has between texts what stands between those of the data (``options`` of ``load``), or ENDOFTEXT; JSON
    lines have their key, and what stands ``beside`` each under its own. Raises UsageError for texts that a .txt file
    cannot tell apart.
    """
    if not isinstance(to, str | os.PathLike):
        to.write(BETWEEN.join(texts) + "\n")
        return
    path, options = Path(to), options or {}
    check_place(Text(), len(texts), path)
    if path.suffix == ".jsonl":
        key = options.get("text") or TEXT
        more = {k: _array(v).to_pylist() for k, v in (beside or {}).items()}
        lines = [{key: t} | {k: v[i] for k, v in more.items()} for i, t in enumerate(texts)]
        content = "".join(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in lines)
    else:
        separator = unescaped(options.get("separator") or ENDOFTEXT)
        content = separator.join(texts)
        if documents_in(content, separator) != [*texts] or content.startswith("\ufeff") or "\0" in content:
            what = f"{separator!r}, a carriage return before it, a zero or a byte order mark"
            raise UsageError(f"{path} cannot hold these texts: some hold {what}.", "End it in .jsonl.")
    with replacing(path) as scratch:
        scratch.write_bytes(content.encode())


def write_columns(to: Place, columns: Columns | Iterable[Columns]) -> None:
    """Columns of equal length as CSV or Parquet, or CSV on a stream: one line per row, in the order given.

    They come all at once or in blocks.
    """
    blocks = [columns] if isinstance(columns, Mapping) else columns
    _write_tables((pa.table({k: _array(v) for k, v in block.items()}) for block in blocks), to)


def write_parts(to: Path, files: Listed[str], blocks: Iterable[tuple[int, Columns]]) -> None:
    """A folder with a Parquet file for each of ``files`` that has rows, named and placed as these are to each other.

    Blocks come with the number of their file, in order.
    """
    check_free(to)
    root = os.path.commonpath([os.path.dirname(f) for f in files])
    with replacing(to) as scratch:
        scratch.mkdir()
        for number, rows in itertools.groupby(blocks, key=lambda block: block[0]):
            name = os.path.relpath(files[number], root)
            name = name if name.endswith(".parquet") else f"{name}.parquet"
            write_columns(scratch / name, (columns for _, columns in rows))


def _array(values: Any) -> pa.Array:
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    return pa.array(values.detach().cpu().numpy() if isinstance(values, Tensor) else values)


def _columns(space: Space, x: Tensor) -> dict[str, pa.Array]:
    if not space.columns:
        raise UsageError(f"{space} have no place in a table.", "Write them to a place of their own.")
    values = x.detach().cpu().double().reshape(-1, space.dims).numpy()
    return {col.name: decode(col, values[:, j]) for j, col in enumerate(space.columns)}


def _check_table(path: Path) -> None:
    if path.suffix.lower() not in TABLE_SUFFIXES:
        raise UsageError(f"{path} does not say which format.", f"End it in {', '.join(TABLE_SUFFIXES)}.")


def _write_tables(tables: Iterable[pa.Table], to: Place) -> None:
    """Tables of the same columns, one below the other, each as it comes; there is at least one."""
    if not isinstance(to, str | os.PathLike):
        for text in _csv(tables, ","):
            to.write(text.decode())
        return
    path = Path(to)
    _check_table(path)
    suffix = path.suffix.lower()
    with replacing(path) as scratch:
        if suffix in (".csv", ".tsv"):
            with open(scratch, "wb") as file:
                file.writelines(_csv(tables, "\t" if suffix == ".tsv" else ","))
            return
        rest = iter(tables)
        first = next(rest)
        if suffix == ".parquet":
            writer = pa.parquet.ParquetWriter(scratch, first.schema)
        else:
            writer = pa.ipc.new_file(str(scratch), first.schema)
        with writer:
            for table in itertools.chain([first], rest):
                writer.write_table(table)


def _csv(tables: Iterable[pa.Table], delimiter: str) -> Iterator[bytes]:
    """CSV with quotes only around text that needs them, which pyarrow does for all text or for none.

    Text that would be taken for missing without them needs them, too.
    """
    for k, table in enumerate(tables):
        if k == 0:
            header = io.StringIO()
            csv.writer(header, delimiter=delimiter, lineterminator="\n").writerow(table.column_names)
            yield header.getvalue().encode()
        texts = [c.unique().to_pylist() for c in table.columns if pa.types.is_string(c.type)]
        marks = set('"\r\n' + delimiter)
        special = any(marks & set(v) or v in MISSING for values in texts for v in values if v is not None)
        options = pa.csv.WriteOptions(
            include_header=False, delimiter=delimiter, quoting_style="needed" if special else "none"
        )
        body = pa.BufferOutputStream()
        pa.csv.write_csv(table, body, options)
        yield body.getvalue().to_pybytes()
