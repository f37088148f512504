"""An entry made again: the work tree that is laid out, and the verdict on each file. The run itself is
tests/stress/run's."""

import json
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy
import pytest
from entry_tree import EntryTree, pack, rehash, say_steps
from safetensors.numpy import save
from test_verify import forge

from toolkit import config
from toolkit.__main__ import main
from toolkit.bundle import rebuild
from toolkit.errors import UserError
from toolkit.files import read_json, read_yaml

TREE = EntryTree()
SCORE = f"{TREE.results()}/textvqa/score.json"
LOG = f"{TREE.pretrain}/pretrain.log"


@pytest.fixture
def archive(packed, monkeypatch):
    """Its archive. The inputs are not at hand: the tree's are made up, and drawing the world's takes long."""
    monkeypatch.setattr("toolkit.bundle.zip.packed.Inputs.asset", lambda self, name: None)
    return packed / "submit.zip"


@pytest.fixture
def rerun(archive, monkeypatch):
    """Lets a run end with the archive's files, some of them changed: name -> new bytes, None for no file."""
    changes: dict[str, bytes | None] = {}

    def run(folder: Path, variables: dict[str, str] | None, limits: object) -> str:
        with (
            zipfile.ZipFile(archive) as source,
            zipfile.ZipFile(folder / "submit.zip", "w", zipfile.ZIP_DEFLATED) as target,
        ):
            contents = {name: source.read(name) for name in source.namelist()} | changes
            for name, content in contents.items():
                if content is not None:
                    target.writestr(zipfile.ZipInfo(name), content)
        return "sandbox: of no matter here"

    monkeypatch.setattr(rebuild, "run", run)
    return changes


def test_the_work_tree_is_the_code_and_what_the_archive_says(archive, rerun, tmp_path, capsys):
    folder = tmp_path / "again"
    assert main(["bundle", "rebuild", str(archive), "--output", str(folder)]) == 0
    for name in (
        "Snakefile",
        "pyproject.toml",
        "workflow/rules/train.smk",
        "toolkit/mgm/model.py",
        "requirements/common.lock",
        "toolkit/world/zoo/zoo.json",
    ):
        assert (folder / name).read_bytes() == (rebuild.ROOT / name).read_bytes()
    assert (folder / "solution/recipes/recaption.yaml").read_text() == Path(
        "solution/recipes/recaption.yaml"
    ).read_text()
    assert config.Config.model_validate(read_yaml(folder / "config.yaml")) == TREE.config
    told = capsys.readouterr().out
    assert "code: the same as in the records" in told and "package locks: the same as in the records" in told
    with zipfile.ZipFile(archive) as packed:
        assert told.endswith(f"{len(packed.namelist())} byte-equal\n") and "tolerance" not in told


def test_another_code_is_said(archive, rerun, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rebuild.code, "digest", lambda *_: "0" * 64)
    assert main(["bundle", "rebuild", str(archive), "--output", str(tmp_path / "again")]) == 0
    assert "code: NOT the same as in the records" in capsys.readouterr().out


def changed(name: str, old: str, new: str) -> bytes:
    text = Path(name).read_text()
    assert old in text
    return text.replace(old, new).encode()


@pytest.mark.parametrize(
    ("name", "old", "new", "verdict"),
    [
        (SCORE, '"accuracy": 70.0', '"accuracy": 70.4', rebuild.NEAR),
        (SCORE, '"accuracy": 70.0', '"accuracy": 50.0', rebuild.OTHER),
        (SCORE, '"accuracy": 70.0', '"accuracy": null', rebuild.OTHER),
        (LOG, "'loss': 5.6", "'loss': 5.61", rebuild.NEAR),
        (LOG, "'loss': 5.6", "'loss': 9.6", rebuild.OTHER),
        (LOG, "'loss': 5.6", "'lost': 5.6", rebuild.OTHER),
        (f"{TREE.pretrain}/run.json", '"device": "cpu"', '"device": "NVIDIA H100"', rebuild.NEAR),
        (f"{TREE.pretrain}/run.json", '"seed": 1024', '"seed": 7', rebuild.OTHER),
        ("output/reports/report.md", "## Scores", "## Others", rebuild.OTHER),
    ],
)
def test_verdicts(archive, rerun, tmp_path, capsys, name, old, new, verdict):
    rerun[name] = changed(name, old, new)
    assert main(["bundle", "rebuild", str(archive), "--output", str(tmp_path / "again")]) == int(
        verdict == rebuild.OTHER
    )
    told = capsys.readouterr().out.splitlines()
    assert next(line for line in told if line.endswith(f"  {name}")).startswith(f"{verdict} ")
    assert sum(line.startswith(("equal", "different")) for line in told) == 1
    assert told[-1].startswith("tolerance: ") == (verdict == rebuild.NEAR)


def test_missing_and_new_files(archive, rerun, tmp_path, capsys):
    rerun |= {LOG: None, "output/new.json": b"{}"}
    assert main(["bundle", "rebuild", str(archive), "--output", str(tmp_path / "again")]) == 1
    told = capsys.readouterr().out
    assert f"missing in the rebuild  {LOG}" in told and "only in the rebuild     output/new.json" in told


def test_tensors_are_vectors():
    weights = {"a": numpy.linspace(-1, 1, 64, dtype=numpy.float32), "b": numpy.zeros(3, dtype=numpy.float32)}
    rounded = weights | {"a": weights["a"] + numpy.float32(1e-3)}
    other = weights | {"a": weights["a"][::-1].copy()}
    assert rebuild.near("x.safetensors", save(weights), save(rounded))
    assert not rebuild.near("x.safetensors", save(weights), save(other))
    assert not rebuild.near("x.safetensors", save(weights), save({"a": weights["a"]}))
    assert not rebuild.near("x.safetensors", save(weights), b"x" * 40)
    assert not rebuild.near("x.bin", b"\xff\x00", b"\xff\x01")


def test_scores_of_questions_by_their_mean():
    assert rebuild.near(
        "s.json", json.dumps({"scores": [1, 0] * 50}).encode(), json.dumps({"scores": [0, 1] * 50}).encode()
    )
    assert not rebuild.near(
        "s.json", json.dumps({"scores": [1, 0] * 50}).encode(), json.dumps({"scores": [0] * 100}).encode()
    )


def test_an_interrupted_rebuild_continues_and_another_folder_is_left_alone(archive, rerun, tmp_path):
    folder = tmp_path / "again"
    rebuild.rebuild(archive, folder)
    (folder / "output").mkdir()
    (folder / "output/kept").write_text("x")
    rebuild.rebuild(archive, folder)
    assert (folder / "output/kept").exists()
    shutil.copyfile(archive, "other.zip")
    with (
        zipfile.ZipFile("other.zip", "w", zipfile.ZIP_DEFLATED) as target,
        zipfile.ZipFile(archive) as source,
    ):
        for name in source.namelist():
            target.writestr(zipfile.ZipInfo(name), source.read(name))
    for given, place in ((Path("other.zip"), folder), (archive, Path("input"))):
        with pytest.raises(UserError, match="is not empty and no rebuild of"):
            rebuild.rebuild(given, place)


def test_an_archive_without_configuration_is_one_sentence(archive, rerun, tmp_path):
    Path(rebuild.CONFIG).unlink()
    forge()
    with pytest.raises(UserError, match=r"is not rebuilt, it has errors \(.*config\.yaml"):
        rebuild.rebuild(archive, tmp_path / "again")
    with pytest.raises(UserError, match=r"has no output/reports/config\.yaml"):
        rebuild.rebuild(archive, tmp_path / "again", trust=True)


def test_a_failed_run_is_one_sentence(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(rebuild.sys, "executable", "/bin/false")
    with pytest.raises(UserError, match="snakemake ended with status 1"):
        rebuild.rebuild(archive, tmp_path / "again")


@pytest.fixture
def told(archive, monkeypatch):
    """What a run would be given where there is no sandbox: (command, folder, environment)."""
    runs = []
    monkeypatch.setattr(rebuild.sandbox, "refused", lambda folder, limits: "bubblewrap is not installed")

    def run(command, cwd, env, **_):
        runs.append((command, cwd, env))
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(rebuild.subprocess, "run", run)
    for name in (
        "OPENAI_API_KEY",
        "HF_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "HTTPS_PROXY",
        "SNAKEMAKE_PROFILE",
        "PYTHONPATH",
    ):
        monkeypatch.setenv(name, "mine")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return runs


def test_a_run_sees_no_key_and_no_home(archive, told, tmp_path):
    with pytest.raises(UserError, match="snakemake ended"):
        rebuild.rebuild(archive, tmp_path / "again")
    ((_, _, variables),) = told
    assert "mine" not in variables.values() and variables["OMP_NUM_THREADS"] == "1" and variables["PATH"]
    assert variables["HOME"] == str(tmp_path / "again" / rebuild.HOME) and not any(
        Path(variables["HOME"]).iterdir()
    )


def test_whether_there_is_a_sandbox_is_said_and_kept(archive, told, tmp_path, monkeypatch, capsys):
    """A continued rebuild keeps what was said of its first run, as a list that no run can write to."""
    folder, given = tmp_path / "again", []
    with pytest.raises(UserError, match="snakemake ended"):
        rebuild.rebuild(archive, folder)
    monkeypatch.setattr(rebuild.sandbox, "refused", lambda folder, limits: None)
    monkeypatch.setattr(rebuild.sandbox, "run", lambda *arguments: given.append(arguments) or 1)
    with pytest.raises(
        UserError, match=r"snakemake ended.*within 2 h, 3\.0 GiB of memory and .* TOOLKIT_MIRROR"
    ):
        rebuild.rebuild(archive, folder, hours=2, memory=3)
    first, second = read_json(folder / rebuild.MARK)["runs"]
    assert first in (shown := capsys.readouterr().err) and second in shown and "\n" not in first + second
    assert first.startswith("sandbox: none, bubblewrap is not installed: ") and "the container" in first
    assert second.startswith("sandbox: bubblewrap without network, keys and your files, within 2 h, 3.0 GiB")
    ((_, place, _, fixed, limits),) = given
    assert limits.memory == 3 << 30 and {"toolkit", "Snakefile", rebuild.MARK} <= {
        path.name for path in fixed
    }
    assert all(path.is_relative_to(place) for path in fixed)


def test_one_rebuild_at_a_time(archive, told, tmp_path):
    folder = tmp_path / "again"
    with pytest.raises(UserError, match="snakemake ended"):
        rebuild.rebuild(archive, folder)
    with rebuild.alone(folder), pytest.raises(UserError, match="another rebuild is at work in"):
        rebuild.rebuild(archive, folder)


RUNS = "process:\n  - python_file_mapper: {file_path: solution/evil.py, function_name: run}\n"
ASKS = (
    "process:\n  - endpoint_rewriting_mapper: {model: m, responses: solution/responses/a.jsonl, max_cost: "
    "1000}\n"
)


@pytest.mark.parametrize("recipe", ["other", "recaption"])
def test_a_recipe_that_runs_a_file_is_refused(archive, told, tmp_path, recipe):
    """Whether it is the entry's own or lies beside it; with --trust it is run, with the whole environment."""
    Path(f"solution/recipes/{recipe}.yaml").write_text(RUNS)
    forge()
    with pytest.raises(UserError, match=rf"submit\.zip is not rebuilt, it has errors \(.*{recipe}"):
        rebuild.rebuild(archive, tmp_path / "again")
    assert not told and not (tmp_path / "again").exists()
    with pytest.raises(UserError, match="snakemake ended"):
        rebuild.rebuild(archive, tmp_path / "again", trust=True)
    assert told[0][2] is None


def test_an_endpoint_is_not_paid(archive, told, tmp_path):
    """A recipe whose answers are not in the archive; with them it runs."""
    path = Path("solution/recipes/baseline.yaml")
    path.write_text(ASKS)
    say_steps(TREE.run("baseline").folder, read_yaml(path)["process"])
    rehash("baseline")
    TREE.documents()
    pack()
    with pytest.raises(UserError, match=r"no answers for endpoint_rewriting_mapper of baseline\.yaml"):
        rebuild.rebuild(archive, tmp_path / "again")
    assert not told
    Path("solution/responses").mkdir()
    Path("solution/responses/a.jsonl").write_text(
        '{"key": "0", "text": "a", "problem": null, "tokens": [1, 1]}\n'
    )
    TREE.documents()
    pack()
    with pytest.raises(UserError, match="snakemake ended"):
        rebuild.rebuild(archive, tmp_path / "then")


def test_a_changed_archive_is_not_rebuilt(archive, told, tmp_path):
    """`verify` comes first, and it is the whole of it."""
    path = Path(SCORE)
    path.write_bytes(path.read_bytes().replace(b"70.0", b"99.0"))
    forge()
    with pytest.raises(UserError, match="is not rebuilt, it has errors"):
        rebuild.rebuild(archive, tmp_path / "again")
    assert not told
