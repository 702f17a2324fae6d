"""Tables that come in columns: Parquet, Arrow files and streams, pandas and polars frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from pofx.core.errors import BadValue
from pofx.data.raw import RawTable, corrupt, table_of
from pofx.data.tabular import Array

# what pyarrow raises on damaged files: names, and messages about them, may be no UTF-8
DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError)


def from_parquet(path: Path) -> RawTable:
    """Columns are read when asked for."""
    try:
        file = pa.parquet.ParquetFile(path)
        names, rows = file.schema_arrow.names, file.metadata.num_rows
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        held = [min(g.num_rows, g.column(0).num_values) if g.num_columns else 0 for g in groups]
    except DAMAGE as e:
        raise corrupt(path, "Parquet", e) from e
    if sum(held) < rows:  # memory is taken for as many rows as are told
        raise corrupt(path, "Parquet", f"it tells of {rows} rows and holds {sum(held)}")

    def column(j: int) -> Array:
        try:
            table = file.read(columns=[names[j]])
            table.validate(full=True)
        except DAMAGE as e:
            raise corrupt(path, "Parquet", e) from e
        if len(table) != rows or table.column_names != [names[j]]:
            what = f"column {names[j]!r} has {len(table)} of {rows} rows"
            raise corrupt(path, "Parquet", what)
        return table.column(0)

    return table_of(names, column, rows, str(path))


def from_ipc(path: Path) -> RawTable:
    """An Arrow file or stream; all of it is checked before use, since offsets that point elsewhere end the process."""
    try:
        data = pa.py_buffer(path.read_bytes())
        if data.slice(0, 4).to_pybytes() == b"FEA1":
            raise corrupt(path, "Arrow", "it is Feather of version 1, which no longer is a format of Arrow's")
        try:
            table = pa.ipc.open_file(data).read_all()
        except pa.ArrowInvalid:
            table = pa.ipc.open_stream(data).read_all()
        table.validate(full=True)
        return from_arrow(table, str(path))
    except DAMAGE as e:
        raise corrupt(path, "Arrow", e) from e


def from_arrow(table: pa.Table, where: str = "the table") -> RawTable:
    return table_of(table.column_names, table.column, table.num_rows, where)


def from_pandas(frame: Any) -> RawTable:
    """A pandas frame, or a Series as a frame of one column. An index that says something is told to be left out."""
    if frame.ndim == 1:
        frame = frame.to_frame(frame.name if frame.name is not None else "x1")

    def column(j: int) -> Array:
        values = frame.iloc[:, j]
        try:
            return pa.chunked_array([_pandas_array(values)])
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as e:
            problem = f"Column {frame.columns[j]!r} of type {values.dtype} cannot be read: {str(e).splitlines()[0]}."
            raise BadValue(problem, "Convert it: frame[column].astype(str).") from e

    raw = table_of([str(c) for c in frame.columns], column, len(frame), "the frame")
    index = frame.index
    if any(n is not None for n in index.names) or index.dtype.kind not in "iu":
        named = ", ".join(repr(n) for n in index.names if n is not None) or f"of type {index.dtype}"
        raw.notes.append(f"The index ({named}) was left out; keep it as columns with frame.reset_index().")
    return raw


def _pandas_array(values: Any) -> pa.Array:
    """None, NaN, NaT and pd.NA are null; texts stay as they are."""
    if hasattr(values, "sparse"):
        values = values.sparse.to_dense()
    if values.dtype.name == "category" and values.cat.categories.dtype.name == "interval":
        values = values.cat.rename_categories(str)
    try:
        return pa.array(values, from_pandas=True)
    except OverflowError:  # whole numbers beyond 64 bits: identifiers, by their digits
        whole = [None if v is None or v != v else int(v) for v in values]
        if any(w is not None and w != v for w, v in zip(whole, values, strict=True)):
            raise
        return pa.array([None if w is None else str(w) for w in whole])


def from_polars(source: Any) -> RawTable:
    """A polars frame, a lazy one (which is collected) or a Series."""
    library = type(source).__name__
    frame = source.collect() if library == "LazyFrame" else source.to_frame() if library == "Series" else source

    def column(j: int) -> Array:
        series = frame.to_series(j)
        try:
            return pa.chunked_array([series.to_arrow()])
        except (pa.ArrowException, TypeError, ValueError) as e:
            problem = f"Column {series.name!r} of type {series.dtype} cannot be read: {str(e).splitlines()[0]}."
            raise BadValue(problem, "Convert it: frame.cast({column: polars.String}).") from e

    return table_of(frame.columns, column, frame.height, "the frame")
