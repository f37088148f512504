"""lmms-eval's MME on the world's images, offline, and the same questions through our own evaluation: equal
answers.

Needs `make lmms`. The task is the harness's own; only where its data lie, and how many tokens, is another.
"""

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from toolkit.__main__ import main
from toolkit.benchmarks import BENCHMARKS, MME
from toolkit.contest.records import write_record
from toolkit.files import read_jsonl
from toolkit.mgm.folder import checkpoint_files
from toolkit.world.build import build_mme

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".cache/lmms/bin/python"
NEW = 8  # tokens of an answer
pytestmark = [
    pytest.mark.numerics,
    pytest.mark.skipif(not PYTHON.exists(), reason="the environment of `make lmms` is not there"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A finetuning folder with the golden weights as its checkpoint."""
    from toolkit.mgm.checkpoint import save_checkpoint
    from toolkit.mgm.parity import Golden

    folder = tmp_path_factory.mktemp("official") / "MGM-2B-tiny"
    golden = Golden(ROOT / "tests/golden/mgm")
    save_checkpoint(golden.model, folder / "merged", golden.tokenizer)
    outputs = {path.name: path for path in checkpoint_files(folder / "merged")}
    results = {"checkpoint": "merged"}
    write_record(folder / "merge.json", "merge", inputs={}, outputs=outputs, settings={}, results=results)
    return folder


def local_task(folder: Path, world: Path) -> None:
    """The harness's task mme, on the world's questions."""
    from datasets import Dataset, DatasetDict, Image

    (shipped,) = PYTHON.parents[1].glob("lib/python*/site-packages/lmms_eval/tasks/mme")
    shutil.copytree(shipped, folder)
    images = world / MME.image_folder
    rows = [
        {
            "question_id": row["question_id"],
            "image": str(images / row["image"]),
            "question": row["text"].partition("\n")[0] + " Please answer yes or no.",
            "answer": ("Yes", "No")[number % 2],
            "category": row["category"],
        }
        for number, row in enumerate(read_jsonl(world / "llava_mme.jsonl"))
    ]
    data = Dataset.from_list(rows).cast_column("image", Image())
    DatasetDict({"test": data}).save_to_disk(folder / "data")
    (folder / "mme_local.yaml").write_text(
        "include: mme.yaml\ntask: mme_local\n"
        f"dataset_path: {folder / 'data'}\ndataset_kwargs: {{load_from_disk: true}}\n"
        f"generation_kwargs: {{max_new_tokens: {NEW}, do_sample: false}}\n"
    )


def test_both_ways_give_equal_answers(model, tmp_path, monkeypatch):
    build_mme(tmp_path / "world", seed=1, rows=2, split="evaluation")
    monkeypatch.setitem(BENCHMARKS, "mme", replace(MME, max_new_tokens=NEW))
    files = BENCHMARKS["mme"].official_files(tmp_path / "world", Path())
    flags = [f"--{name.replace('_', '-')}={path}" for name, path in files.items()]
    assert main(["evaluate", "mme", "--model", str(model), "--output", str(tmp_path / "ours"), *flags]) == 0
    ours = [row["text"] for row in read_jsonl(tmp_path / "ours/answers.jsonl")]

    local_task(tmp_path / "tasks", tmp_path / "world")
    command = [PYTHON, "-m", "toolkit.lmms", "--model", "mgm", "--model_args", f"path={model}"]
    command += ["--tasks", "mme_local", "--include_path", tmp_path / "tasks", "--batch_size", "16"]
    command += ["--device", "cpu", "--log_samples", "--output_path", tmp_path / "theirs"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(command, env=os.environ | offline, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (samples,) = (tmp_path / "theirs").rglob("*_samples_mme_local.jsonl")
    rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda row: row["doc_id"])
    assert [row["filtered_resps"] for row in rows] == ours
    assert len(ours) == 20 and len(set(ours)) > 1
