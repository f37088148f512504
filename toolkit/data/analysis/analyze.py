"""Everything about one data set in one folder: statistics.json, figures/, and index.html to look through it.

    python -m toolkit data analyze processed_data.jsonl --images input/world-seed --output
    output/reports/data-synth --processes 2 \\
        --removed removed.jsonl --record run.json --seed-samples input/world-seed/mgm_pretrain_stage_1.jsonl

The last three add what became of the other rows, and captions before and after; `--influence` adds what each
row did to each benchmark. Same files in, same bytes out.
"""

from pathlib import Path

from toolkit.data.analysis.charts import draw
from toolkit.data.analysis.gallery import funnel, write_gallery
from toolkit.data.analysis.rows import read_headers, read_rows
from toolkit.data.analysis.shape import Statistics
from toolkit.data.analysis.statistics import describe
from toolkit.errors import UserError
from toolkit.files import sha256, write_json


def analyze(
    samples: Path,
    images: Path,
    output: Path,
    processes: int,
    removed: Path | None = None,
    record: Path | None = None,
    seed_samples: Path | None = None,
    influence: Path | None = None,
) -> Statistics:
    """Write the folder `output`; return the numbers. UserError where `samples` has no valid row or another
    file is malformed."""
    if processes < 1:
        raise UserError(f"--processes is {processes}, it must be at least 1")
    of = {"processed_data": samples} | ({"removed": removed} if removed else {})
    steps = funnel(record, of) if record else []
    rows = read_rows(samples, images)
    headers = read_headers(rows.files)
    statistics = describe(rows, sha256(samples), headers, processes)
    draw(rows, headers, statistics, output / "figures")
    write_gallery(
        output,
        samples,
        images,
        rows,
        headers,
        statistics,
        removed,
        steps,
        seed_samples,
        influence,
        processes,
    )
    write_json(output / "statistics.json", statistics.model_dump())
    return statistics
