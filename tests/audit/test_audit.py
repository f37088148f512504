"""Entries made with the kit alone come out as what they are: an honest one without a finding, look-alikes of
public attempts with those that name what they did."""

import json
import random
import shutil
import stat
import struct
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest
from browser import Browser, needs_axe

from tests.audit import lookalike
from tests.audit.lookalike import FINETUNE, MMBENCH, NAME, PRETRAIN, SCRIPT, TEXTVQA, log
from toolkit.__main__ import main
from toolkit.audit import page, script
from toolkit.audit.audit import Audit, audit
from toolkit.errors import UserError
from toolkit.files import read_json, read_jsonl

CHROMIUM = shutil.which("chromium")
PROCESSED = "output/processed_data/processed_data.jsonl"


@pytest.fixture(scope="module")
def honest(tmp_path_factory) -> Path:
    return lookalike.entry(tmp_path_factory.mktemp("honest"))


@pytest.fixture(autouse=True)
def kit(tmp_path, monkeypatch):
    """The kit's lines are those of the look-alike's script."""
    lines = [" ".join(line.split()) for line in SCRIPT.partition("Editable Part Ends")[2].splitlines()[1:]]
    hashes = " ".join(sha256(line.encode()).hexdigest()[:12] for line in lines)
    (tmp_path / "kit.json").write_text(json.dumps({"train.sh": hashes}))
    monkeypatch.setattr(script, "KIT", tmp_path / "kit.json")


@pytest.fixture
def entry(honest, tmp_path) -> Path:
    return Path(shutil.copytree(honest, tmp_path / "entry"))


def messages(path: Path, **given) -> set[str]:
    """`id message` of each finding."""
    return {f"{finding.id} {finding.message}" for finding in audit([path], **given)[0].findings}


def says(findings: set[str], identifier: str, text: str) -> bool:
    return any(finding.startswith(f"{identifier} ") and text in finding for finding in findings)


def test_an_honest_entry_has_no_finding_and_shows_its_figures(honest):
    result = audit([honest])[0]
    assert result.findings == []
    (model,) = result.models
    assert (model.name, model.rows, model.gpus) == (NAME, 10_240, 8)
    assert model.steps == {"pretrain": 40, "finetune": 93} and model.seconds == 4000
    assert model.answers == {"textvqa": 5000, "mmbench": 4377}


def test_the_kits_lines_are_those_of_both_scripts():
    lines = {
        name: value.split()
        for name, value in read_json(Path(script.__file__).with_name("kit_lines.json")).items()
    }
    assert {name: len(value) for name, value in lines.items()} == {
        "train_mgm_2b_stage_1.sh": 106,
        "train_mgm_2b_stage_1_10k_baseline.sh": 106,
    }


LOGS = {
    "a sleeping script": (
        '{"step": 1, "message": "simulated training"}\n',
        ["carries the mark 'simulat'", "no step with a loss is logged"],
    ),
    "losses of another kind": (
        log("pretrain", 40, loss=lambda step: 2.96e11 + step),
        ["a loss of 296000000001"],
    ),
    "a smooth curve": (log("pretrain", 40, loss=lambda step: 6 - step / 20), ["lie on a smooth curve"]),
    "one loss": (log("pretrain", 40, loss=lambda step: 2.5), ["all 40 losses are the same"]),
    "another rate": (
        log("pretrain", 40, learning_rate=2e-3),
        ["--learning_rate of the pretrain command is 0.002"],
    ),
    "another schedule": (
        log("pretrain", 40).replace("'learning_rate': 0.0005,", "'learning_rate': 0.0006,"),
        ["step 1 logs learning rate 6.0000e-04, the kit's schedule has 5.0000e-04"],
    ),
    "four GPUs": (log("pretrain", 40, gpus=4), ["4 GPUs make batches of 128 rows, the kit's have 256"]),
    "fewer steps": (log("pretrain", 30), ["30 steps, 10240 rows in batches of 256 make 40"]),
    "another mean": (
        log("pretrain", 40, train_loss=2.0),
        ["train_loss is 2.0, the mean of the logged losses"],
    ),
    "a mean that cannot be": (
        log("pretrain", 40, every=7, train_loss=0.5),
        ["train_loss is 0.5, which does not follow from the logged losses"],
    ),
    "too fast": (
        log("pretrain", 40, seconds=1.0),
        ["10240.0 samples/s on 8 GPUs, the fastest card could do"],
    ),
    "no time": (log("pretrain", 40, passed=1000), ["1000 s lie between the first and the last time stamp"]),
    "an end that is missing": (
        "\n".join(line for line in log("pretrain", 40).splitlines() if "train_runtime" not in line),
        ["the closing line with train_runtime and train_loss is missing"],
    ),
    "two runs": (log("pretrain", 40) + log("pretrain", 40), ["the epoch falls from 1.0 to 0.03"]),
}


@pytest.mark.parametrize("name", LOGS)
def test_a_log_that_no_training_wrote(entry, name):
    text, expected = LOGS[name]
    (entry / PRETRAIN / "pretrain.log").write_text(text)
    findings = messages(entry)
    for message in expected:
        assert any(message in finding for finding in findings), findings


def test_a_log_of_every_fiftieth_step_is_judged_too(entry):
    (entry / FINETUNE / "finetuning.log").write_text(log("finetune", 1875, every=50, gpus=8))
    assert messages(entry) == set()


def test_other_instructions_than_the_kits(entry):
    (entry / FINETUNE / "finetuning.log").write_text(log("finetune", 200))
    assert says(messages(entry), "T1", "200 steps, the kit's instruction sets make 1875 or 93")


def test_no_log_and_no_answers(entry):
    shutil.rmtree(entry / PRETRAIN)
    (entry / TEXTVQA).unlink()
    findings = messages(entry)
    assert says(findings, "S2", "there is no pretrain.log") and says(findings, "S2", "no answers to textvqa")


def test_a_script_that_trains_otherwise(entry):
    changed = SCRIPT.replace("--learning_rate 2e-5 \\", "--learning_rate 1e-4 \\\n    --lora_enable True \\")
    (entry / "output/train.sh").write_text(changed.replace("AUX=768", "AUX=336"))
    findings = messages(entry)
    assert says(findings, "T2", "--learning_rate of the finetune command is 1e-4, the kit has 2e-05")
    assert says(findings, "T2", "--image_size_aux of the pretrain command is 336, the kit has 768")
    assert says(findings, "T2", "trains adapters (LoRA)")
    assert says(findings, "T2", "not of the kit's script: AUX=336")
    assert says(findings, "T2", "not of the kit's script: --learning_rate 1e-4 ⏎ --lora_enable True")
    (entry / "output/train.sh").write_text(SCRIPT + "true\n" * 5000)
    assert says(messages(entry), "T2", "lines: it is not the kit's training script")
    (entry / "output/train.sh").write_text("python simple_training.py\n")
    assert says(messages(entry), "T2", "has no editable block")


def test_comments_messages_and_the_block_may_change(entry):
    changed = SCRIPT.replace("EXP_NAME=own", "EXP_NAME=other\nPORT=1").replace("AUX=", "# the size\n\nAUX=")
    (entry / "output/train.sh").write_text(changed.replace('"Done."', '"All done."') + "echo $AUX\n")
    findings = messages(entry)
    assert {finding for finding in findings if "missing" not in finding} == set()


def test_canned_answers_that_say_so(entry):
    rows = list(read_jsonl(entry / TEXTVQA))
    for number, row in enumerate(rows):
        row |= {"text": ("text", "unknown", "3", "Nike", "blue")[number % 10 % 5 if number % 3 else 0]}
        row["metadata"] = {"note": "simulated_answer_for_testing"}
    lookalike.write_rows(entry / TEXTVQA, rows)
    findings = messages(entry)
    assert says(findings, "E1", "carries the mark 'simulat' of a simulation")
    assert says(findings, "E2", "5 different answers to 5000 questions") and says(
        findings, "E2", "are 'text'"
    )


def test_letters_drawn_by_lot(entry):
    rows, draw = list(read_jsonl(entry / MMBENCH)), random.Random(3)
    lookalike.write_rows(entry / MMBENCH, [row | {"text": draw.choice("ABCD")} for row in rows])
    assert says(messages(entry), "E2", "are the same option when the options are rotated")


def test_a_weak_model_that_prefers_a_letter_does_not_draw_lots(entry):
    rows, draw = list(read_jsonl(entry / MMBENCH)), random.Random(3)
    lookalike.write_rows(entry / MMBENCH, [row | {"text": draw.choice("AABCDD")} for row in rows])
    assert messages(entry) == set()


def test_answers_of_part_of_the_questions_or_twice(entry):
    rows = list(read_jsonl(entry / TEXTVQA))
    lookalike.write_rows(entry / TEXTVQA, [*rows[:10], rows[0]])
    findings = messages(entry)
    assert says(findings, "E1", "11 answers, the benchmark has 5000 questions")
    assert says(findings, "E1", "1 question is answered more than once, first 00000")


def test_a_table_without_predictions_or_with_others(entry):
    from openpyxl import Workbook

    table = entry / f"output/eval_results/{NAME}/mmbench/answers_upload/mmbench_dev_20230712/{NAME}.xlsx"
    table.parent.mkdir(parents=True)
    for prediction, message in ((None, "0 of 1 rows have a prediction"), ("A", "are not the answers of")):
        workbook = Workbook()
        workbook.active.append(["index", "question", "prediction"])
        workbook.active.append([1, "what?", prediction])
        workbook.save(table)
        assert any(message in finding for finding in messages(entry))


def test_two_models_and_two_entries_with_the_same_answers(honest, entry):
    shutil.copytree(
        entry / f"output/eval_results/{NAME}", entry / "output/eval_results/MGM-2B-Finetune-better"
    )
    assert says(messages(entry), "E2", "5000 of 5000 answers are those of MGM-2B-Finetune-")
    shutil.rmtree(entry / "output/eval_results/MGM-2B-Finetune-better")
    assert all(
        any("5000 of 5000 answers are those of" in finding.message for finding in result.findings)
        for result in audit([honest, entry])
    )


def test_a_merge_that_copies_files(entry):
    (entry / FINETUNE / "adapter_config.json").write_text("{}")
    assert says(messages(entry), "M1", "holds an adapter and no merged weights")


def safetensors(path: Path, shapes: dict[str, list[int]]) -> None:
    """A header alone: what is judged."""
    header = json.dumps({name: {"dtype": "BF16", "shape": shape} for name, shape in shapes.items()}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def test_weights_are_those_of_the_contests_model(entry):
    from toolkit.audit.weights import official

    whole, file = official(), entry / FINETUNE / "model-00001-of-00001.safetensors"
    safetensors(file, whole)
    assert messages(entry) == set()
    safetensors(file, {name: shape for name, shape in whole.items() if name != "lm_head.weight"})
    assert messages(entry) == set()
    other = whole | {"model.layers.0.q_proj.lora_A.weight": [16, 2048], "model.norm.weight": [4096]}
    other.pop("model.embed_tokens.weight")
    safetensors(file, other)
    findings = messages(entry)
    assert says(findings, "M1", "1 tensor of an adapter left in it") and says(
        findings, "S3", "are missing, first"
    )
    assert says(findings, "S3", "model.norm.weight is [4096], MGM-2B has [2048]")
    file.write_bytes(b"\xff" * 100)
    assert says(messages(entry), "S3", "is not a safetensors file")


def test_weights_that_were_not_trained(entry, tmp_path):
    import torch
    from safetensors.torch import save_file

    base = {
        "model.norm.weight": torch.ones(4),
        "model.a.weight": torch.ones(2, 2),
        "model.b.weight": torch.ones(2, 2),
    }
    (tmp_path / "base").mkdir()
    save_file(base, tmp_path / "base/model.safetensors")
    trained = base | {"model.a.weight": torch.zeros(2, 2)}
    save_file(trained, entry / FINETUNE / "model-00001-of-00001.safetensors")
    assert says(
        messages(entry, base=tmp_path / "base"),
        "M1",
        "1 of 2 matrices are the base model's, first model.b.weight",
    )


def test_captions_that_hold_the_benchmarks_questions(entry, tmp_path):
    folder, question = (
        tmp_path / "eval/textvqa",
        "what does the small white sign beside the old red door say to people?",
    )
    lookalike.write_rows(
        folder / "llava_textvqa_val_v051_ocr.jsonl",
        [{"question_id": "q", "image": "1.jpg", "text": f"{question}\nAnswer the question."}],
    )
    annotations = {"data": [{"image_id": "q", "question": question, "answers": ["closed"] * 10}]}
    (folder / "TextVQA_0.5.1_val.json").write_text(json.dumps(annotations))
    (folder / "train_images").mkdir()
    table = tmp_path / "eval/mmbench/mmbench_dev_20230712.tsv"
    table.parent.mkdir()
    table.write_text("index\tquestion\thint\tA\tB\tC\tD\tanswer\timage\n1\tIs it?\t\tyes\tno\t\t\tA\tAAAA\n")
    rows = list(read_jsonl(entry / PROCESSED))
    rows[0]["text"] = f"<__dj__image>\n{question} closed <|__dj__eoc|>"
    lookalike.write_rows(entry / PROCESSED, rows)
    assert says(
        messages(entry, references=tmp_path / "eval"), "D4", "the text of 000000000 repeats textvqa q"
    )


def test_rows(entry):
    rows = list(read_jsonl(entry / PROCESSED))
    seed = entry.parent / "seed.jsonl"
    lookalike.write_rows(seed, rows[1:])
    findings = messages(entry, seed=seed)
    assert says(findings, "D1", "1 ids are none of the seed's, first 000000000")
    assert not says(findings, "D2", "nothing was synthesized")
    lookalike.write_rows(seed, rows)
    assert says(messages(entry, seed=seed), "D2", "every caption is the seed's: nothing was synthesized")
    rows[3]["images"] = ["/data/images/3.jpg"]
    rows[4]["text"] = "no token"
    lookalike.write_rows(entry / PROCESSED, [*rows, rows[0]])
    findings = messages(entry)
    assert says(findings, "D1", "1 of 10241 rows: absolute image path")
    assert says(findings, "D1", "1 of 10241 rows repeat another's image and caption")
    assert sum(finding.startswith("D1") for finding in findings) == 3


def test_no_synthesis_step(entry):
    (entry / "solution/recipe.yaml").write_text("process:\n  - text_length_filter:\n")
    assert says(messages(entry), "D2", "without a synthesis step an entry is invalid")
    (entry / "solution/readme").write_text("captions by image_captioning_mapper")
    assert says(messages(entry), "D2", "only a description names image_captioning_mapper")


def test_code_that_speaks_of_simulation_and_keys(entry):
    (entry / "solution/train.py").write_text(
        f"# simulate the training\nKEY = 'hf_{sha256(b'key').hexdigest()}'\n"
    )
    findings = messages(entry)
    assert says(findings, "E1", "speaks of simulation: # simulate the training")
    assert says(findings, "S4", "holds a token of Hugging Face")


def test_large_files_are_searched_too_and_what_is_unreadable_ends_no_audit(entry):
    """Gemma's tokenizer.json has 17 MB."""
    (entry / FINETUNE / "tokenizer.json").write_text(" " * (17 << 20))
    assert messages(entry) == set()
    (entry / "output/train.sh").write_bytes(b"\0" * (17 << 20))
    (entry / PROCESSED).write_bytes(b"[" * (17 << 20))
    findings = messages(entry)
    assert says(findings, "T2", "at most 16777216 are read as text") and says(findings, "D1", "")


def zipped(root: Path, target: Path, inside: str = "") -> zipfile.ZipFile:
    archive = zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED)
    for path in sorted(root.rglob("*")):
        archive.write(path, inside + path.relative_to(root).as_posix())  # folders too, as zip -r does
    return archive


def test_a_zip_is_read_like_its_folder(honest, tmp_path):
    zipped(honest, tmp_path / "submit.zip").close()
    assert audit([tmp_path / "submit.zip"])[0].models == audit([honest])[0].models
    zipped(honest, tmp_path / "deep.zip", "submit/").close()
    assert messages(tmp_path / "deep.zip") == {"S1 solution/ and output/ lie in a folder of their own"}


def test_a_damaged_member_of_a_zip_is_called_as_in_the_zip(entry, tmp_path):
    (entry / TEXTVQA).write_text("{broken\n")
    zipped(entry, tmp_path / "submit.zip").close()
    assert any(message.startswith(f"E1 {TEXTVQA}, line 1: ") for message in messages(tmp_path / "submit.zip"))


def test_a_hostile_zip_is_judged_and_not_unpacked(honest, tmp_path):
    with zipped(honest, tmp_path / "submit.zip") as archive:
        archive.writestr("../../outside.txt", "x")
        archive.writestr("solution/bomb.txt", b"\0" * (4 << 20))
        link = zipfile.ZipInfo("solution/link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("solution/model.pkl", b"\x80\2cos\nsystem\n")
        archive.writestr("extra/file", "x")
        archive.writestr("__MACOSX/._x", "x")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("solution/readme", "another")
    findings = messages(tmp_path / "submit.zip")
    assert says(findings, "S1", "the name leaves the archive's folder") and says(
        findings, "Z9", "is a pickle"
    )
    assert (
        says(findings, "Z5", "unpacks")
        and says(findings, "Z5", "is a link")
        and says(findings, "Z3", "two members")
    )
    assert says(findings, "S1", "beside solution and output there are: ")
    assert not (tmp_path.parent / "outside.txt").exists()


def test_an_entry_of_this_toolkit_is_to_be_verified(entry):
    record = entry / "output/processed_data/synth/run.json"
    record.parent.mkdir()
    record.write_text("{}")
    assert says(messages(entry), "P1", "has the records of this toolkit")


def test_what_is_no_entry(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(UserError, match="neither a folder nor a readable zip"):
        audit([tmp_path / "notes.txt"])
    with pytest.raises(UserError, match="neither a folder nor a readable zip"):
        audit([tmp_path / "absent.zip"])


def test_what_is_no_entry_keeps_nobody_from_the_others(honest, tmp_path):
    (tmp_path / "empty.zip").touch()
    first, second, third = audit([tmp_path / "empty.zip", honest, tmp_path / "absent.zip"])
    assert [(finding.id, finding.severity) for finding in first.findings] == [("Z1", "error")]
    assert not second.findings and "absent.zip is neither a folder nor a readable zip" in str(third.findings)


def test_the_command_and_its_page(honest, entry, tmp_path, capsys):
    (entry / MMBENCH).unlink()
    row = {"question_id": "<script>alert(1)</script>", "prompt": "x", "text": "y"}
    lookalike.write_rows(entry / TEXTVQA, [row, row])
    html, json_file = tmp_path / "audit.html", tmp_path / "audit.json"
    command = ["bundle", "audit", str(honest), str(entry), "--html", str(html), "--json", str(json_file)]
    assert main(command) == 1 and main(["bundle", "audit", str(honest)]) == 0
    text = html.read_text()
    assert "<script" not in text and "&lt;script&gt;" in text and 'href="#entry-01"' in text
    first, second = read_json(json_file)
    assert (first["errors"], second["errors"] > 0) == (0, True)
    assert "no findings" in capsys.readouterr().out


@needs_axe
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH (Debian: apt install chromium)")
def test_nothing_keeps_anybody_out_of_the_page(honest, entry, tmp_path):
    (entry / MMBENCH).unlink()
    (tmp_path / "audit.html").write_text(page.html([*audit([honest, entry]), Audit("empty")]))
    browser = Browser(CHROMIUM, tmp_path / "profile")
    try:
        browser.open((tmp_path / "audit.html").as_uri())
        assert browser.value("document.querySelectorAll('section').length") == 4
        assert browser.barriers() == []
    finally:
        browser.close()


def test_an_entry_without_a_model_has_a_line():
    assert "no model" in page.html([Audit("empty")])


def test_scores_are_recomputed_with_the_benchmarks_answers(entry, tmp_path, monkeypatch):
    folder = tmp_path / "eval/textvqa"
    question = {"question_id": "q1", "image": "1.jpg", "text": "what is it?\nAnswer the question."}
    lookalike.write_rows(folder / "llava_textvqa_val_v051_ocr.jsonl", [question])
    annotations = {"data": [{"image_id": "q1", "question": "what is it?", "answers": ["mug"] * 10}]}
    (folder / "TextVQA_0.5.1_val.json").write_text(json.dumps(annotations))
    lookalike.write_rows(
        entry / TEXTVQA, [{"question_id": "q1", "prompt": question["text"], "text": "mug", "answer_id": "a"}]
    )
    (entry / MMBENCH).unlink()
    assert audit([entry], references=tmp_path / "eval")[0].models[0].scores == {"textvqa": 100.0}
    (folder / "TextVQA_0.5.1_val.json").unlink()
    with pytest.raises(UserError, match=r"TextVQA_0.5.1_val.json is not there: name the kit's folder"):
        audit([entry], references=tmp_path / "eval")
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="eval holds none of textvqa, mmbench"):
        audit([entry], references=tmp_path / "eval")


def test_a_seed_that_is_none_is_no_finding_of_the_entry(entry, tmp_path):
    for text, message in (("", "holds no row: name the seed's .jsonl"), ("# Title\n", "line 1: ")):
        (tmp_path / "seed.jsonl").write_text(text)
        with pytest.raises(UserError, match=message):
            audit([entry], seed=tmp_path / "seed.jsonl")


def test_a_table_is_judged_before_it_is_read(entry):
    table = entry / f"output/eval_results/{NAME}/mmbench/{NAME}.xlsx"
    with zipfile.ZipFile(table, "w") as archive:
        archive.writestr("xl/vbaProject.bin", "x")
    assert says(messages(entry), "E1", "is not part of a plain table")
