"""A valid entry passes; every way to break one ends in its finding and exit status 1."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import jsonschema
import numpy
import pytest
from entry_tree import DATA, EntryTree, compared, edit, rehash, seed_row
from safetensors.numpy import save_file

from toolkit.__main__ import main
from toolkit.bundle.checks.fixed import numbers
from toolkit.bundle.entry import Entry
from toolkit.bundle.validate import CHECKS
from toolkit.contest import ruleset
from toolkit.files import write_json

OUTPUT, COMPARISON = "output/reports/validation.json", "output/reports/compare.json"
TREE = EntryTree()
PRETRAIN, FINETUNE, RESULTS, SHARD = TREE.pretrain, TREE.finetune, TREE.results(), TREE.shard
MMBENCH, UPLOAD = TREE.answers(), TREE.upload()
ANSWERS = f"{RESULTS}/textvqa/bm1.jsonl"
SCHEMA = json.loads((Path(__file__).parents[2] / "workflow/schemas/validation.schema.json").read_text())
TOKEN = "hf_" + "aB3dE6gH9jK2mN5pQ8sT1vW4yZ7cF0xLrU"  # put together here, so that no scanner takes it for one


def validate(experiment: str = "synth", rules: str = "embedded", strict: bool = False) -> tuple[int, dict]:
    """Exit status and document of `bundle validate` in the working directory."""
    command = [
        "bundle",
        "validate",
        "--root",
        ".",
        "--experiment",
        experiment,
        "--rules",
        rules,
        "--output",
        OUTPUT,
    ]
    status = main([*command, *(["--strict"] if strict else [])])
    return status, json.loads(Path(OUTPUT).read_text())


def change_lines(path: str, change) -> None:
    """Rewrite a file's lines through `change`, a function of the list of lines."""
    lines = Path(path).read_text().splitlines(keepends=True)
    Path(path).write_text("".join(change(lines)))


def change_rows(path: str, change) -> None:
    """Rewrite the rows of a JSON-lines file through `change`, which alters each row in place."""
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    for row in rows:
        change(row)
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def change_record(path: str, **changes) -> None:
    """Set values of a record's settings or results: `results__steps=3`."""

    def change(record: dict) -> None:
        for key, value in changes.items():
            part, name = key.split("__", 1)
            record[part][name] = value

    edit(Path(path), change)


def grant(identifier: str, file: str, reason: str) -> None:
    """An exception."""
    Path("solution/exceptions.yaml").write_text(
        json.dumps([{"id": identifier, "file": file, "reason": reason}]) + "\n"
    )
    TREE.documents()  # the report repeats it, the crate has its hash


def enlarged(path: str) -> str:
    Path(path).write_bytes(b"\0")
    return path


def lora_left() -> None:
    save_file({"model.layers.0.lora_A.weight": numpy.zeros(2, dtype=numpy.float32)}, SHARD)
    TREE.merge_record()  # a record that fits the file, as a forger would write it


def seed_captions() -> None:
    """The experiment's rows are the seed's."""
    rows = [seed_row(number, f"noise {number}") for number in range(36)]
    Path(DATA, "processed_data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def copy_of_baseline() -> None:
    Path(MMBENCH).write_bytes(Path(TREE.answers("baseline")).read_bytes())


def image_of_the_benchmark() -> None:
    """A training image that is a picture of TextVQA, and the comparison made again."""
    picture = Path("input/world-evaluation/textvqa/train_images/q3.jpg")
    picture.parent.mkdir()
    picture.write_bytes(Path("input/world-seed", seed_row(5, "")["images"][0]).read_bytes())
    write_json(Path(DATA, "contamination.json"), compared())


def blind() -> None:
    """A model that answers the same whatever image it is shown."""
    shutil.copyfile(MMBENCH, f"{RESULTS}/mmbench/control.jsonl")


def twin_in_the_comparison() -> None:
    """Another experiment, of which only compare.json is there, has the same answers."""

    def copy(value: dict) -> None:
        results = value["benchmarks"]["textvqa"]["results"]
        results["MGM-Tiny-Finetune-third"] = results["MGM-Tiny-Finetune-synth"]

    edit(Path(COMPARISON), copy)


def many_recipes() -> None:
    for number in range(5):
        Path(f"solution/recipes/r{number}.yaml").write_text("process: [a]\n" + "# comment\n" * 25_000)


BROKEN = {
    "link": ("S1", "is a link", lambda: Path("solution/data").symlink_to("/etc/hostname")),
    "twins": ("S1", "upper and lower case", lambda: Path("solution/README").write_text("x")),
    "absolute path": (
        "S5",
        "absolute folder",
        lambda: Path("solution/notes.txt").write_text(f"see {Path.cwd()}/input"),
    ),
    "weights left out of an index": (
        "S3",
        "names model-00002-of-00002.safetensors, which is not there",
        lambda: write_json(f"{SHARD}.index.json", {"weight_map": {"x": "model-00002-of-00002.safetensors"}}),
    ),
    "tensor left out of a shard": (
        "S3",
        "lacks 1 tensor ",
        lambda: write_json(
            f"{SHARD}.index.json",
            {"weight_map": {"x": Path(SHARD).name, "model.norm.weight": Path(SHARD).name}},
        ),
    ),
    "half of the shards": (
        "S3",
        "1 of 00002 shards",
        lambda: Path(SHARD).rename(SHARD.replace("of-00001", "of-00002")),
    ),
    "too large": (
        "S3",
        "at most 100000000 are allowed",
        lambda: os.truncate(enlarged("solution/images.tar"), 100_000_001),
    ),
    "token": (
        "S4",
        "holds a token of Hugging Face",
        lambda: Path("solution/run.py").write_text(f"login('{TOKEN}')\n"),
    ),
    "home directory": (
        "S5",
        "a home directory",
        lambda: Path("solution/notes.md").write_text("see /home/alice/data\n"),
    ),
    "wrong exception": (
        "X1",
        "names an id that no check has",
        lambda: grant("Z9", "solution/readme", "because"),
    ),
    "exception without a reason": (
        "X1",
        "reason missing, empty or unknown",
        lambda: grant("R1", "solution/readme", " "),
    ),
    "exception for a token": (
        "X1",
        "S4 has no exceptions",
        lambda: grant("S4", "solution/readme", "a test account"),
    ),
    "exceptions of another shape": (
        "X1",
        "is not a list",
        lambda: Path("solution/exceptions.yaml").write_text("R1: all\n"),
    ),
    "empty file of the solution": ("S2", "the file is empty", lambda: Path("solution/notes.md").touch()),
    "removed without a reason": (
        "D3",
        "has no reason",
        lambda: change_rows(f"{DATA}/removed.jsonl", lambda row: row.update(reason="")),
    ),
    "other count": ("D3", "results.kept is 30", lambda: change_record(f"{DATA}/run.json", results__kept=30)),
    "image of the benchmark": (
        "D4",
        "near-duplicates of evaluation items, the first is image",
        image_of_the_benchmark,
    ),
    "comparison of other rows": (
        "P1",
        "was made from other samples",
        lambda: edit(
            Path(DATA, "contamination.json"), lambda value: value["inputs"]["samples"].update(sha256="0" * 64)
        ),
    ),
    "comparison without its pairs": (
        "P2",
        "found Field required",
        lambda: edit(Path(DATA, "contamination.json"), lambda v: v.pop("found")),
    ),
    "comparison with other limits": (
        "P2",
        "other limits",
        lambda: edit(Path(DATA, "contamination.json"), lambda value: value["limits"].update(hamming=0)),
    ),
    "answers without the image": ("E2", "80 of 80 answers are the same with another image", blind),
    "control of other questions": (
        "E2",
        "does not hold the 20 answers",
        lambda: change_lines(f"{RESULTS}/textvqa/control.jsonl", lambda lines: lines[1:]),
    ),
    "twin in the comparison": (
        "E2",
        "all answers equal those of MGM-Tiny-Finetune-third",
        twin_in_the_comparison,
    ),
    "unknown to the comparison": (
        "E3",
        "does not follow from the scores",
        lambda: edit(
            Path(COMPARISON),
            lambda value: value["benchmarks"]["mmbench"]["results"].pop("MGM-Tiny-Finetune-synth"),
        ),
    ),
    "edited file of the kit": (
        "T2",
        "is not the kit's textvqa.sh",
        lambda: Path("solution/textvqa.sh").write_text("echo Nike\n"),
    ),
    "edited script of the kit": (
        "T2",
        "outside the editable block",
        lambda: Path("solution/train_mgm_2b_stage_1.sh").write_text(
            "# Editable Part Ends #\nNUM_TRAIN_EPOCHS=3\n"
        ),
    ),
    "other epochs": (
        "T2",
        "epochs of the record is 3, division open fixes 1",
        lambda: change_record(f"{PRETRAIN}/run.json", settings__epochs=3),
    ),
    "simulated log": (
        "T1",
        "'simulat'",
        lambda: change_lines(f"{PRETRAIN}/pretrain.log", lambda lines: ["simulated training\n", *lines]),
    ),
    "two finetuning logs": (
        "T1",
        "one log by two names",
        lambda: change_lines(f"{FINETUNE}/finetune.log", lambda lines: ["\n", *lines]),
    ),
    "gradients not finite": (
        "T1",
        "the gradients are not finite",
        lambda: change_lines(
            f"{PRETRAIN}/pretrain.log",
            lambda lines: [lines[0].replace("'grad_norm': 1.0", "'grad_norm': 1e999"), *lines[1:]],
        ),
    ),
    "constant losses": (
        "T1",
        "losses are the same",
        lambda: change_lines(
            f"{PRETRAIN}/pretrain.log",
            lambda lines: [re.sub(r"'loss': [0-9.]+", "'loss': 2.0", line) for line in lines],
        ),
    ),
    "two runs in one log": (
        "T1",
        "the epoch falls",
        lambda: change_lines(
            f"{PRETRAIN}/pretrain.log",
            lambda lines: [lines[0].replace("'epoch': 0", "'epoch': 1"), *lines[1:]],
        ),
    ),
    "simulated score": (
        "E1",
        "'for_testing'",
        lambda: edit(Path(f"{RESULTS}/textvqa/score.json"), lambda value: value.update(note="for_testing")),
    ),
    "unprintable name": ("S1", "has control characters", lambda: Path("solution/a\nb").write_text("x")),
    "no answers": ("S2", "the file is empty", lambda: Path(ANSWERS).write_text("")),
    "no question file": (
        "S2",
        "missing",
        lambda: Path("input/world-evaluation/textvqa/llava_textvqa_val_v051_ocr.jsonl").unlink(),
    ),
    "malformed row": (
        "D1",
        "malformed line",
        lambda: change_lines(f"{DATA}/processed_data.jsonl", lambda rows: ["{\n", *rows[1:]]),
    ),
    "two image tokens": (
        "D1",
        "2 <__dj__image> tokens",
        lambda: change_rows(
            f"{DATA}/processed_data.jsonl", lambda row: row.update(text="<__dj__image>" + row["text"])
        ),
    ),
    "missing image": (
        "D1",
        "missing image",
        lambda: Path("input/world-seed/images/00000/000000003.jpg").unlink(),
    ),
    "foreign id": (
        "D1",
        "is not in stage_1.json",
        lambda: change_rows(f"{DATA}/processed_data.jsonl", lambda row: row.update(id="x")),
    ),
    "lost rows": (
        "D3",
        "do not make the 40 rows",
        lambda: change_lines(f"{DATA}/removed.jsonl", lambda rows: rows[:-1]),
    ),
    "other training rows": (
        "D1",
        "is not the conversion",
        lambda: edit(
            Path(f"{DATA}/llava.json"), lambda rows: rows[0]["conversations"][1].update(value="better")
        ),
    ),
    "no synthesis step": (
        "D2",
        "has no synthesis step",
        lambda: change_record(f"{DATA}/run.json", settings__process=[{"words_num_filter": {}}]),
    ),
    "other resolution in a model's configuration": (
        "T2",
        "image_size_aux is 256, the rules fix 128",
        lambda: edit(Path(f"{FINETUNE}/config.json"), lambda value: value.update(image_size_aux=256)),
    ),
    "configuration of another model": (
        "T2",
        "is of another model than",
        lambda: edit(Path(f"{PRETRAIN}/config.json"), lambda value: value.update(mm_hidden_size=999)),
    ),
    "nothing synthesized": ("D2", "no caption differs", seed_captions),
    "other scale": (
        "T1",
        "is not one of tiny",
        lambda: change_record(f"{PRETRAIN}/run.json", settings__scale="track_200k"),
    ),
    "other division": (
        "T1",
        "is not one of closed, open",
        lambda: change_record(f"{FINETUNE}/run.json", settings__division="secret"),
    ),
    "unknown strategy": (
        "T1",
        "its strategy is best, finetune knows curriculum",
        lambda: change_record(f"{FINETUNE}/run.json", settings__strategy="best"),
    ),
    "strategy of the other stage": (
        "T1",
        "its strategy is neftune, pretrain knows curriculum",
        lambda: change_record(f"{PRETRAIN}/run.json", settings__strategy="neftune"),
    ),
    "strategy without its flag": (
        "T1",
        "its command has --strategy None",
        lambda: change_record(f"{FINETUNE}/run.json", settings__strategy="neftune"),
    ),
    "8 bits without their flag": (
        "T1",
        "its command has --base None",
        lambda: change_record(f"{PRETRAIN}/run.json", settings__base="fp8"),
    ),
    "teacher that is no merged model": (
        "P1",
        "which none of the compared runs has merged",
        lambda: edit(
            Path(FINETUNE, "run.json"),
            lambda record: record["inputs"].update(teacher=record["inputs"]["projector"]),
        ),
    ),
    "other learning rate": (
        "T1",
        "the scale tiny fixes",
        lambda: change_record(f"{PRETRAIN}/run.json", settings__learning_rate=0.1),
    ),
    "other batch": (
        "T1",
        "is not the global batch",
        lambda: change_record(f"{FINETUNE}/run.json", settings__accumulation=2),
    ),
    "too few steps": ("T1", "steps", lambda: change_record(f"{PRETRAIN}/run.json", results__steps=4)),
    "gap in the log": (
        "T1",
        "a line is missing",
        lambda: change_lines(f"{PRETRAIN}/pretrain.log", lambda lines: lines[:1] + lines[2:]),
    ),
    "nan": (
        "T1",
        "the loss is not finite",
        lambda: change_lines(
            f"{FINETUNE}/finetune.log",
            lambda lines: ["{'loss': nan, 'learning_rate': 0.0, 'epoch': 0.3}\n", *lines[1:]],
        ),
    ),
    "huge loss": (
        "T1",
        "the loss is not a finite number above 0",
        lambda: change_lines(
            f"{FINETUNE}/finetune.log", lambda lines: [lines[0].replace("5.3333", "1e999"), *lines[1:]]
        ),
    ),
    "stopped early": (
        "T1",
        "the run did not end",
        lambda: change_lines(f"{FINETUNE}/finetuning.log", lambda lines: lines[:-1]),
    ),
    "other losses": (
        "T1",
        "last_loss",
        lambda: change_record(f"{PRETRAIN}/run.json", results__last_loss=0.5),
    ),
    "large difference": ("M1", "differ by", lambda: TREE.merge_record(max_logit_difference=0.01)),
    "nan difference": (
        "M1",
        "NaN is not JSON",
        lambda: change_lines(
            f"{FINETUNE}/merge.json", lambda lines: [line.replace("1e-06", "NaN") for line in lines]
        ),
    ),
    "no difference measured": ("M1", "differ by", lambda: TREE.merge_record(max_logit_difference=None)),
    "wide tolerance": (
        "M1",
        "differ by",
        lambda: TREE.merge_record(max_logit_difference=0.01, tolerance=1.0),
    ),
    "nothing changed": ("M1", "nothing was merged", lambda: TREE.merge_record(tensors_changed=0)),
    "adapter in the record": (
        "M1",
        "3 tensors of the adapter in the merged model",
        lambda: TREE.merge_record(lora_tensors_left=3),
    ),
    "adapter in the shard": ("M1", "adapter tensors", lora_left),
    "other shard": (
        "M1",
        "is not the file",
        lambda: save_file({"x": numpy.ones(3, dtype=numpy.float32)}, SHARD),
    ),
    "no shard": ("M1", "it is not there", lambda: Path(SHARD).unlink()),
    "extra shard": (
        "M1",
        "does not know this shard",
        lambda: save_file({"x": numpy.ones(1)}, SHARD.replace("model-0", "model-9")),
    ),
    "no shard header": ("M1", "could not be finished", lambda: Path(SHARD).write_bytes(b"\xff" * 20)),
    "unanswered question": (
        "E1",
        "1 question has no answer",
        lambda: change_lines(ANSWERS, lambda lines: lines[:-1]),
    ),
    "answered twice": (
        "E1",
        "answered twice",
        lambda: change_lines(MMBENCH, lambda lines: [*lines, lines[0]]),
    ),
    "simulated": (
        "E1",
        "'simulat'",
        lambda: change_rows(ANSWERS, lambda row: row["metadata"].update(note="simulated_answer_for_testing")),
    ),
    "empty answers": (
        "E1",
        "answers are empty",
        lambda: change_rows(ANSWERS, lambda row: row.update(text=" ")),
    ),
    "no options": (
        "E1",
        "not one of the options",
        lambda: change_rows(MMBENCH, lambda row: row.update(text="yes")),
    ),
    "shuffled images": (
        "E1",
        "shuffled",
        lambda: change_record(f"{RESULTS}/textvqa/run.json", settings__shuffle_images=1),
    ),
    "one answer": (
        "E2",
        "20 of 20 answers are 'nike'",
        lambda: change_rows(ANSWERS, lambda row: row.update(text="Nike")),
    ),
    "baseline's answers": ("E2", "all answers equal", copy_of_baseline),
    "raised accuracy": (
        "E3",
        "do not follow",
        lambda: edit(Path(f"{RESULTS}/textvqa/score.json"), lambda value: value.update(accuracy=99.0)),
    ),
    "raised question": (
        "E3",
        "do not follow",
        lambda: edit(Path(f"{RESULTS}/mmbench/score.json"), lambda value: value["scores"].update({"19": 1})),
    ),
    "other upload": (
        "E3",
        "is not what the toolkit makes of",
        lambda: Path(UPLOAD).write_bytes(Path(TREE.upload("baseline")).read_bytes()),
    ),
    "other comparison": (
        "E3",
        "does not follow from the scores",
        lambda: edit(
            Path("output/reports/compare.json"),
            lambda value: value["benchmarks"]["textvqa"]["results"]["MGM-Tiny-Finetune-synth"].update(
                accuracy=80.0
            ),
        ),
    ),
    "other model": (
        "E3",
        "not of the model",
        lambda: change_rows(MMBENCH, lambda row: row.update(answer_id="0" * 22)),
    ),
    "merged again": ("E3", "not of the model", lambda: TREE.merge_record(max_logit_difference=2e-6)),
    "other projector": (
        "P1",
        "was changed after",
        lambda: Path(PRETRAIN, "mm_projector.bin").write_text("other"),
    ),
    "other weights trained on": (
        "P1",
        "did not read",
        lambda: edit(Path(f"{FINETUNE}/run.json"), lambda record: record["inputs"].pop("projector")),
    ),
    "changed adapter": (
        "P1",
        "was changed after",
        lambda: Path(FINETUNE, "adapter_model.safetensors").write_text("other"),
    ),
    "changed asset": (
        "P1",
        "was changed after it was fetched",
        lambda: edit(
            Path("input/world-evaluation/textvqa/TextVQA_0.5.1_val.json"),
            lambda value: value["data"][0].update(extra=1),
        ),
    ),
    "other asset": (
        "P1",
        "was another",
        lambda: edit(
            Path("input/world-gemma/manifest.json"),
            lambda value: value["files"]["model.safetensors"].update(sha256="0"),
        ),
    ),
    "unlisted asset": (
        "P1",
        "does not list",
        lambda: edit(Path("input/world-gemma/manifest.json"), lambda value: value["files"].clear()),
    ),
    "other captioner": (
        "P1",
        "another model captioner",
        lambda: edit(Path("input/world-captioner/manifest.json"), lambda value: value["files"].clear()),
    ),
    "answers from nowhere": (
        "P1",
        "no record names",
        lambda: edit(Path(f"{RESULTS}/mmbench/run.json"), lambda record: record["outputs"].pop("upload")),
    ),
    "other script": (
        "T2",
        "is not what the records",
        lambda: Path("output/train.sh").write_text("#!/bin/sh\n"),
    ),
    "key twice": (
        "E3",
        "the key accuracy is there twice",
        lambda: change_lines(
            f"{RESULTS}/textvqa/score.json", lambda lines: [lines[0], '  "accuracy": 99.9,\n', *lines[1:]]
        ),
    ),
    "other formatting": (
        "P2",
        "is not as the toolkit writes it",
        lambda: Path(f"{FINETUNE}/merge.json").write_text(
            json.dumps(json.loads(Path(f"{FINETUNE}/merge.json").read_text()))
        ),
    ),
    "recipe that runs a file": (
        "D5",
        "python_file_mapper",
        lambda: Path("solution/recipes/other.yaml").write_text(
            "process:\n  - python_file_mapper: {file_path: solution/x.py}\n"
        ),
    ),
    "deep exceptions": (
        "X1",
        "nested more than 100 deep",
        lambda: Path("solution/exceptions.yaml").write_text("[" * 50_000),
    ),
    "aliases in exceptions": (
        "X1",
        "anchors (&) and aliases (*) are not read",
        lambda: Path("solution/exceptions.yaml").write_text(
            "- &a {id: R1, file: a, reason: b}\n" + "- *a\n" * 10_000
        ),
    ),
    "long exceptions": (
        "X1",
        "has 400000 bytes, at most 262144 are read",
        lambda: Path("solution/exceptions.yaml").write_text("- a\n" * 100_000),
    ),
    "merge keys in a recipe": (
        "D5",
        "anchors (&) and aliases (*) are not read",
        lambda: Path("solution/recipes/other.yaml").write_text(
            "a: &a {b: 1}\nprocess:\n  - <<: [*a, *a, *a]\n"
        ),
    ),
    "recipe without operators": (
        "D5",
        "no list of operators",
        lambda: Path("solution/recipes/other.yaml").write_text("[1]\n"),
    ),
    "many recipes": ("D5", "the recipes have", many_recipes),
    "long number": (
        "M1",
        "has 5000 digits",
        lambda: change_lines(
            f"{FINETUNE}/merge.json", lambda lines: [line.replace("1e-06", "9" * 5000) for line in lines]
        ),
    ),
    "deep record": (
        "M1",
        "nested more than 100 deep",
        lambda: Path(f"{FINETUNE}/merge.json").write_text("[" * 50_000),
    ),
    "half a surrogate in a record": (
        "M1",
        "half a surrogate pair",
        lambda: change_lines(
            f"{FINETUNE}/merge.json", lambda lines: [line.replace('"merged"', '"\\ud800"') for line in lines]
        ),
    ),
    "a record of too many files": (
        "P1",
        "names more than 1000 files",
        lambda: edit(
            Path(f"{FINETUNE}/merge.json"),
            lambda v: v.update(inputs={str(n): v["inputs"]["llm"] for n in range(1001)}),
        ),
    ),
    "more epochs": (
        "T1",
        "ends at epoch 3.0, the scale tiny trains 1",
        lambda: change_lines(
            f"{PRETRAIN}/pretrain.log",
            lambda lines: [line.replace("'epoch': 1.0", "'epoch': 3.0") for line in lines],
        ),
    ),
    "a billion steps": (
        "T1",
        "the record says 1000000000",
        lambda: change_record(f"{PRETRAIN}/run.json", results__steps=10**9),
    ),
    "a deep line in a log": (
        "T1",
        "the line cannot be read",
        lambda: change_lines(f"{PRETRAIN}/pretrain.log", lambda lines: [*lines, "{" + "-" * 4000 + "\n"]),
    ),
    "a long line in a log": (
        "T1",
        "the line cannot be read",
        lambda: change_lines(
            f"{PRETRAIN}/pretrain.log", lambda lines: [*lines, "{'loss': [" + "1," * 5000 + "]}\n"]
        ),
    ),
    "a log of too many lines": (
        "T1",
        "100001 steps",
        lambda: Path(f"{PRETRAIN}/pretrain.log").write_text("{}\n" * 100_001),
    ),
    "a log of too many bytes": (
        "T1",
        "no log of a training",
        lambda: Path(f"{PRETRAIN}/pretrain.log").write_text("a\n" * (5 << 20)),
    ),
    "too many rows": (
        "D1",
        "30001 rows",
        lambda: change_lines(f"{DATA}/processed_data.jsonl", lambda rows: rows[:1] * 30_001),
    ),
    "a long readme": (
        "R1",
        "has more than 1048576 bytes",
        lambda: Path("solution/readme").write_text("# a\n" * (1 << 19)),
    ),
    "more requirements than are listed": (
        "R1",
        "and more: 100 findings of this check are listed",
        lambda: Path("solution/requirements.txt").write_text("torch\n" * 1000),
    ),
    "name of a device": (
        "S1",
        "another file on another system",
        lambda: Path("solution/CON.txt").write_text("x"),
    ),
    "name of an option": ("S1", "take the name for an option", lambda: Path("solution/-rf").write_text("x")),
    "Unicode twins": (
        "S1",
        "or Unicode forms only",
        lambda: [Path(f"solution/{name}").write_text("x") for name in ("ﬁle", "file")],
    ),
    "short readme": ("R1", "no section 'method'", lambda: Path("solution/readme").write_text("# Data\n")),
    "unpinned requirement": (
        "R1",
        "is not pinned",
        lambda: Path("solution/requirements.txt").write_text("torch\n"),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_entry(tree, name):
    identifier, words, break_it = BROKEN[name]
    break_it()
    status, document = validate()
    assert status == 1 and not document["valid"]
    hits = [
        finding
        for finding in document["findings"]
        if finding["id"] == identifier and words in finding["message"]
    ]
    assert hits, document["findings"]
    assert hits[0]["severity"] == "error" and hits[0]["remedy"]


def test_every_check_is_broken_once():
    """An id without a broken entry is a check that nobody saw fail."""
    assert {identifier for identifier, _, _ in BROKEN.values()} == set(CHECKS) - {"P3", "S6"}  # test_verify


def test_every_finding_says_where_and_what_to_do(tree):
    for _, _, break_it in list(BROKEN.values())[::3]:
        # one break may take away what the next one alters
        with suppress(OSError, ValueError, KeyError, IndexError):
            break_it()
    _, document = validate()
    assert document["errors"] > 10
    assert all(
        finding["file"] and finding["message"] and finding["remedy"] for finding in document["findings"]
    )
    Path(PRETRAIN, "run.json").write_text("[]")
    _, document = validate()
    assert all(finding["file"] for finding in document["findings"])
    jsonschema.validate(document, SCHEMA)


def test_validation_fits_its_schema(tree):
    _, document = validate()
    jsonschema.validate(document, SCHEMA)
    grant("R1", "solution/requirements.txt", "no release of our own package yet")
    Path("solution/requirements.txt").write_text("ours\n")
    _, document = validate()
    jsonschema.validate(document, SCHEMA)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document | {"valid": "yes"}, SCHEMA)


def test_an_exception_is_printed_and_no_error(tree, capsys):
    Path("solution/requirements.txt").write_text("ours\n")
    TREE.documents()
    assert validate()[0] == 1
    reason = "no release of our own package yet"
    grant("R1", "solution/requirements.txt", reason)
    capsys.readouterr()
    status, document = validate()
    assert status == 0 and document["valid"]
    assert (document["errors"], document["warnings"], document["exceptions"]) == (0, 0, 1)
    assert [(item["id"], item["severity"], item["reason"]) for item in document["findings"]] == [
        ("R1", "exception", reason)
    ]
    shown = capsys.readouterr().out
    assert "exception" in shown and "excepted: no release" in shown


def test_an_exception_covers_one_file_and_one_id(tree):
    Path("solution/requirements.txt").write_text("ours\n")
    grant("R1", "solution/readme", "another file")
    status, document = validate()
    assert status == 1 and document["exceptions"] == 0
    assert [(item["id"], item["severity"]) for item in document["findings"]] == [
        ("R1", "error"),
        ("X1", "warning"),
    ]


def test_strict_turns_warnings_into_errors(tree):
    grant("R1", "solution/readme", "covers nothing")
    status, document = validate()
    assert status == 0 and (document["warnings"], document["findings"][0]["line"]) == (1, 1)
    status, document = validate(strict=True)
    assert status == 1 and (document["errors"], document["warnings"]) == (1, 0)


def test_valid_entry(tree):
    status, document = validate()
    assert status == 0 and document["valid"] and document["findings"] == []
    assert (document["scale"], document["division"]) == ("tiny", "open")


def test_full_finetuning(tmp_path, monkeypatch):
    """Division closed has no adapter: the checkpoint lies in the finetuning folder itself."""
    tree = EntryTree(division="closed")
    tree.build(tmp_path / "tree")
    monkeypatch.chdir(tmp_path / "tree")
    status, document = validate()
    assert status == 0, document["findings"]
    change_record(f"{tree.finetune}/run.json", settings__strategy="neftune")
    _, document = validate()
    message = "its strategy is neftune, division closed is the kit's training"
    assert ("T1", message) in {(finding["id"], finding["message"]) for finding in document["findings"]}
    tree.merge_record(tensors_changed=0)
    assert validate()[0] == 1


# findings of trees under the rules of the real sizes
TOO_SMALL = {("E2", "different answers"), ("P3", "the rules")}


def words_of(finding: dict) -> tuple[str, str]:
    """Id of a finding, and which words of TOO_SMALL it says."""
    return finding["id"], next((words for _, words in TOO_SMALL if words in finding["message"]), "")


def test_online_rules(tmp_path, monkeypatch):
    """The kit's numbers and names; 20 questions are too few for this benchmark, the assets are the world's,
    and nothing else is wrong. No weights are packed."""
    tree = EntryTree(scale="baseline_10k")
    tree.build(tmp_path / "tree")
    monkeypatch.chdir(tmp_path / "tree")
    status, document = validate(rules="online_2024")
    assert status == 1
    assert {words_of(finding) for finding in document["findings"]} == TOO_SMALL
    members = Entry(Path(), "synth", ruleset.load("online_2024")).members()
    assert tree.answers() in members and not [
        name for name in members if name.endswith((".safetensors", ".bin"))
    ]


def test_online_rules_forbid_weights(tmp_path, monkeypatch):
    EntryTree(scale="baseline_10k").build(tmp_path / "tree")
    monkeypatch.chdir(tmp_path / "tree")
    Path("solution/model.safetensors").write_bytes(b"\0")
    status, document = validate(rules="online_2024")
    assert status == 1
    assert [finding["file"] for finding in document["findings"] if finding["id"] == "S3"] == [
        "solution/model.safetensors"
    ]


def test_results_of_a_benchmark_that_is_not_configured_are_to_be_deleted(tree):
    """They are an earlier run's, and no rule makes them again."""
    folder = Path(EntryTree().results()) / "pope"
    folder.mkdir()
    record = json.loads((folder.parent / "textvqa/run.json").read_text())
    record["inputs"]["merge"]["sha256"] = "0" * 64
    write_json(folder / "run.json", record | {"stage": "evaluate pope"})
    _, document = validate()
    remedies = {
        finding["remedy"] for finding in document["findings"] if finding["file"] == f"{folder}/run.json"
    }
    assert f"delete {folder}: the configuration does not name pope" in remedies


def test_a_base_model_in_shards(tree):
    """As the real ones are: the records name llm-1, llm-2 in the place of llm."""
    for run in (EntryTree(), EntryTree().run("baseline")):
        for record in (Path(run.pretrain) / "run.json", Path(run.finetune) / "run.json"):

            def shard(value: dict) -> None:
                weights = value["inputs"].pop("llm")
                value["inputs"] |= {"llm-1": weights, "llm-2": weights}

            edit(record, shard)
        rehash(run.name)
    EntryTree().documents()
    _, document = validate()
    # the answers' ids name the record of a merge, which is another one now
    assert {finding["id"] for finding in document["findings"]} == {"E3"}


@pytest.mark.parametrize("division", ["open", "closed"])
def test_offline_rules(tmp_path, monkeypatch, division):
    """Data and weights are required and packed; the cap is the finals'."""
    tree = EntryTree(scale="baseline_10k", division=division, rules="offline_2024")
    tree.build(tmp_path / "tree")
    monkeypatch.chdir(tmp_path / "tree")
    status, document = validate(rules="offline_2024")
    assert status == 1
    assert {words_of(finding) for finding in document["findings"]} == TOO_SMALL
    assert tree.shard in Entry(Path(), "synth", ruleset.load("offline_2024")).members()
    Path(tree.shard).unlink()
    _, document = validate(rules="offline_2024")
    assert ("S3", "there are no merged weights") in {
        (finding["id"], finding["message"]) for finding in document["findings"]
    }


def test_validation_is_deterministic(tree):
    validate()
    first = Path(OUTPUT).read_bytes()
    validate()
    assert Path(OUTPUT).read_bytes() == first


def test_every_required_file_is_missed(tree):
    for name in Entry(tree, "synth", ruleset.load("embedded")).required():
        content = Path(name).read_bytes()
        Path(name).unlink()
        status, document = validate()
        missing = [
            finding for finding in document["findings"] if finding["id"] == "S2" and finding["file"] == name
        ]
        assert status == 1 and len(missing) == 1, name
        # no rule makes what the contestant writes
        assert missing[0]["remedy"].startswith("snakemake ") == name.startswith("output/"), name
        Path(name).write_bytes(content)


def test_all_findings_are_listed(tree, capsys):
    Path("solution/readme").write_text("# Data\n")
    Path("solution/requirements.txt").write_text("torch\nnumpy\n")
    Path(ANSWERS).unlink()
    _, document = validate()
    assert {finding["id"] for finding in document["findings"]} >= {"S2", "R1"}
    assert [finding["line"] for finding in document["findings"] if "pinned" in finding["message"]] == [1, 2]
    assert document["errors"] == len(document["findings"]) >= 6
    shown = capsys.readouterr().out
    assert "S2" in shown and "R1" in shown


@pytest.mark.parametrize("stage", ["data", "pretrain", "finetune", "merge", "textvqa", "mmbench"])
@pytest.mark.parametrize("text", ["[]", "{}", "null", "{", '{"settings": {}, "results": {}}'])
def test_a_record_of_any_shape_is_a_finding(tree, stage, text):
    file = Entry(tree, "synth", ruleset.load("embedded")).record_files[stage]
    Path(file).write_text(text)
    status, document = validate()
    assert status == 1 and document["errors"]


def test_warnings_do_not_fail(tree):
    """An answer that is not an option counts as wrong and is only worth a warning; the scores follow from
    it."""
    rows = [json.loads(line) for line in Path(MMBENCH).read_text().splitlines()]
    rows[-1]["text"] = "maybe"
    Path(MMBENCH).write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, document = validate()
    warnings = [finding for finding in document["findings"] if finding["severity"] == "warning"]
    assert document["warnings"] == 1 and warnings[0]["id"] == "E1"


def test_a_first_stage_of_other_sizes_is_checked_by_its_own(tree):
    """As of an HD variant: what the finished model reads is not what the first stage read."""
    rules = ruleset.load("embedded")
    less = ruleset.Sizes(model_max_length=128, image_size_aux=64)
    fixed = rules.fixed.model_copy(update={"first_stage": less})
    edit(Path(f"{PRETRAIN}/config.json"), lambda value: value.update(image_size_aux=128))
    entry = Entry(tree, "synth", rules.model_copy(update={"fixed": fixed}))
    messages = {finding.file: finding.message for finding in numbers(entry) if "64" in finding.message}
    assert messages == {
        f"{PRETRAIN}/run.json": "image_size_aux of the first stage of scale tiny is 128, the rules fix 64",
        f"{PRETRAIN}/config.json": "image_size_aux is 128, the rules fix 64",
    }


def test_unknown_experiment_and_rules(tree, capsys):
    status, document = validate("nothing")
    assert status == 1 and document["errors"]
    command = ["bundle", "validate", "--experiment", "synth", "--rules", "tomorrow", "--output", OUTPUT]
    assert main(command) == 1
    assert (
        "unknown rules 'tomorrow': choose one of embedded, embedded_llama, family_13b, family_13b_hd, "
        "family_7b, family_7b_hd, family_8b, family_8b_hd, offline_2024, online_2024, rehearsal"
        in capsys.readouterr().err
    )


def test_validation_needs_no_torch(tree):
    code = (
        "import sys; from toolkit.__main__ import main;status = main(['bundle', 'validate', "
        f"'--experiment', 'synth', '--rules', 'embedded', '--output', '{OUTPUT}']);sys.exit(status or "
        "'torch' in sys.modules)"
    )
    repository = str(Path(__file__).parents[2])
    assert (
        subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": repository}, check=False).returncode
        == 0
    )
