"""A copy of the project in which every command is parsed by the toolkit's own parsers but only creates its
outputs.

Which jobs run is Snakemake's decision from files, parameters and its records of earlier runs. None of it
depends on what the commands compute, so seconds do for what takes minutes; the true path is run by the
end-to-end test.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COPIED = (
    "Snakefile",
    "workflow",
    "profiles",
    "toolkit",
    "solution",
    "CITATION.cff",
    "pyproject.toml",
    "requirements",
)
BYTECODE = ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")  # variables

# Takes the place of toolkit/__main__.py, which lies beside it as real.py.
STUB = """
import argparse, json, sys, time, zlib
from pathlib import Path
from toolkit import real

INSIDE = {  # files that a command declares in its --output folder
    "fetch": ["manifest.json"],
    "pretrain": ["mm_projector.bin", "config.json", "run.json"],
    "finetune": ["config.json", "run.json"],
    "analyze": ["statistics.json", "index.html"],
    "sources": ["config.yaml", "licences.json", "sbom.cdx.json", "CITATION.cff"],
    "textvqa": ["bm1.jsonl", "control.jsonl", "score.json", "run.json"],
    "pope": ["pope.jsonl", "control.jsonl", "score.json", "run.json"],
    "mmbench": ["answers/mmbench_dev_20230712/{name}.jsonl",
                "answers_upload/mmbench_dev_20230712/{name}.xlsx",
                "control.jsonl", "score.json", "run.json"],
}

def create(arguments):
    if Path("fail").exists() and Path("fail").read_text() == arguments.verb:
        from toolkit.errors import UserError
        raise UserError("the disk is on fire")
    if Path("slow").exists():
        time.sleep(int(Path("slow").read_text()))
    outputs = ("output", "removed", "record", "markdown", "samples_out", "losses")
    files = [value for key, value in vars(arguments).items() if key in outputs]
    if arguments.verb == "convert":
        files = [Path(sys.argv[-1])]
    if arguments.verb in INSIDE:
        name = arguments.model.name if "model" in arguments else ""
        files = [arguments.output / file.format(name=name) for file in INSIDE[arguments.verb]]
    if arguments.verb == "select":
        files = [arguments.output / name for name in ("winner.yaml", "control.yaml", "search.json")]
    if arguments.verb == "report" and "comparison" in arguments:
        files += [arguments.output.with_suffix(suffix) for suffix in (".json", ".svg")]
    if arguments.verb == "propose":  # names in place of recipes
        each = {"process": [{"text_length_filter": {}}], "decided": {}, "rows": 1, "instructions": 1}
        seeds = [zlib.crc32(f"{arguments.output.name} {number}".encode()) for number in (0, 1)]
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps({"proposals": [{**each, "seed": seed} for seed in seeds]}))
        return
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(" ".join(sys.argv[1:]))

parse = argparse.ArgumentParser.parse_args
def parse_args(self, *given):
    arguments = parse(self, *given)
    arguments.run = create
    return arguments
argparse.ArgumentParser.parse_args = parse_args
sys.exit(real.main())
"""


# Answers each line of (folder, file for the output, arguments) with the exit status of `snakemake arguments`
# in that folder. Importing Snakemake takes most of a dry run's time: it is done once, every run is a fork.
# Modules that it, and the workflow, import in every run come with it, and the syntax trees of the toolkit's
# modules by their text; the toolkit is each folder's own.
SERVER = """
import ast, functools, json, os, sys
from pathlib import Path
import numpy, pandas, PIL.ImageOps, pydantic, scipy.stats, smart_open, snakemake.cli, snakemake.profiles
import snakemake.report.html_reporter, snakemake.storage, xml.parsers.expat, yaml, zstandard
ast.parse = functools.cache(ast.parse)
for path in Path(sys.argv[1], "toolkit").rglob("*.py"):
    ast.parse(path.read_text(encoding="utf-8"))
for line in sys.stdin:
    folder, output, arguments = json.loads(line)
    child = os.fork()
    if not child:
        os.chdir(folder)
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1), os.dup2(descriptor, 2)
        sys.argv[1:] = arguments
        try:
            snakemake.cli.main(arguments)
        except SystemExit as end:  # an interpreter with so many objects takes longer to end than a dry run
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(int(end.code or 0))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
os._exit(0)
"""


@dataclass
class Project:
    """A copy of the project at `path`; `server` runs SERVER."""

    path: Path
    server: subprocess.Popen

    def copy(self, path: Path) -> "Project":
        """A copy with its times and Snakemake's records, to be changed."""
        shutil.copytree(self.path, path, symlinks=True)
        return Project(path, self.server)

    def snakemake(self, *arguments: str) -> tuple[int, str]:
        """Exit status and everything printed."""
        output = self.path.with_suffix(".txt")
        print(json.dumps([str(self.path), str(output), arguments]), file=self.server.stdin, flush=True)
        return int(self.server.stdout.readline()), output.read_text()

    def jobs(self, *arguments: str, target: str = "submit.zip") -> set[str]:
        """What a dry run would do: `rule` or `rule experiment`, one each."""
        status, printed = self.snakemake(target, "--dry-run", *arguments)
        assert status == 0, printed
        actual = re.findall(
            r"^(?:local)?rule ([\w-]+):$(.*?)(?=^(?:local)?rule |\Z)", printed, re.MULTILINE | re.DOTALL
        )
        wildcards = [
            (rule, re.search(r"^    wildcards: .*?\b(?:exp|asset|run)=([\w.-]+)", text, re.MULTILINE))
            for rule, text in actual
        ]
        return {f"{rule} {match[1]}" if match else rule for rule, match in wildcards}

    def replace(self, file: str, old: str, new: str) -> None:
        """Edit a file; `old` must be in it."""
        text = (self.path / file).read_text()
        assert old in text, f"{file} has no {old!r}"
        (self.path / file).write_text(text.replace(old, new))
        # Python takes a text of the same length in the same second for the one that it compiled
        for compiled in (self.path / file).parent.glob(f"__pycache__/{Path(file).stem}.*"):
            compiled.unlink()

    def append(self, file: str, text: str = "\n# edited\n") -> None:
        (self.path / file).write_text((self.path / file).read_text() + text)


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Iterator[Project]:
    """The finished project: all jobs of submit.zip were run."""
    path = tmp_path_factory.mktemp("finished")
    unwanted = shutil.ignore_patterns("__pycache__", "*.safetensors")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, path / name, symlinks=True, ignore=unwanted)
        else:
            shutil.copy2(ROOT / name, path / name)
    (path / "toolkit/__main__.py").rename(path / "toolkit/real.py")
    (path / "toolkit/__main__.py").write_text(STUB)
    command = [sys.executable, "-c", SERVER, str(path)]
    # what is compiled lies beside the modules, and is copied with them
    env = {name: value for name, value in os.environ.items() if name not in BYTECODE}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=env, **pipes) as server:
        project = Project(path, server)
        status, printed = project.snakemake("submit.zip")
        assert status == 0, printed
        yield project


@pytest.fixture
def project(finished, tmp_path) -> Project:
    """A copy of the finished project."""
    return finished.copy(tmp_path / "project")
