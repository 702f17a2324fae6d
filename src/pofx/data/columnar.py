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


def from_parquet(path: Path) -> RawTable:
    try:
        file = pa.parquet.ParquetFile(path, memory_map=True)
    except (pa.ArrowException, OSError) as e:
        raise corrupt(path, "Parquet", e) from e

    def column(j: int) -> Array:
        try:
            return file.read(columns=[names[j]]).column(0)
        except (pa.ArrowException, OSError) as e:
            raise corrupt(path, "Parquet", e) from e

    names = file.schema_arrow.names
    return table_of(names, column, file.metadata.num_rows, str(path))


def from_ipc(path: Path) -> RawTable:
    try:
        with pa.memory_map(str(path)) as source:
            try:
                table = pa.ipc.open_file(source).read_all()
            except pa.ArrowInvalid:
                source.seek(0)
                table = pa.ipc.open_stream(source).read_all()
    except (pa.ArrowException, OSError) as e:
        raise corrupt(path, "Arrow", e) from e
    return from_arrow(table, str(path))


def from_arrow(table: pa.Table, where: str = "the table") -> RawTable:
    return table_of(table.column_names, table.column, table.num_rows, where)


def from_pandas(frame: Any) -> RawTable:
    def column(j: int) -> Array:
        try:
            return pa.chunked_array([pa.array(frame.iloc[:, j], from_pandas=True)])
        except (pa.ArrowException, TypeError) as e:
            problem = f"Column {frame.columns[j]!r} mixes types: {str(e).splitlines()[0]}."
            raise BadValue(problem, "Convert it: frame[column].astype(str).") from e

    return table_of([str(c) for c in frame.columns], column, len(frame), "the frame")
