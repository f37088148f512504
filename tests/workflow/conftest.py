"""A copy of the project in which every command is parsed by the toolkit's own parsers but only creates its outputs.

Which jobs run is Snakemake's decision from files, parameters and its records of earlier runs. None of it depends on what the
commands compute, so seconds do for what takes minutes; the true path is run by the end-to-end test.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COPIED = ("Snakefile", "workflow", "profiles", "toolkit", "solution")

# Takes the place of toolkit/__main__.py, which lies beside it as real.py.
STUB = """
import argparse, sys
from pathlib import Path
from toolkit import real

INSIDE = {  # files that a command declares in its --output folder
    "fetch": ["manifest.json"],
    "pretrain": ["mm_projector.bin", "config.json", "run.json"],
    "finetune": ["config.json", "run.json"],
    "textvqa": ["bm1.jsonl", "score.json", "run.json"],
    "mmbench": ["answers/mmbench_dev_20230712/{name}.jsonl", "answers_upload/mmbench_dev_20230712/{name}.xlsx", "score.json", "run.json"],
}

def create(arguments):
    if Path("fail").exists() and Path("fail").read_text() == arguments.verb:
        from toolkit.errors import UserError
        raise UserError("the disk is on fire")
    files = [value for key, value in vars(arguments).items() if key in ("output", "removed", "record", "markdown", "samples_out")]
    if arguments.verb == "convert":
        files = [Path(sys.argv[-1])]
    if arguments.verb in INSIDE:
        name = arguments.model.name if "model" in arguments else ""
        files = [arguments.output / file.format(name=name) for file in INSIDE[arguments.verb]]
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


class Project:
    """A copy of the project at `path`."""

    def __init__(self, path: Path):
        self.path = path

    def snakemake(self, *arguments: str) -> subprocess.CompletedProcess:
        command = [Path(sys.executable).with_name("snakemake"), *arguments]
        return subprocess.run(command, cwd=self.path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)

    def jobs(self, *arguments: str) -> set[str]:
        """What a dry run would do: `rule` or `rule experiment`, one each."""
        done = self.snakemake("submit.zip", "--dry-run", *arguments)
        assert done.returncode == 0, done.stdout
        found = re.findall(r"^rule (\w+):$(.*?)(?=^rule |\Z)", done.stdout, re.MULTILINE | re.DOTALL)
        wildcards = [(rule, re.search(r"^    wildcards: .*?\b(?:exp|asset)=([\w-]+)", text, re.MULTILINE)) for rule, text in found]
        return {f"{rule} {match[1]}" if match else rule for rule, match in wildcards}

    def replace(self, file: str, old: str, new: str) -> None:
        """Edit a file; `old` must be in it."""
        text = (self.path / file).read_text()
        assert old in text, f"{file} has no {old!r}"
        (self.path / file).write_text(text.replace(old, new))

    def append(self, file: str, text: str = "\n# edited\n") -> None:
        (self.path / file).write_text((self.path / file).read_text() + text)


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> Path:
    """The finished project: all jobs of submit.zip were run."""
    path = tmp_path_factory.mktemp("built")
    unwanted = shutil.ignore_patterns("__pycache__", "*.safetensors")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, path / name, symlinks=True, ignore=unwanted)
        else:
            shutil.copy2(ROOT / name, path / name)
    (path / "toolkit/__main__.py").rename(path / "toolkit/real.py")
    (path / "toolkit/__main__.py").write_text(STUB)
    done = Project(path).snakemake("submit.zip")
    assert done.returncode == 0, done.stdout
    return path


@pytest.fixture
def project(built, tmp_path) -> Project:
    """A copy of the finished project, with its times and Snakemake's records, to be changed."""
    path = tmp_path / "project"
    shutil.copytree(built, path, symlinks=True)
    return Project(path)
