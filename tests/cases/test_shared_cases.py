"""Reported inputs on which the product once was wrong, each with its command and what is right now.

The inputs lie beside the project; where they are absent the tests skip. Each fault has a test of its own,
with its own input, beside the code that was repaired.
"""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.__main__ import main

ROOT = Path(__file__).parents[2]
CASES = ROOT.parent / "shared" / "cases"
BASE = ["--llm", "{world-gemma}", "--clip", "{world-clip}", "--convnext", "{world-convnext}"]
pytestmark = [
    pytest.mark.skipif(not CASES.is_dir(), reason="the reported inputs are not beside the project"),
    pytest.mark.slow,
]


def toolkit(*arguments: object, **environment: str) -> tuple[int, str]:
    """(exit status, everything printed) of `python -m toolkit …`, in this process where no variable is set; a
    traceback fails the test."""
    if not environment:
        printed = io.StringIO()
        with contextlib.chdir(ROOT), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            try:
                status = main(list(map(str, arguments)))
            except SystemExit as end:  # of argparse
                status = int(end.code or 0)
        assert "Traceback" not in printed.getvalue(), printed.getvalue()
        return status, printed.getvalue()
    command = [sys.executable, "-m", "toolkit", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert "Traceback" not in done.stdout, done.stdout
    return done.returncode, done.stdout


@pytest.fixture(scope="session")
def assets(tmp_path_factory):
    """Folder of an asset of the embedded world, by name."""
    root = tmp_path_factory.mktemp("input")

    def folder(name: str) -> Path:
        if not (root / name).exists():
            assert toolkit("assets", "fetch", "--asset", name, "--output", root / name)[0] == 0
        return root / name

    return folder


@pytest.fixture
def run(assets, tmp_path):
    """Run a command in which `{C}` is the folder of cases, `{T}` a scratch folder, `{world-…}` an asset's
    folder."""

    def fill(argument: str) -> str:
        for name in ("seed", "instruction", "evaluation", "gemma", "clip", "convnext"):
            if f"{{world-{name}}}" in argument:
                argument = argument.replace(f"{{world-{name}}}", str(assets(f"world-{name}")))
        return argument.replace("{C}", str(CASES)).replace("{T}", str(tmp_path))

    def call(*arguments: str, **environment: str) -> tuple[int, str]:
        return toolkit(*map(fill, arguments), **environment)

    return call


def pretrain(
    case: str, samples: str = "llava.json", images: str = "{world-seed}", output: str = "{T}/out"
) -> list[str]:
    samples = samples if samples.startswith("{") else f"{{C}}/{case}/{samples}"
    return [
        "train",
        "pretrain",
        "--samples",
        samples,
        "--images",
        images,
        *BASE,
        "--scale",
        "tiny",
        "--seed",
        "1024",
        "--output",
        output,
    ]


@pytest.fixture(scope="session")
def finetuned(assets, tmp_path_factory):
    """A model of 16 captions and 16 instructions: its finetuning folder, merged."""
    root, case = tmp_path_factory.mktemp("model"), CASES / "empty-non-lora-trainables"
    parts = [
        argument
        for name in ("llm", "clip", "convnext")
        for argument in (f"--{name}", assets({"llm": "world-gemma"}.get(name, f"world-{name}")))
    ]
    common = [*parts, "--scale", "tiny", "--seed", 1024]
    steps = [
        [
            "pretrain",
            "--samples",
            case / "pre16.json",
            "--images",
            assets("world-seed"),
            *common,
            "--output",
            root / "p",
        ],
        [
            "finetune",
            "--samples",
            case / "in16.json",
            "--images",
            assets("world-instruction"),
            *common,
            "--projector",
            root / "p/mm_projector.bin",
            "--division",
            "open",
            "--output",
            root / "MGM-Tiny-Finetune-x",
        ],
        [
            "merge",
            "--finetuned",
            root / "MGM-Tiny-Finetune-x",
            *parts,
            "--output",
            root / "MGM-Tiny-Finetune-x/merge.json",
        ],
    ]
    for step in steps:
        status, printed = toolkit("train", *step)
        assert status == 0, printed
    return root / "MGM-Tiny-Finetune-x"


@pytest.fixture
def model(finetuned, tmp_path):
    """A copy that a test may spoil."""
    return Path(shutil.copytree(finetuned, tmp_path / finetuned.name))


@pytest.mark.parametrize("case", ["special-token-caption", "no-image-marker", "question-too-long"])
def test_rows_that_train_nothing(run, case, tmp_path):
    original = f"{{C}}/{case}/stage_1.json"
    rows = f"{{C}}/{case}/rows.jsonl"
    status, checked = run(
        "data",
        "check",
        "--samples",
        rows,
        "--images",
        "{world-seed}",
        "--original",
        original,
        "--output",
        "{T}/c.json",
    )
    if case == "question-too-long":  # only a tokenizer can tell
        assert status == 0
        assert run("data", "convert", "--to", "llava", "--original", original, rows, "{T}/llava.json")[0] == 0
        status, printed = run(*pretrain(case, "{T}/llava.json"))
        assert status == 1 and "rows of step 1 have no labelled token" in printed
        return
    assert (
        status == 1
        and {"special-token-caption": "<eos> in the text", "no-image-marker": "no <image> in the question"}[
            case
        ]
        in checked
    )
    status, printed = run("data", "convert", "--to", "llava", "--original", original, rows, "{T}/llava.json")
    assert status == 1 and "has no row that can be trained on" in printed


def test_minhash_and_missing_packages(run, tmp_path):
    def synthesize(case: str) -> tuple[int, str]:
        read = ["--recipe", f"{{C}}/{case}/r.yaml", "--samples", f"{{C}}/{case}/s.jsonl"]
        written = ["--output", "{T}/o.jsonl", "--removed", "{T}/r.jsonl", "--record", "{T}/run.json"]
        return run("data", "synthesize", *read, "--images", "{world-seed}", "--scores", "{T}/sc", *written)

    status, printed = synthesize("minhash-short-captions")
    assert status == 0, printed
    assert len((tmp_path / "o.jsonl").read_text().splitlines()) == 6
    status, printed = synthesize("simhash-not-installed")
    assert status == 1 and "simhash-pybind" in printed and "step 1" in printed


def test_images(run, tmp_path):
    common = [
        "--images",
        "{C}/sixteen-bit-image",
        "--original",
        "{C}/sixteen-bit-image/stage_1.json",
        "--output",
        "{T}/c.json",
    ]
    status, printed = run("data", "check", "--samples", "{C}/sixteen-bit-image/rows.jsonl", *common)
    assert status == 1 and "i32.tif" in printed and "f32.tif" in printed and "i16.png" not in printed
    status, printed = run(*pretrain("broken-avif", images="{C}/broken-avif"))
    assert status == 1 and "error: sample 'r0': the image broken_avif.jpg cannot be read: " in printed


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        ("config-duplicate-keys/dup_section.yaml", "line 3: the key finetune is there twice"),
        ("config-duplicate-keys/dup_exp.yaml", "line 4: the key a is there twice"),
        ("config-duplicate-keys/octal.yaml", "line 1: 010 would be read as 8"),
        ("config-empty/c.yaml", "is empty: write {} for all defaults"),
        ("hostile/cli-deep-json/deep.yaml", "nested more than 100 deep"),
        ("hostile/cli-deep-json/merge.yaml", "anchors (&) and aliases (*) are not read"),
        ("hostile/yaml-merge-bomb-hang/solution__recipes__recaption.yaml", "are not read"),
    ],
)
def test_configurations(run, file, problem):
    status, printed = run("config", "check", f"{{C}}/{file}")
    assert status == 1 and problem in printed


def test_an_encoding_without_the_name(run):
    assert run("config", "check", "{C}/stdout-encoding/配置.yaml", PYTHONIOENCODING="ascii")[0] == 0


@pytest.mark.parametrize("emptied", [{}, "half"])
@pytest.mark.parametrize("file", ["non_lora_trainables.bin", "adapter_model.safetensors"])
def test_emptied_parts_of_a_checkpoint(run, model, emptied, file):
    import torch
    from safetensors.torch import load_file, save_file

    path = model / file
    tensors = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    kept = dict(list(tensors.items())[: len(tensors) // 2]) if emptied == "half" else {}
    save_file(kept, path) if path.suffix == ".safetensors" else torch.save(kept, path)
    status, printed = run(
        "train", "merge", "--finetuned", str(model), *BASE, "--output", str(model / "merge.json")
    )
    assert status == 1 and file in printed


def ask(model: Path, *arguments: str) -> list[str]:
    return ["evaluate", *arguments, "--model", str(model), "--output", "{T}/e"]


def test_an_edited_configuration_of_a_checkpoint(run, model):
    config = json.loads((model / "merged/config.json").read_text())
    del config["mm_vision_tower_config"]
    (model / "merged/config.json").write_text(json.dumps(config))
    images = ["--images", "{world-evaluation}/textvqa/train_images"]
    case = [
        "--questions",
        "{C}/checkpoint-config-edited/q.jsonl",
        "--annotations",
        "{C}/checkpoint-config-edited/ann.json",
    ]
    status, printed = run(*ask(model, "textvqa", *case, *images))
    assert status == 1 and "config.json is not the" in printed


def test_names_like_those_of_checkpoints(run, tmp_path):
    (tmp_path / "o1/checkpoint-1.bak").mkdir(parents=True)
    (tmp_path / "o2/checkpoint-1-keep").mkdir(parents=True)
    (tmp_path / "o2/checkpoint-1-keep/mine.txt").touch()
    for output in ("o1", "o2"):
        status, printed = run(*pretrain("checkpoint-names", output=f"{{T}}/{output}"))
        assert status == 0, printed
    assert (tmp_path / "o1/checkpoint-1.bak").is_dir() and (
        tmp_path / "o2/checkpoint-1-keep/mine.txt"
    ).is_file()


def contamination(case: str, table: str = "t.tsv") -> list[str]:
    files = {"samples": "tr.jsonl", "questions": "q.jsonl", "annotations": "ann.json", "table": table}
    named = [argument for name, file in files.items() for argument in (f"--{name}", f"{{C}}/{case}/{file}")]
    images = ["--images", "{world-seed}", "--question-images", "{world-evaluation}/textvqa/train_images"]
    return ["evaluate", "contamination", *named, *images, "--output", "{T}/contamination.json"]


def test_tables_without_an_answer(run):
    case = "mmbench-answer-missing"
    for table in ("t.tsv", "t_all_missing.tsv"):
        status, printed = run(
            "evaluate",
            "mmbench-score",
            "--table",
            f"{{C}}/{case}/{table}",
            "--answers",
            f"{{C}}/{case}/mb.jsonl",
        )
        assert status == 1 and "answer" in printed and table in printed
    assert run(*contamination(case))[0] in (0, 1)
    status, printed = run(*contamination("mmbench-answer-two-letters"))
    assert status == 0 or "AB" in printed


@pytest.mark.parametrize("case", ["mmbench-option-e", "mmbench-option-none"])
def test_options_that_are_not_asked(run, finetuned, case):
    _, printed = run(*ask(finetuned, "mmbench", "--table", f"{{C}}/{case}/t.tsv", "--prompt", "x"))
    assert "option" in printed and ("warning" in printed or "error" in printed), printed


@pytest.mark.parametrize("file", ["big", "deep"])
def test_numbers_and_nesting_beyond_measure(run, file):
    annotations = ["--annotations", "{C}/json-extreme/ann.json"]
    status, printed = run(
        "evaluate", "textvqa-score", *annotations, "--answers", f"{{C}}/json-extreme/{file}.jsonl"
    )
    assert status == 1 and f"{file}.jsonl, line 1 is not valid JSON: " in printed


def test_answers_that_are_no_texts(run):
    case = "{C}/textvqa-numeric-answers"
    outcomes = {
        file: run(
            "evaluate",
            "textvqa-score",
            "--annotations",
            f"{case}/ann_{file}.json",
            "--answers",
            f"{case}/a.jsonl",
        )
        for file in ("num", "null", "none")
    }
    assert outcomes["num"][0] == 0, outcomes["num"]
    assert outcomes["null"][0] == 1 and "ann_null.json" in outcomes["null"][1]
    assert outcomes["none"][0] == 1 and "ann_none.json" in outcomes["none"][1]


def test_a_single_question(run, finetuned, tmp_path):
    case = [
        "--questions",
        "{C}/textvqa-one-question/q.jsonl",
        "--annotations",
        "{C}/textvqa-one-question/ann.json",
    ]
    status, printed = run(
        *ask(finetuned, "textvqa", *case, "--images", "{world-evaluation}/textvqa/train_images")
    )
    assert (status == 0 and (tmp_path / "e/score.json").is_file()) or (
        status == 1 and not list((tmp_path / "e").glob("*.jsonl*"))
    ), printed


def test_postscript_named_jpg_is_not_opened(run, tmp_path):
    (tmp_path / "images").mkdir()
    shutil.copy(CASES / "hostile/eps-ghostscript/eps.jpg", tmp_path / "images/eps.jpg")
    (tmp_path / "rows.jsonl").write_text(
        '{"id": "1", "text": "<__dj__image>\\na cup <|__dj__eoc|>", "images": ["images/eps.jpg"]}\n'
    )
    turns = [{"from": "human", "value": "<image>\nx"}, {"from": "gpt", "value": "y"}]
    (tmp_path / "stage_1.json").write_text(json.dumps([{"id": "1", "conversations": turns}]))
    status, printed = run(
        "data",
        "check",
        "--samples",
        "{T}/rows.jsonl",
        "--images",
        "{T}",
        "--original",
        "{T}/stage_1.json",
        "--output",
        "{T}/c.json",
    )
    assert status == 1 and "unreadable image: it is none of JPEG" in printed
