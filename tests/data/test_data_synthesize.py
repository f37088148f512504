"""`data synthesize`: quarantine, accounting, determinism, failing operators."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_data import run_data, seed_row, seed_set, write_rows

from toolkit.__main__ import main
from toolkit.data.engine import juicer
from toolkit.files import read_jsonl

RECIPE = """
process:
  - image_shape_filter: {min_width: 40}
  - batched_similarity_filter: {hf_clip: "{clip}", min_score: 0.0}
  - batched_captioning_mapper: {hf_img2seq: "{captioner}", max_new_tokens: 6, batch_size: 8}
  - image_deduplicator: {consider_text: true}
  - batched_similarity_filter: {hf_clip: "{clip}", min_score: 0.0}
"""


def synthesize_arguments(folder: Path, recipe: str, rows: list, out: Path, *more: object) -> list[object]:
    """The command line for `rows` whose images lie in `folder`."""
    (folder / "recipe.yaml").write_text(recipe)
    samples = write_rows(folder / "rows.jsonl", rows)
    files = [
        "--scores",
        out / "scores",
        "--output",
        out / "out.jsonl",
        "--removed",
        out / "removed.jsonl",
        "--record",
        out / "run.json",
    ]
    return ["--recipe", folder / "recipe.yaml", "--samples", samples, "--images", folder, *files, *more]


def synthesize(folder: Path, recipe: str, rows: list, *more: object) -> int:
    """Run in this process; for recipes whose operators do not compute with torch."""
    return main(["data", "synthesize", *map(str, synthesize_arguments(folder, recipe, rows, folder, *more))])


def account(folder: Path, seed: int) -> tuple[list[dict], dict[str, dict], dict]:
    """(kept rows, removed entries by id, results of the record); every line must be accounted for exactly
    once."""
    kept, removed = list(read_jsonl(folder / "out.jsonl")), list(read_jsonl(folder / "removed.jsonl"))
    record = json.loads((folder / "run.json").read_text())
    results = record["results"]
    assert results["read"] == seed == results["kept"] + results["removed"] + results["quarantined"]
    assert len(removed) == results["removed"] + results["quarantined"]
    assert results["kept"] == len({row["id"] for row in kept}) and results["rows_written"] == len(kept)
    assert str(folder) not in json.dumps([kept, removed, record])
    for step, after in zip(results["funnel"], results["funnel"][1:], strict=False):
        assert step["out"] == after["in"]
    return kept, {entry["id"]: entry for entry in removed}, results


@pytest.mark.slow
def test_a_recipe_with_models_gives_the_same_bytes_for_any_number_of_processes(
    tmp_path: Path, clip: Path, captioner: Path
) -> None:
    rows = seed_set(tmp_path, 45)
    # a duplicate image
    (tmp_path / rows[7]["images"][0]).write_bytes((tmp_path / rows[6]["images"][0]).read_bytes())
    models = ["--model", f"clip={clip}", "--model", f"captioner={captioner}"]
    commands = [
        synthesize_arguments(tmp_path, RECIPE, rows, tmp_path / count, *models, "--processes", count)
        for count in ("1", "2")
    ]
    for arguments in commands:
        done = run_data("synthesize", *arguments)
        assert done.returncode == 0, done.stderr + done.stdout
    for name in ("out.jsonl", "removed.jsonl"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()

    kept, removed, results = account(tmp_path / "1", 45)
    assert [row["id"] for row in kept] == sorted(row["id"] for row in kept)
    assert results["captions_changed"] == len(kept) > 0
    originals = {row["id"]: row for row in rows}
    assert all(
        row["images"] == originals[row["id"]]["images"] and list(row) == ["id", "text", "images"]
        for row in kept
    )
    by_step = {step: [entry for entry in removed.values() if entry["step"] == step] for step in range(1, 6)}
    assert [step["operator"] for step in results["funnel"][1:-1]] == [next(iter(line)) for line in _steps()]
    # The same limit removes more rows after recaptioning: the new caption was judged, not the statistic of
    # the old one.
    assert by_step[2] and by_step[5]
    for entry in by_step[2] + by_step[5]:
        assert entry["statistics"]["image_text_similarity"][0] < 0 and entry["limits"] == {
            "min_score": 0.0,
            "max_score": 1.0,
        }
        assert "image_text_similarity" in entry["reason"] and entry["row"] == originals[entry["id"]]
    twins = {rows[6]["id"], rows[7]["id"]}
    assert {entry["id"] for entry in by_step[4]} <= twins and len(twins & removed.keys()) >= 1


def _steps() -> list[dict]:
    import yaml

    return yaml.safe_load(RECIPE)["process"]


def test_what_cannot_be_read_is_set_aside_with_its_reason(tmp_path: Path) -> None:
    rows = seed_set(tmp_path, 8)
    cut, gone = tmp_path / rows[1]["images"][0], tmp_path / rows[2]["images"][0]
    cut.write_bytes(cut.read_bytes()[:-300])
    gone.unlink()
    (tmp_path / rows[3]["images"][0]).write_text("not an image")
    lines = [
        *rows,
        '{"id": "half a li',
        {**seed_row(20, "up"), "images": ["../x.jpg"]},
        {**seed_row(21, "absolute"), "images": ["/etc/x.jpg"]},
        {**rows[0], "id": "two", "text": "<__dj__image> <__dj__image> two <|__dj__eoc|>"},
        {**rows[0], "id": "none", "text": "no token"},
        rows[5],
        {"id": "bare"},
        '{"id": "nan", "text": NaN}',
        '{"id": "\\ud800", "text": "half a pair"}',
        '{"id": "inf", "text": "<__dj__image> one", "images": ["x.jpg"], "score": 1e999}',
        {**seed_row(22, "zero"), "images": ["images/\0.jpg"]},
        {**seed_row(23, "pipe"), "images": ["pipe.jpg"]},
        {**seed_row(24, "long"), "images": ["x" * 300]},
    ]
    os.mkfifo(tmp_path / "pipe.jpg")
    assert synthesize(tmp_path, "process: []", lines, "--processes", "2") == 0
    kept, _, results = account(tmp_path, len(lines))
    assert kept == [rows[0], *rows[4:]] and results["captions_changed"] == 0
    removed = list(read_jsonl(tmp_path / "removed.jsonl"))
    reasons = {entry["line"]: entry["reason"] for entry in removed}
    assert list(reasons) == sorted(reasons) and all(entry["operator"] == "read" for entry in removed)
    expected = {
        2: "unreadable image",
        3: "missing image",
        4: "unreadable image",
        9: "malformed line",
        10: "leaves the folder",
        11: "absolute image path",
        12: "2 <__dj__image> tokens",
        13: "0 <__dj__image> tokens",
        14: "the id of line 6 again",
        15: "no text",
        16: "NaN is not JSON",
        17: "malformed line",
        18: "malformed line",
        19: "zero byte",
        20: "not a file",
        21: "name too long",
    }
    assert reasons.keys() == expected.keys()
    for line, text in expected.items():
        assert text in reasons[line]
    assert removed[3]["row"] == '{"id": "half a li' and removed[1]["row"] == rows[2]


STEPS = """
process:
  - whitespace_normalization_mapper:
  - text_length_filter: {min_len: 14}
  - words_num_filter: {min_num: 4, max_num: 100}
  - words_num_filter: {min_num: 5}
  - document_deduplicator: {}
"""


def test_the_funnel_removes_what_stock_data_juicer_removes(tmp_path: Path) -> None:
    import yaml
    from data_juicer.config import init_configs
    from data_juicer.core.executor import DefaultExecutor

    rows = seed_set(tmp_path, 40)
    rows[9]["text"] = rows[8]["text"] = rows[4]["text"]
    assert synthesize(tmp_path, STEPS, rows) == 0
    kept, removed, results = account(tmp_path, 40)
    assert 0 < len(kept) < 40 and [step["operator"] for step in results["funnel"]][1:-1] == [
        next(iter(s)) for s in yaml.safe_load(STEPS)["process"]
    ]

    stock = {
        "dataset_path": str(tmp_path / "rows.jsonl"),
        "export_path": str(tmp_path / "stock" / "out.jsonl"),
        "ds_cache_dir": str(tmp_path / "cache"),
        **yaml.safe_load(STEPS),
    }
    (tmp_path / "stock.yaml").write_text(yaml.safe_dump(stock))
    kept_rows = DefaultExecutor(
        init_configs(["--config", str(tmp_path / "stock.yaml")], load_configs_only=True)
    ).run(skip_export=True)
    assert [(row["id"], row["text"]) for row in kept] == [(row["id"], row["text"]) for row in kept_rows]

    short = [
        entry for entry in removed.values() if entry["operator"] == "words_num_filter" and entry["step"] == 3
    ]
    assert short and all(entry["statistics"]["num_words"] < 4 for entry in short)
    assert all(
        entry["reason"].startswith("num_words ") and entry["limits"]["min_num"] == 4 for entry in short
    )
    again = [entry for entry in removed.values() if entry["step"] == 4]
    assert again and all(entry["statistics"]["num_words"] == 4 for entry in again)
    assert {rows[8]["id"], rows[9]["id"]} <= removed.keys()


def test_a_failing_operator_fails_the_command_and_writes_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # no tokenizer is there, and none is looked for
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    recipe = "process: [{text_length_filter: {min_len: 1}}, {alphanumeric_filter: {tokenization: true}}]"
    assert synthesize(tmp_path, recipe, seed_set(tmp_path, 3)) == 1
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert (
        error.startswith("error: ")
        and "step 2 of the recipe, operator alphanumeric_filter, failed: OSError" in error
    )
    assert not any((tmp_path / name).exists() for name in ("out.jsonl", "removed.jsonl", "run.json"))


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (
            "{specified_field_filter: {field_key: __dj__meta__.nope, target_value: [a]}}",
            "operator specified_field_filter, failed: AssertionError: '__dj__meta__' not in",
        ),
        (
            "{words_num_filter: {min_num: {agree: image_width}}}",
            "image_width is 64 in every row, so there is nothing to agree with",
        ),
    ],
)
def test_every_kind_of_operator_fails_in_one_sentence(
    tmp_path: Path, capfd: pytest.CaptureFixture, steps: str, message: str
) -> None:
    assert (
        synthesize(
            tmp_path, f"process: [{{image_shape_filter: {{min_width: 1}}}}, {steps}]", seed_set(tmp_path, 3)
        )
        == 1
    )
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: step 2") and message in error
    assert not any((tmp_path / name).exists() for name in ("out.jsonl", "removed.jsonl", "run.json"))


def test_rows_that_become_several_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert synthesize(tmp_path, "process: [{repeat_mapper: {times: 3}}]", seed_set(tmp_path, 2)) == 0
    assert "2 rows read, 2 kept as 6 rows (0 with a new caption), 0 removed" in capsys.readouterr().out
    assert synthesize(tmp_path, "process: []", seed_set(tmp_path, 2)) == 0
    assert "2 rows read, 2 kept (0 with" in capsys.readouterr().out


@pytest.fixture
def whitespace(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable], None]:
    """Replaces what whitespace_normalization_mapper does."""
    with juicer.offline():
        from data_juicer.ops.mapper.whitespace_normalization_mapper import WhitespaceNormalizationMapper
    return lambda function: monkeypatch.setattr(WhitespaceNormalizationMapper, "process_batched", function)


def test_a_text_that_no_file_can_hold(
    tmp_path: Path, capfd: pytest.CaptureFixture, whitespace: Callable
) -> None:
    whitespace(lambda self, samples: samples | {"text": ["\ud800"] * len(samples["text"])})
    assert synthesize(tmp_path, "process: [whitespace_normalization_mapper]", seed_set(tmp_path, 3)) == 1
    assert "surrogates not allowed (the row of 000000000.jpg)" in capfd.readouterr().err.splitlines()[-1]


def test_a_killed_worker_is_one_sentence(
    tmp_path: Path, capfd: pytest.CaptureFixture, whitespace: Callable
) -> None:
    whitespace(lambda self, samples: os.kill(os.getpid(), 9))
    assert (
        synthesize(
            tmp_path, "process: [whitespace_normalization_mapper]", seed_set(tmp_path, 3), "--processes", "2"
        )
        == 1
    )
    error = capfd.readouterr().err
    assert "error: a process beside this one was killed" in error and "Traceback" not in error


def test_files_do_not_replace_each_other(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = seed_set(tmp_path, 2)
    for name, other in [
        ("--removed", "out.jsonl"),
        ("--record", "rows.jsonl"),
        ("--output", "./recipe.yaml"),
    ]:
        assert synthesize(tmp_path, "process: []", rows, name, tmp_path / other) == 1
        assert "is another file of this command" in capsys.readouterr().err
    (tmp_path / "images").rename(tmp_path / "synthetic_images")
    rows = [{**row, "images": [f"synthetic_{row['images'][0]}"]} for row in rows]
    assert synthesize(tmp_path, "process: []", rows) == 1
    assert "would be replaced" in capsys.readouterr().err and (tmp_path / rows[0]["images"][0]).is_file()


def test_a_recipe_that_removes_everything_says_why(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = seed_set(tmp_path, 3)
    assert synthesize(tmp_path, "process: []", rows) == 0
    recipe = "process: [{text_length_filter: {min_len: 1000}}, {words_num_filter: {}}]"
    assert synthesize(tmp_path, recipe, rows) == 1
    assert "removes all 3 valid rows" in capsys.readouterr().err
    assert all(entry["operator"] == "text_length_filter" for entry in read_jsonl(tmp_path / "removed.jsonl"))
    # nor those of the run before, which would contradict what was removed
    assert not (tmp_path / "out.jsonl").exists() and not (tmp_path / "run.json").exists()


def test_rows_that_a_recipe_spoils_are_not_kept(tmp_path: Path) -> None:
    recipe = "process: [{replace_content_mapper: {pattern: 'red|mug|a', repl: ''}}]"
    rows = [
        *seed_set(tmp_path, 3),
    ]
    rows[1]["text"] = "<__dj__image>\nred mug <|__dj__eoc|>"
    rows[0]["text"], rows[2]["text"] = (
        "<__dj__image>\nbox <|__dj__eoc|>",
        "<__dj__image>\nred box <|__dj__eoc|>",
    )
    assert synthesize(tmp_path, recipe.replace("|a'", "'"), rows) == 0
    kept, removed, results = account(tmp_path, 3)
    assert [row["id"] for row in kept] == [rows[0]["id"], rows[2]["id"]] and results["captions_changed"] == 1
    assert (
        removed[rows[1]["id"]]["operator"] == "result" and removed[rows[1]["id"]]["reason"] == "empty caption"
    )


def test_more_rows_than_there_are_make_no_repeats(tmp_path: Path) -> None:
    rows = seed_set(tmp_path, 5)
    assert synthesize(tmp_path, "process: [{random_selector: {select_num: 30}}]", rows) == 0
    kept, _, _ = account(tmp_path, 5)
    assert kept == rows
