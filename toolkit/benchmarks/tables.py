"""Tables of others as pandas reads them by default: tab-separated text, gzip or zstd, or an Excel workbook,
told apart by their content.

pandas reads them, because what it takes for a missing value or a number is part of the official result. What
it would guess or read forever is refused before: two columns of one name, rows longer than the header, more
rows and columns than any benchmark has.
"""

from __future__ import annotations

import csv
import io
import string
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.parsers import expat
from zipfile import ZipFile

from toolkit.errors import UserError
from toolkit.files import read_bytes

if TYPE_CHECKING:  # see mmbench
    import pandas

BYTES = 1 << 30  # MMBench's largest table has a fifth of it, nearly all of it images
ROWS, COLUMNS = 50_000, 100  # the largest has 7,000 and 16
# of an unpacked workbook: no images; 7,000 rows are 200,000 elements
WORKBOOK_BYTES, ELEMENTS, PARTS = 1 << 26, 1_000_000, 1000
REFERENCE = 64  # characters; a picture has more
WORKBOOK = b"PK\x03\x04"  # it is a ZIP archive of XML


def read_table(path: Path, **options: Any) -> pandas.DataFrame:
    """The first row names the columns; `options` are those that both of pandas' readers know. UserError for
    what cannot be a table."""
    import pandas

    content = read_bytes(path, BYTES)
    try:
        if content.startswith(WORKBOOK):
            _assert_small(content)
            with pandas.ExcelFile(io.BytesIO(content), engine="openpyxl") as book:
                header = book.parse(header=None, nrows=1, dtype=str, keep_default_na=False)
                _assert_distinct(header.to_numpy().ravel().tolist())
                table = book.parse(**options)
        else:
            text = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", newline="")
            _assert_distinct(next(csv.reader(text, delimiter="\t"), []))
            with warnings.catch_warnings():
                warnings.simplefilter("error", pandas.errors.ParserWarning)
                table = pandas.read_table(io.BytesIO(content), index_col=False, nrows=ROWS + 1, **options)
            if len(table) > ROWS:
                raise ValueError(f"more than {ROWS} rows")
    except pandas.errors.ParserWarning:
        raise UserError(
            f"{path} cannot be read as a table: its rows have more cells than its header"
        ) from None
    # openpyxl has no exceptions of its own: a damaged workbook raises whatever comes
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__  # it may quote the workbook
        raise UserError(f"{path} cannot be read as a table: {reason}") from None
    return table


def pictures(indices: Iterable[Any], cells: Iterable[Any]) -> list[Any]:
    """The image cells of a table's rows: in VLMEvalKit's tables a short one is the index of the row that has
    the image."""
    cells = list(cells)
    images = dict(zip(map(str, indices), cells, strict=True))
    return [images.get(cell, cell) if len(str(cell)) <= REFERENCE else cell for cell in cells]


def _assert_distinct(names: list[Any]) -> None:
    import pandas

    if len(names) > COLUMNS:
        raise ValueError(f"{len(names)} columns, at most {COLUMNS} are read")
    column_names = [str(name).lower() for name in names if not pandas.isna(name) and str(name)]
    repeated = [name for name in column_names if column_names.count(name) > 1]
    if repeated:
        raise ValueError(f"it has two columns {repeated[0]!r}")


def _assert_small(content: bytes) -> None:
    """ValueError for a workbook that would become too large: its parts are read without building anything of
    them."""
    elements = rows = 0

    def element(name: str, attributes: dict[str, str]) -> None:
        nonlocal elements, rows
        elements += 1
        if elements > ELEMENTS:
            raise ValueError(f"its XML has more than {ELEMENTS} elements")
        place = attributes.get("r", "")
        if name.rpartition(":")[2] == "row":
            rows += 1
            # openpyxl fills the rows in between
            if rows > ROWS + 1 or (place and not float(place) <= ROWS + 1):
                raise ValueError(f"it has a row {place or rows}, at most {ROWS} are read")
            return
        if _column(place) > COLUMNS:
            raise ValueError(f"it has a cell {place}, at most {COLUMNS} columns are read")

    with ZipFile(io.BytesIO(content)) as archive:
        parts = archive.infolist()
        size = sum(part.file_size for part in parts)
        if len(parts) > PARTS or size > WORKBOOK_BYTES:
            raise ValueError(
                f"{len(parts)} parts of {size} bytes, at most {PARTS} of {WORKBOOK_BYTES} are read"
            )
        for part in parts:
            parser = expat.ParserCreate()
            parser.StartElementHandler = element
            # a picture; openpyxl has the same parser
            with archive.open(part) as handle, suppress(expat.ExpatError):
                parser.ParseFile(handle)


def _column(place: str) -> int:
    """Number of a cell's column: 1 for A7, 27 for AA7, 0 where none is said."""
    number = 0
    for letter in place[: len(place) - len(place.lstrip(string.ascii_letters))].upper():
        number = 26 * number + ord(letter) - ord("A") + 1
    return number
