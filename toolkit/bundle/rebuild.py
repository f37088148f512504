"""Make an entry again from its archive, and compare file by file.

    python -m toolkit bundle rebuild submit.zip --output FOLDER

The work tree is this repository's code with the archive's recipes, their files and its configuration;
Snakemake does the rest there, assets included. The same code and packages on the same kind of processor give
the same bytes; elsewhere sums are rounded in another order, so that numbers are compared with a tolerance. A
run that was interrupted continues in the same folder.

An archive in which `verify` finds an error is not rebuilt. Of the archive nothing is executed: its recipes
name operators of this toolkit and of Data-Juicer that compute and do nothing else (D5). They run without the
keys, tokens and proxies of the reviewer's environment (KEPT is what they see), so no endpoint is paid: its
answers have to be in the archive. Where bubblewrap can run they run in a `sandbox`, which takes assets that
the toolkit does not draw from TOOLKIT_MIRROR. `--trust` lifts all three.
"""

import fcntl
import math
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load

from toolkit import code, config
from toolkit.bundle import sandbox
from toolkit.bundle.explain import Story, checked
from toolkit.bundle.findings import errors
from toolkit.bundle.verify import verify
from toolkit.bundle.zip.archive import Archive
from toolkit.contest import records
from toolkit.contest.stages import MODULES
from toolkit.errors import UserError
from toolkit.files import read_json, read_yaml, sha256, write_json
from toolkit.parse import Malformed, json_value, logged

ROOT = Path(__file__).parents[2]
CODE = ("Snakefile", "CITATION.cff", "pyproject.toml", "workflow", "toolkit", "requirements", "profiles")
CONFIG = "output/reports/config.yaml"
MARK = ".rebuild.json"  # in the folder: of which archive it is the rebuild, and how each run was shut off
HOME = ".rebuild-home"  # in the folder: what a run takes for the home directory
# Names of variables of the environment that a run may see: where programs, temporary files and the GPU are,
# and what decides rounding.
KEPT = re.compile(
    r"PATH|LANG|LC_\w+|TZ|TMPDIR|LD_LIBRARY_PATH|(?:OMP|MKL|OPENBLAS|KMP|CUDA|NVIDIA|NCCL|CUBLAS)_\w+|ATEN_CPU_CAPABILITY"
    r"|(?:DNNL|ONEDNN)_MAX_CPU_ISA|PYTORCH_\w*ALLOC_CONF|TOOLKIT_(?:IMAGE|MIRROR)"
)
LARGEST = 1 << 30  # bytes; a larger file is compared by its hash alone
RELATIVE, ABSOLUTE = 0.05, 0.001  # numbers; a tensor's difference is taken relative to its length
EQUAL, NEAR, OTHER, GONE, NEW = (
    "byte-equal",
    "equal within tolerance",
    "different",
    "missing in the rebuild",
    "only in the rebuild",
)
# Follow from hashes, or from the machine itself.
FOLLOWS = {
    "answer_id",
    "bytes",
    "code",
    "contentSize",
    "device",
    "description",
    "driver",
    "image",
    "lock",
    "softwareVersion",
    "versions",
}
# whole, or as toolkit.bundle.papers.crate shortens them
HASH = re.compile(r"\b(?:[0-9a-f]{64}|[0-9a-f]{12})\b")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def rebuild(
    path: Path,
    folder: Path,
    trust: bool = False,
    hours: float = 24,
    memory: float | None = None,
    disk: float | None = None,
) -> tuple[list[str], dict[str, str]]:
    """Remarks on code, packages and sandbox, and a verdict for each file of either archive. UserError if one
    cannot be used.

    trust: whatever `verify` finds in a sound zip, run what the recipes name, with the whole environment and
    no sandbox. hours, memory, disk (GiB): what the sandbox allows, see `sandbox.Limits.of`.
    """
    report = verify(path)
    if (severe := errors(report.findings)) and not trust:
        first = f"{severe[0].file}: {severe[0].message}"
        raise UserError(
            f"{path} is not rebuilt, it has errors ({len(severe)}, the first: {first}): see `bundle verify "
            f"{path}`"
        )
    with Archive(path) as archive:
        story = Story(archive)
        if sha256(path) != report.sha256:
            raise UserError(f"{path} was changed while it was read: run the same again")
        remarks = conditions(story)
        lay_out(archive, folder)
        if not trust and (asking := unanswered(folder)):
            raise UserError(
                f"{path} has no answers for {asking[0]}, which would be asked for and paid with your key: "
                "--trust does so"
            )
        limits = sandbox.Limits.of(folder, hours, memory, disk)
        with alone(folder):
            remarks.append(run(folder, None if trust else environment(folder), limits))
            if (folder / "submit.zip").is_symlink():
                raise UserError(f"{folder}/submit.zip is a link, which no rule of the workflow makes")
            with Archive(folder / "submit.zip") as again:
                return remarks, compare(archive, checked(again))


def conditions(story: Story) -> list[str]:
    """Whether code and packages are those of the archive's records."""
    remarks = []
    for subject, current, recorded in [
        ("code", code.digest(*MODULES), {record.code for record in story.records}),
        ("package locks", records.lock(), {record.lock for record in story.records}),
    ]:
        unchanged = recorded == {current} and current is not None
        remarks.append(
            f"{subject}: the same as in the records"
            if unchanged
            else f"{subject}: NOT the same as in the records, bytes may differ"
        )
    return remarks


def lay_out(archive: Archive, folder: Path) -> None:
    """Fill `folder` with this repository's code and the archive's solution and configuration; a rebuild of
    the same archive stays as is."""
    mark = {"archive": sha256(archive.path)}
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARK).is_file() or read_json(folder / MARK)["archive"] != mark["archive"]:
            raise UserError(f"{folder} is not empty and no rebuild of {archive.path}: name a new folder")
        return
    if CONFIG not in archive.members:
        raise UserError(
            f"{archive.path} has no {CONFIG}: it was packed without the configuration that a rebuild starts "
            "from"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name in CODE:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True
            )
        elif (ROOT / name).exists():
            shutil.copyfile(ROOT / name, folder / name)
    for name in archive.members:
        if name.startswith("solution/") or name == CONFIG:
            target = folder / ("config.yaml" if name == CONFIG else name)
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as source, target.open("wb") as handle:
                shutil.copyfileobj(source, handle)
    write_json(folder / MARK, mark)


def unanswered(folder: Path) -> list[str]:
    """Operators that ask an endpoint and whose file of answers is not there, by recipe and name."""
    try:
        settings = config.Config.model_validate(read_yaml(folder / "config.yaml") or {})
    except ValidationError as error:
        problems = "; ".join(map(config.sentence, error.errors(include_url=False)))
        raise UserError(f"{CONFIG} in the archive cannot be used: {problems}") from None
    asking = []
    for recipe in sorted({experiment.recipe for experiment in settings.experiments.values()}):
        file = folder / config.RECIPES / f"{recipe}.yaml"
        for step in read_yaml(file)["process"] if file.is_file() else []:  # Snakemake says which is missing
            for name, arguments in step.items() if isinstance(step, dict) else [(step, {})]:
                answers = (arguments or {}).get("responses")
                if str(name).startswith("endpoint_") and not (
                    isinstance(answers, str) and (folder / answers).is_file()
                ):
                    asking.append(f"{name} of {recipe}.yaml")
    return asking


def environment(folder: Path) -> dict[str, str]:
    """What a run sees of this process's environment, and an empty home directory."""
    home = folder.resolve() / HOME
    home.mkdir(exist_ok=True)
    return {name: value for name, value in os.environ.items() if KEPT.fullmatch(name)} | {"HOME": str(home)}


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """UserError where another rebuild is at work there. Snakemake's own lock would outlive a killed run."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            reason = f"another rebuild is at work in {folder}: wait for it, or name a new folder"
            raise UserError(reason) from None
        yield
    finally:
        os.close(descriptor)


def run(folder: Path, variables: dict[str, str] | None, limits: sandbox.Limits) -> str:
    """`snakemake submit.zip` in `folder` with these variables of the environment (None: all, and no sandbox);
    its output goes to stderr. How it was shut off, as a sentence, which `folder`'s record keeps."""
    command = [sys.executable, "-m", "snakemake", "submit.zip", "--configfile", "config.yaml", "--nolock"]
    folder = folder.resolve()
    refused = "--trust" if variables is None else sandbox.refused(folder, limits)
    if refused:
        sentence = (
            f"sandbox: none, {refused}: the run can reach your network and files; the container with "
            "--network none shuts it off (docs/container.md)"
        )
    else:
        sentence = f"sandbox: bubblewrap without network, keys and your files, within {limits}"
    print(sentence, file=sys.stderr, flush=True)
    mark = read_json(folder / MARK)
    write_json(folder / MARK, mark | {"runs": [*mark.get("runs", []), sentence]})
    if variables is None or refused:
        status = subprocess.run(command, cwd=folder, env=variables, stdout=sys.stderr, check=False).returncode
    else:
        fixed = [folder / name for name in (*CODE, "config.yaml", MARK) if (folder / name).exists()]
        status = sandbox.run(command, folder, variables, fixed, limits)
    if status:
        raise UserError(
            f"snakemake ended with status {status} in {folder}, see the lines above: run the same command "
            "again to continue"
            + (
                ""
                if refused
                else f" (its sandbox: within {limits}, assets from the network only out of a TOOLKIT_MIRROR)"
            )
        )
    return sentence


def compare(first: Archive, second: Archive) -> dict[str, str]:
    """A verdict for each name in either archive."""
    verdicts = {}
    for name in sorted({*first.members, *second.members}):
        if name not in second.members:
            verdicts[name] = GONE
        elif name not in first.members:
            verdicts[name] = NEW
        elif first.digests[name] == second.digests[name]:
            verdicts[name] = EQUAL
        elif max(archive.members[name].size for archive in (first, second)) > LARGEST:
            verdicts[name] = OTHER
        else:
            with first.open(name) as original, second.open(name) as rebuilt:
                verdicts[name] = NEAR if near(name, original.read(), rebuilt.read()) else OTHER
    return verdicts


def near(name: str, first: bytes, second: bytes) -> bool:
    """Whether two files say the same but for hashes and the tolerance on numbers; files of unknown formats
    never do."""
    try:
        if name.endswith(".safetensors"):
            return near_tensors(load(first), load(second))
        texts = first.decode(), second.decode()
        if name.endswith(".json"):
            return near_values(*map(json_value, texts))
        if name.endswith((".jsonl", ".log")):
            return near_values(*([line_value(line) for line in text.splitlines()] for text in texts))
    except (ValueError, RecursionError, SafetensorError):
        return False
    return near_text(*texts)


def line_value(line: str) -> Any:
    """A JSON line, a log's line (Python's repr of a dict), or text."""
    for parse in (json_value, logged):
        try:
            return parse(line)
        except Malformed:
            continue
    return line


def close(first: float, second: float) -> bool:
    return math.isclose(first, second, rel_tol=RELATIVE, abs_tol=ABSOLUTE)


def numeric(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def near_values(first: Any, second: Any) -> bool:
    """JSON values; a list of numbers (a score for each question) by its mean."""
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(
            near_values(first[key], second[key]) for key in first if key not in FOLLOWS
        )
    if isinstance(first, list) and isinstance(second, list):
        if len(first) != len(second):
            return False
        if len(first) > 1 and all(map(numeric, [*first, *second])):
            return close(sum(first) / len(first), sum(second) / len(second))
        return all(map(near_values, first, second))
    if numeric(first) and numeric(second):
        return close(first, second)
    if isinstance(first, str) and isinstance(second, str):
        return near_text(first, second)
    return type(first) is type(second) and first == second


def near_text(first: str, second: str) -> bool:
    """Text with numbers in it; hashes are left out."""
    first, second = HASH.sub("", first), HASH.sub("", second)
    if NUMBER.sub("0", first) != NUMBER.sub("0", second):
        return False
    return all(
        close(float(a), float(b)) for a, b in zip(NUMBER.findall(first), NUMBER.findall(second), strict=True)
    )


def near_tensors(first: dict[str, numpy.ndarray], second: dict[str, numpy.ndarray]) -> bool:
    """Tensors of the same names and shapes, each as a vector."""
    if {name: value.shape for name, value in first.items()} != {
        name: value.shape for name, value in second.items()
    }:
        return False
    lengths = (
        (float(numpy.linalg.norm(second[name] - value)), float(numpy.linalg.norm(value)))
        for name, value in first.items()
    )
    return all(difference <= max(RELATIVE * length, ABSOLUTE) for difference, length in lengths)


def report(remarks: list[str], verdicts: dict[str, str]) -> list[str]:
    """Lines to show: a file each, then the sums and what the tolerance is."""
    width = max(map(len, verdicts.values()))
    lines = [*remarks, *(f"{verdict:{width}}  {name}" for name, verdict in verdicts.items())]
    lines.append(", ".join(f"{count} {verdict}" for verdict, count in Counter(verdicts.values()).items()))
    if NEAR in verdicts.values():
        lines.append(
            f"tolerance: hashes, sizes and the machine's name left out, numbers within {RELATIVE:.0%} or "
            f"{ABSOLUTE}"
        )
    return lines
