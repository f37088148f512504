"""Every benchmark, and which of them count in the contest. `BENCHMARKS` is the one list: commands, rules,
comparison, report, checks and crate iterate over it. docs/benchmarks.md says how to add one.
"""

from toolkit.benchmarks.base import Benchmark
from toolkit.benchmarks.mmbench import MMBENCH
from toolkit.benchmarks.pope import POPE
from toolkit.benchmarks.textvqa import TEXTVQA

BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in (TEXTVQA, MMBENCH, POPE)}
# the score is the mean of their ratios
CONTEST = tuple(name for name, benchmark in BENCHMARKS.items() if benchmark.contest)
