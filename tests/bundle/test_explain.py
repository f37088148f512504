"""The story of a file, told from the records inside an archive and from nothing else."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
from entry_tree import DATA, EntryTree

from toolkit.__main__ import main
from toolkit.bundle.explain import explain
from toolkit.errors import UserError

TREE = EntryTree()
SCORE = f"{TREE.results()}/textvqa/score.json"
ARCHIVE = Path("submit.zip")


@pytest.fixture
def packed(packed_tree, monkeypatch, tmp_path):
    """The entry's archive, alone in the working directory."""
    shutil.copyfile(packed_tree / ARCHIVE, tmp_path / ARCHIVE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rewrite(name: str, change) -> None:
    """The archive again, with the bytes of `name` through `change`."""
    with zipfile.ZipFile(ARCHIVE) as source:
        members = {member: source.read(member) for member in source.namelist()}
    with zipfile.ZipFile(ARCHIVE, "w", zipfile.ZIP_DEFLATED) as target:
        for member, content in members.items():
            target.writestr(zipfile.ZipInfo(member), change(content) if member == name else content)


def test_a_score_leads_back_to_the_seed_rows(packed, capsys):
    assert main(["bundle", "explain", "submit.zip", SCORE]) == 0
    told = capsys.readouterr().out
    order = [
        SCORE,
        "accuracy 70.0",
        "merge.json",
        "1 of 3 tensors changed",
        "24 rows, 3 steps of 8, seed 1024",
    ]
    order += [
        "mm_projector.bin",
        "llava.json",
        "conversion to LLaVA's format",
        "40 seed rows were read, 36 kept",
        "made by the contestant",
    ]
    order += ["input/world-seed/mgm_pretrain_stage_1.jsonl", "images with raw captions"]
    places = [told.index(words) for words in order]
    assert places == sorted(places)
    assert "licence: Apache-2.0" in told and "captioner is input/world-captioner" in " ".join(told.split())


def test_the_whole_story_has_every_stage_in_order(packed):
    told = explain(ARCHIVE, None)
    stages = (
        "synthesize:",
        "pretrain:",
        "finetune:",
        "merge:",
        "evaluate textvqa:",
        "evaluate mmbench:",
        "code:",
    )
    assert [line.split(":")[0] + ":" for line in told if line.startswith(stages)] == list(stages)
    assert any(line.startswith("locked packages:") and line.endswith("(all stages)") for line in told)


def test_every_member_has_a_story(packed):
    with zipfile.ZipFile(ARCHIVE) as archive:
        names = archive.namelist()
    silent = [
        name
        for name in names
        if any("no record in the archive" in line for line in explain(ARCHIVE, name)[1:2])
    ]
    assert [name for name in silent if not name.endswith(("tokenizer.json", "compare.md"))] == []


def test_a_file_may_be_named_by_its_ending(packed):
    assert explain(ARCHIVE, "textvqa/score.json") == explain(ARCHIVE, SCORE)
    assert explain(ARCHIVE, "world-clip/model.safetensors")[1].startswith("  a file of the asset world-clip")


@pytest.mark.parametrize(
    ("path", "words"),
    [("score.json", "more than one file"), ("textvqa/skore.json", "no file of this entry: did you mean")],
)
def test_an_unknown_file_is_one_sentence_with_near_names(packed, capsys, path, words):
    assert main(["bundle", "explain", "submit.zip", path]) == 1
    error = capsys.readouterr().err
    assert words in error and SCORE in error and error.count("\n") == 1


def test_a_changed_file_is_told_as_such(packed):
    rewrite(f"{DATA}/processed_data.jsonl", lambda content: content + b"{}\n")
    assert "NOT what the records name" in explain(ARCHIVE, f"{DATA}/processed_data.jsonl")[0]


def test_a_source_without_a_trace_is_told_as_such(packed):
    with zipfile.ZipFile(ARCHIVE, "a") as archive:
        archive.writestr(zipfile.ZipInfo("output/processed_data/other/llava.json"), "[]")
    told = explain(ARCHIVE, "output/processed_data/other/llava.json")
    assert any("other/processed_data.jsonl (neither in the archive nor in a record)" in line for line in told)


def test_a_record_cannot_write_on_the_terminal(packed):
    file = f"{TREE.pretrain}/run.json"
    rewrite(file, lambda content: json.dumps(json.loads(content) | {"device": "\x1b[2Jcpu"}).encode())
    assert not [line for line in explain(ARCHIVE, None) if "\x1b" in line]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda content: b"[]", "is not a record of a stage"),
        (lambda content: b"[" * 100_000, "is not valid JSON, nested more than 100 deep"),
        (
            lambda content: content.replace(b'"record"', b'"stage": "a", "record"'),
            "is not valid JSON, the key stage is there twice",
        ),
        (
            lambda content: content.replace(b'"record": 2', b'"record": ' + b"9" * 5000),
            "is not valid JSON, the number 9+… has 5000 digits",
        ),
        (
            lambda content: json.dumps(json.loads(content) | {"inputs": {"samples": 3}}).encode(),
            "is not a record of a stage",
        ),
    ],
)
def test_a_damaged_record_is_one_sentence(packed, change, sentence):
    rewrite(f"{TREE.pretrain}/run.json", change)
    with pytest.raises(UserError, match=sentence):
        explain(ARCHIVE, None)


def test_what_is_no_entry_is_one_sentence(packed):
    with pytest.raises(UserError, match="is not a file"):
        explain(Path("absent.zip"), None)
    ARCHIVE.write_bytes(ARCHIVE.read_bytes()[:-30])
    with pytest.raises(UserError, match="cannot be trusted"):
        explain(ARCHIVE, None)
    with zipfile.ZipFile("other.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo("solution/readme"), "x")
    with pytest.raises(UserError, match="it is not an entry"):
        explain(Path("other.zip"), None)
