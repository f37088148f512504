"""The table that goes to the MMBench server: the benchmark's rows with a column `prediction`, the same bytes
whenever it is written.

Written by `python -m toolkit evaluate mmbench`; columns and order as the kit's
convert_mmbench_for_submission.py has them.
"""

from __future__ import annotations

import datetime
import io
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.errors import UserError
from toolkit.files import atomic

if TYPE_CHECKING:  # see mmbench
    import pandas

DROPPED = ("hint", "category", "source", "image", "comment", "l2-category")
PREDICTION_COLUMN = 6  # after index, question, A, B, C, D
ENTRY_DATE = (1980, 1, 1, 0, 0, 0)  # the oldest a zip archive can hold
ILLEGAL = re.compile("[\000-\010]|[\013-\014]|[\016-\037]|[\ufffe\uffff]")  # XML has no such characters
EPOCH = datetime.datetime(1980, 1, 1)


def write_upload(path: Path, table: pandas.DataFrame, predictions: list[str]) -> None:
    """Write the .xlsx atomically. table: from `mmbench.load_table`; predictions: one text a row.

    Characters that the format cannot hold become U+FFFD. Texts stay texts even when they look like a formula.
    """
    import pandas
    from openpyxl import Workbook

    sheet = table.drop(columns=[column for column in DROPPED if column in table.columns])
    sheet.insert(PREDICTION_COLUMN, "prediction", predictions)
    workbook = Workbook()
    workbook.properties.created = EPOCH
    for number, row in enumerate([tuple(sheet.columns), *sheet.itertuples(index=False, name=None)], start=1):
        for column, value in enumerate(row, start=1):
            if isinstance(value, str):
                workbook.active.cell(number, column, ILLEGAL.sub("\ufffd", value)).data_type = "s"
            elif not pandas.isna(value):
                workbook.active.cell(number, column, value)
    buffer = io.BytesIO()
    workbook.save(buffer)
    with (
        atomic(path) as temporary,
        zipfile.ZipFile(buffer) as source,
        zipfile.ZipFile(temporary, "w") as target,
    ):
        for name in source.namelist():
            content = source.read(name)
            # openpyxl stamps the time of saving here, whatever the properties say
            if name == "docProps/core.xml":
                content = re.sub(rb"(<dcterms:modified[^>]*>)[^<]*", rb"\g<1>1980-01-01T00:00:00Z", content)
            target.writestr(zipfile.ZipInfo(name, ENTRY_DATE), content, zipfile.ZIP_DEFLATED)


def table_cells(path: Path) -> list[list[tuple]]:
    """Type and value of every cell of every sheet; UserError for a damaged workbook."""
    from openpyxl import load_workbook

    try:
        workbook = load_workbook(path)
        return [
            [tuple((cell.data_type, cell.value) for cell in row) for row in sheet.iter_rows()]
            for sheet in workbook.worksheets
        ]
    except Exception as error:  # openpyxl has no exceptions of its own
        raise UserError(f"{path} cannot be read as a workbook: {type(error).__name__}") from None
