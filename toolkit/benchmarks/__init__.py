"""Every benchmark, and which of them count in the contest. `BENCHMARKS` is the one list: commands, rules,
comparison, report, checks and crate iterate over it. docs/benchmarks.md says how to add one.
"""

from pathlib import Path

from toolkit.benchmarks.ai2d import AI2D
from toolkit.benchmarks.base import Benchmark, Files
from toolkit.benchmarks.chartqa import CHARTQA
from toolkit.benchmarks.docvqa import DOCVQA
from toolkit.benchmarks.gqa import GQA
from toolkit.benchmarks.mmbench import MMBENCH, MMBENCH_CN
from toolkit.benchmarks.mme import MME
from toolkit.benchmarks.ocrbench import OCRBENCH
from toolkit.benchmarks.pope import POPE
from toolkit.benchmarks.scienceqa import SCIENCEQA
from toolkit.benchmarks.seed_bench import SEED_BENCH
from toolkit.benchmarks.textvqa import TEXTVQA
from toolkit.errors import UserError

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        *(TEXTVQA, MMBENCH, MMBENCH_CN, POPE, MME, SCIENCEQA),
        *(SEED_BENCH, AI2D, CHARTQA, DOCVQA, OCRBENCH, GQA),
    )
}
# the score is the mean of their ratios
CONTEST = tuple(name for name, benchmark in BENCHMARKS.items() if benchmark.contest)


def in_folder(folder: Path) -> dict[str, Files]:
    """The official files of each benchmark in `folder/{benchmark}`, where there is such a folder; UserError
    where there is none at all."""
    there = {name: folder / name for name in BENCHMARKS if (folder / name).is_dir()}
    if not there:
        names = ", ".join(BENCHMARKS)
        raise UserError(f"{folder} has no folder with official files of a benchmark, named {names}")
    return {name: BENCHMARKS[name].official_files(own, own) for name, own in there.items()}
