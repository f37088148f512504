"""What a run of Snakemake has done, by its own log (.snakemake/log): jobs started, finished and failed.

Snakemake 9.27 writes a block for each event: a time, then what happened, with fields in the lines below that
are indented by four spaces. A dry run and a job on another machine write no log there.
"""

import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

LOGS = Path(".snakemake/log")
TIME = re.compile(r"\[(\w{3} \w{3} [ \d]\d [\d:]{8} \d{4})\]")
STARTED = re.compile(r"(?:local)?(?:rule|checkpoint) ([\w-]+):")
FINISHED = re.compile(r"Finished jobid: (\d+) \(Rule: [\w-]+\)")
FAILED = re.compile(r"Error in rule [\w-]+:")
COUNT = re.compile(r"([\w-]+) +(\d+)")
# a file of --configfile stands there as PosixPath('...')
CONFIGS = re.compile(r"  Config file\(s\): \[((?:(?:PosixPath\()?'[^'\\]*'\)?(?:, )?)*)\]")
COMMAND = re.compile(r"  Command: (.*)")
ENDED = ("Complete log(s):", "Nothing to be done")


@dataclass
class Job:
    """One job. started, ended: seconds since the epoch; log: its own, below the folder; name: of its file in
    output/benchmarks, without the ending, which is what `plan` calls it."""

    rule: str
    started: float
    log: str = ""
    name: str = ""
    ended: float | None = None
    failed: bool = False

    @property
    def running(self) -> bool:
        return self.ended is None

    @property
    def done(self) -> bool:
        return not self.running and not self.failed

    @property
    def seconds(self) -> float:
        """From its start to its end; 0 while it runs."""
        return 0.0 if self.ended is None else self.ended - self.started


@dataclass
class Run:
    """One run. counts: how many jobs of each rule it needs. jobs: those that it started, by Snakemake's
    number. ended: Snakemake has said its last word. last: seconds since the epoch of the last event. configs:
    its configuration files, none where single keys of them were changed on the command line."""

    file: Path
    counts: Counter[str] = field(default_factory=Counter)
    jobs: dict[int, Job] = field(default_factory=dict)
    ended: bool = False
    last: float = 0.0
    configs: list[str] = field(default_factory=list)

    @property
    def done(self) -> int:
        return sum(job.done for job in self.jobs.values())

    @property
    def state(self) -> str:
        """running, finished, failed, stopped (by the user) or interrupted (killed, or on another machine)."""
        if not self.ended:
            return "running" if _open(self.file) else "interrupted"
        if any(job.failed for job in self.jobs.values()):
            return "failed"
        return "finished" if self.done == self.counts.total() else "stopped"

    def waiting(self) -> Counter[str]:
        """Jobs of each rule that have not started."""
        return self.counts - Counter(job.rule for job in self.jobs.values())


def latest(folder: Path = LOGS) -> Run | None:
    """The run that was started last; None where there is none."""
    logs = sorted(folder.glob("*.snakemake.log"))  # their names are times
    return read(logs[-1]) if logs else None


def read(file: Path) -> Run:
    """The run that a log tells of; a last line without its end is left out."""
    run, counting, changed, when = Run(file), False, False, 0.0
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    for line, fields in _blocks(lines):
        number = int(fields["jobid"]) if fields.get("jobid", "").isdecimal() else None
        if match := TIME.fullmatch(line):
            when = run.last = time.mktime(time.strptime(match[1], "%a %b %d %H:%M:%S %Y"))
        elif (match := STARTED.fullmatch(line)) and number is not None:
            name = fields.get("benchmark", "").removeprefix("output/benchmarks/").removesuffix(".tsv")
            run.jobs[number] = Job(match[1], when, fields.get("log", ""), name)
        elif FAILED.fullmatch(line) and number in run.jobs:
            run.jobs[number].ended, run.jobs[number].failed = when, True
        elif (match := FINISHED.fullmatch(line)) and int(match[1]) in run.jobs:
            run.jobs[int(match[1])].ended = when
        elif match := CONFIGS.fullmatch(line):
            run.configs = [] if changed else re.findall("'([^']*)'", match[1])
        elif match := COMMAND.fullmatch(line):
            changed = bool(re.search(r" (?:--config|-C)[ =]", match[1]))
        elif line == "Job stats:":
            counting, run.counts = True, Counter()
        elif counting and (match := COUNT.fullmatch(line)):
            run.counts[match[1]] = int(match[2])
        elif not line:
            counting = False
        run.ended = run.ended or line.startswith(ENDED)
    del run.counts["total"]
    return run


def _blocks(lines: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Every line that is not indented by four spaces, with the fields below it."""
    head = ""
    fields: dict[str, str] = {}
    for line in lines:
        if line.startswith("    "):
            key, colon, value = line.strip().partition(": ")
            fields |= {key: value} if colon else {}
        else:
            yield head, fields
            head, fields = line, {}
    yield head, fields


def _open(file: Path) -> bool:
    """Whether a Snakemake on this machine, of those that this user may look at, has the file open."""
    path = str(file.resolve())
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any("snakemake" in part for part in process.cmdline()) and any(
                opened.path == path for opened in process.open_files()
            ):
                return True
    return False
