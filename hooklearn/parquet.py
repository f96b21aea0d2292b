"""Parquet from elsewhere: a damaged file is an error, and never a crash of the process that reads it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def read_table(path: str | Path) -> Any:
    """A ``pyarrow.Table`` whose every value has been looked at.

    A flipped bit can leave offsets that lie outside their buffer, or text that is not UTF-8; arrow hands that on, and
    who walks over it later (pandas' ``to_json``, say) takes the process down with it.

    Raises:
        Exception: pyarrow's own, of many kinds; and OSError.
    """
    from pyarrow import parquet

    with Path(path).open("rb") as handle:
        table = parquet.read_table(handle)
    table.validate(full=True)
    return table


def read_frame(path: str | Path) -> pd.DataFrame:
    """The same as a data frame."""
    return read_table(path).to_pandas()


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The same as one mapping a row, without the index that pandas may have written.

    Raises:
        ValueError: two columns of one name.
    """
    table = read_table(path)
    if len(set(table.column_names)) < len(table.column_names):
        raise ValueError(f"two columns of one name among {table.column_names}")
    return table.drop_columns([n for n in table.column_names if n.startswith("__index_level_")]).to_pylist()
