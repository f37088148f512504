"""Statistics are computed once: what recomputes, what does not, and what a store survives."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import forks
import pytest
from test_data_synthesize import account, synthesize, synthesize_arguments
from tiny_data import ROOT, run_data, seed_set, write_rows

from toolkit import code
from toolkit.__main__ import main
from toolkit.data import recipe
from toolkit.data.engine import juicer, statistics
from toolkit.data.engine.scores import Scores
from toolkit.data.recipe import kinds, plan
from toolkit.data.samples import caption_of
from toolkit.errors import UserError
from toolkit.files import read_jsonl

RECIPE = """
process:
  - whitespace_normalization_mapper:
  - text_length_filter: {min_len: 14}
  - word_repetition_filter: {rep_len: 2, max_ratio: 0.9}
  - image_shape_filter: {min_width: 10}
  - image_deduplicator: {method: phash}
  - document_minhash_deduplicator: {window_size: 2, num_permutations: 16}
"""


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many rows each operator was asked for."""
    actual: dict[str, int] = {}
    compute = juicer.compute

    def count(job: juicer.Job, rows: list, wanted: list, rank: int | None = None) -> list:
        for (_, name, _), places in zip(job.operators, wanted, strict=True):
            actual.update({name: actual.get(name, 0) + len(places)} if places else {})
        return compute(job, rows, wanted, rank)

    monkeypatch.setattr(juicer, "compute", count)
    return actual


def score(folder: Path, text: str) -> int:
    (folder / "recipe.yaml").write_text(text)
    samples = [
        "--recipe",
        folder / "recipe.yaml",
        "--samples",
        folder / "rows.jsonl",
        "--images",
        folder,
        "--scores",
        folder / "scores",
    ]
    return main(["data", "score", *map(str, samples), "--output", str(folder / "scores.json")])


def test_a_changed_threshold_order_or_selection_computes_nothing(
    tmp_path: Path, counted: dict[str, int]
) -> None:
    rows = seed_set(tmp_path, 30)
    write_rows(tmp_path / "rows.jsonl", rows)
    assert score(tmp_path, RECIPE) == 0
    assert counted.pop("whitespace_normalization_mapper") == 30 and all(
        0 < count <= 30 for count in counted.values()
    )
    assert set(counted) == {
        step for line in RECIPE.split("\n") if "  - " in line for step in [line.split("- ")[1].split(":")[0]]
    } - {"whitespace_normalization_mapper"}
    listed = json.loads((tmp_path / "scores.json").read_text())
    assert listed["rows"] == 30 and listed["statistics"][0]["operator"] == "whitespace_normalization_mapper"

    counted.clear()
    for change in (
        ("min_len: 14", "min_len: 22"),
        ("min_len: 14", "min_len: {quantile: 0.5}"),
        ("max_ratio: 0.9", "max_ratio: 0.1, reversed_range: false"),
        ("min_width: 10", "min_width: {rows: 3}"),
        (
            "  - image_shape_filter: {min_width: 10}\n",
            "  - random_selector: {select_num: 20}\n  - image_shape_filter: {any_or_all: all}\n",
        ),
    ):
        assert synthesize(tmp_path, RECIPE.replace(*change), rows) == 0
        account(tmp_path, 30)
    lines = RECIPE.strip().split("\n")
    assert synthesize(tmp_path, "\n".join([*lines[:2], *reversed(lines[2:])]), rows) == 0
    assert counted == {}

    assert synthesize(tmp_path, RECIPE.replace("rep_len: 2", "rep_len: 3"), rows) == 0
    assert list(counted) == ["word_repetition_filter"]  # computed another way, and nothing else


def test_nothing_is_computed_for_rows_that_are_not_drawn(tmp_path: Path, counted: dict[str, int]) -> None:
    rows = seed_set(tmp_path, 30)
    write_rows(tmp_path / "rows.jsonl", rows)
    head, *steps = RECIPE.strip().split("\n")
    drawing = "\n".join([head, "  - random_selector: {select_num: 12}", *steps])
    assert score(tmp_path, drawing) == 0
    assert counted["whitespace_normalization_mapper"] == 12
    assert max(counted.values()) == 12

    counted.clear()
    assert synthesize(tmp_path, drawing, rows) == 0
    _, removed, _ = account(tmp_path, 30)
    assert counted == {}
    assert sum(entry["operator"] == "random_selector" for entry in removed.values()) == 18

    counted.clear()
    assert score(tmp_path, drawing.replace("12", "20")) == 0
    assert counted["whitespace_normalization_mapper"] == 8  # the first draw is a part of the second


def test_the_plan_is_what_decides_the_statistics(tmp_path: Path) -> None:
    def of(text: str) -> str:
        (tmp_path / "recipe.yaml").write_text(text)
        return plan.plan(tmp_path / "recipe.yaml")

    lines = RECIPE.strip().split("\n")
    same = [
        RECIPE.replace("min_len: 14", "min_len: {quantile: 0.1}"),
        "\n".join([*lines[:2], *reversed(lines[2:])]),
        RECIPE + "  - random_selector: {select_num: 3}\n",
        RECIPE.replace("mapper:", "mapper: {where: {text_len: {max: 3}}}"),
        "# a comment\n" + RECIPE,
    ]
    assert {of(text) for text in same} == {of(RECIPE)}
    others = [
        RECIPE.replace("rep_len: 2", "rep_len: 3"),
        RECIPE.replace("window_size: 2", "window_size: 3"),
        RECIPE + "  - fix_unicode_mapper:\n",
        "\n".join([lines[0], *lines[2:], lines[1]]),  # the filters now come before the mapper
        "\n".join(
            [lines[0], "  - random_selector: {select_num: 3}", *lines[1:]]
        ),  # fewer rows to compute for
    ]
    assert len({of(text) for text in [RECIPE, *others]}) == 6
    assert of("process: [") == of("3") == of("process: [3, {a: 1, b: 2}]") == '{"process": []}'


def test_a_changed_list_of_words_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: dict[str, int]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = seed_set(tmp_path, 6)
    text = "process: [{flagged_words_filter: {flagged_words_dir: words, max_ratio: 0.0}}]"
    words = Path("words/flagged_words.json")
    words.parent.mkdir()
    words.write_text('{"en": ["nothing"]}')
    assert synthesize(tmp_path, text, rows) == 0
    assert len(account(tmp_path, 6)[0]) == 6
    stated = json.loads((tmp_path / "run.json").read_text())["inputs"]
    assert stated["words/flagged_words.json"]["bytes"] == words.stat().st_size
    assert plan.files(tmp_path / "recipe.yaml") == ["words/flagged_words.json"]

    word = rows[0]["text"].split()[1]
    words.write_text(json.dumps({"en": [word]}))
    counted.clear()
    juicer._operator.cache_clear()  # as in a process of its own
    synthesize(tmp_path, text, rows)
    assert list(counted) == ["flagged_words_filter"]
    assert rows[0]["id"] in {row["id"] for row in read_jsonl(tmp_path / "removed.jsonl")}


def test_thresholds_are_told_from_what_is_computed() -> None:
    with juicer.offline():
        from data_juicer.ops import OPERATORS

        actual = {
            name: kinds.limits(OPERATORS.modules[f"{name}_filter"])
            for name in ("words_num", "word_repetition", "image_subplot")
        }
        assert {"min_num", "max_num", "reversed_range"} <= actual["words_num"] and "lang" not in actual[
            "words_num"
        ]
        assert {"min_ratio", "max_ratio"} <= actual["word_repetition"] and "rep_len" not in actual[
            "word_repetition"
        ]
        # decides what is found, though it looks like a limit
        assert "min_horizontal_lines" not in actual["image_subplot"]
        text = juicer.operator(recipe.Step(1, "text_length_filter", {}))
        assert kinds.reads(text) == "text"
        assert kinds.reads(juicer.operator(recipe.Step(1, "image_shape_filter", {}))) == "image"
        assert (
            kinds.reads(juicer.operator(recipe.Step(1, "image_deduplicator", {"consider_text": True})))
            == "both"
        )


def test_an_adaptive_limit_stands_in_the_record_and_with_what_it_removed(tmp_path: Path) -> None:
    rows = seed_set(tmp_path, 30)
    assert synthesize(tmp_path, "process: [{text_length_filter: {min_len: {rows: 10}}}]", rows) == 0
    kept, removed, results = account(tmp_path, 30)
    lengths = sorted((len(caption_of(row["text"])) for row in rows), reverse=True)
    assert results["funnel"][1]["limits"] == {"min_len": lengths[9]}
    assert len(kept) == sum(length >= lengths[9] for length in lengths)
    assert {entry["limits"]["min_len"] for entry in removed.values()} == {lengths[9]}


def test_a_limit_on_one_of_several_statistics_must_name_it(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = seed_set(tmp_path, 4)
    assert (
        synthesize(
            tmp_path,
            "process: [{image_shape_filter: {min_width: {quantile: 0}, min_height: {quantile: 0}}}]",
            rows,
        )
        == 0
    )
    assert (
        synthesize(
            tmp_path, "process: [{image_shape_filter: {min_width: {quantile: 0, of: image_depth}}}]", rows
        )
        == 1
    )
    assert (
        "min_width needs `of`, the statistic it is about, one of image_width, image_height"
        in capsys.readouterr().err
    )


def test_a_mapper_leaves_rows_alone_that_where_excludes(tmp_path: Path) -> None:
    rows = seed_set(tmp_path, 20)
    text = """
process:
  - text_length_filter: {min_len: 0}
  - replace_content_mapper: {pattern: "ball|box|red|right|sign", repl: "x",
      where: {text_len: {max: {quantile: 0.5}}}}
"""
    assert synthesize(tmp_path, text, rows) == 0
    kept, _, results = account(tmp_path, 20)
    limit = results["funnel"][2]["where"]["text_len"]["max"]
    short = {row["id"] for row in rows if len(caption_of(row["text"])) <= limit}
    assert 0 < len(short) < 20 and results["funnel"][2]["mapped"] == len(short)
    changed = {row["id"] for row, original in zip(kept, rows, strict=True) if row["text"] != original["text"]}
    assert changed and changed <= short


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{fix_unicode_mapper: {where: 3}}", "where is not {statistic: {min: ..., max: ...}}"),
        ("{fix_unicode_mapper: {where: {text_len: {least: 3}}}}", "where is not {statistic"),
        ("{fix_unicode_mapper: {where: {text_len: {min: true}}}}", "a number is expected"),
        ("{fix_unicode_mapper: {where: {text_len: {min: {quantile: 2}}}}}", "quantile is a number from"),
        (
            "{fix_unicode_mapper: {where: {text_len: {min: {agree: text_len}}}}}",
            "agree is for the limits of filters",
        ),
        ("{text_length_filter: {where: {text_len: {min: 3}}}}", "it has no argument where"),
        ("{text_length_filter: {min_len: {quantil: 0.1}}}", "exactly one of quantile"),
        ("{fix_unicode_mapper: {where: {text_len: {min: .nan}}}}", "a number is expected"),
        ("{text_length_filter: {min_closed_interval: {quantile: 0.1}}}", "input should be a valid boolean"),
        ("{image_aspect_ratio_filter: {max_ratio: .inf}}", "max_ratio is inf: "),
        ("{words_num_filter: {lang: 2026-01-01}}", "2026-01-01 would be read as a date"),
        ("{words_num_filter: {min_num: 3, min_num: 5}}", "the key min_num is there twice"),
        ("{document_line_deduplicator: {}}", "not an operator that a recipe may use"),
        ("{random_selector: {}}", "it would keep every row: give select_ratio or select_num"),
        (
            "{topk_specified_field_selector: {field_key: __dj__stats__.text_len}}",
            "it would keep every row: give top_ratio or topk",
        ),
        (
            "{range_specified_field_selector: {field_key: __dj__stats__.text_len, lower_rank: 5}}",
            "it would keep every row: give upper_percentile or upper_rank",
        ),
        ("{topk_specified_field_selector: {topk: 5}}", "field_key is not given"),
        (
            "{image_size_filter: {min_size: 1.5kb}}",
            "min_size is '1.5kb': a whole number of bytes",
        ),
        ("{image_size_filter: {min_size: -5kb}}", "min_size is '-5kb': a whole number"),
        ("{image_size_filter: {max_size: '1,5kb'}}", "max_size is '1,5kb': a whole number"),
        (
            "{image_size_filter: {min_size: 1 MB, max_size: 900kib}}",
            "min_size is 1 MB and max_size 900kib: no row",
        ),
        ("{image_size_filter: {min_size: 2tb}}", "max_size 1TB by default: no row lies between them"),
        (
            "{fix_unicode_mapper: {where: {text_len: {min: {mean_sd: 1}, max: {mean_sd: -1}}}}}",
            "where.text_len has min {'mean_sd': 1} above max {'mean_sd': -1}: no row lies between them",
        ),
        (
            "{text_length_filter: {min_len: {quantile: 0.9}, max_len: {quantile: 0.1}}}",
            "min_len is {'quantile': 0.9} and max_len {'quantile': 0.1}: no row lies between them",
        ),
        (
            "{topk_specified_field_selector: {field_key: text, topk: 3}}",
            "field_key is 'text': name a statistic",
        ),
        ("{tags_specified_field_selector: {field_key: __dj__stats__.lang}}", "target_tags is not given"),
        (
            "{flagged_words_filter: {flagged_words_dir: solution/recipes/words, lang: fr}}",
            "lang is fr, of which solution/recipes/words has no words; known: en",
        ),
    ],
)
def test_bad_recipes(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "recipe.yaml").write_text(f"process: [{text}]")
    with juicer.offline(), pytest.raises(UserError) as caught:
        recipe.load(tmp_path / "recipe.yaml", {})
    assert message in str(caught.value)


def load(folder: Path, text: str) -> str:
    """What a recipe is refused for, "" where it is not."""
    (folder / "recipe.yaml").write_text(f"process: [{text}]")
    with juicer.offline():
        try:
            recipe.load(folder / "recipe.yaml", {})
        except UserError as error:
            return str(error).split(":\n  ", 1)[1]
    return ""


LACKS = "which no filter before it in its segment computes"


@pytest.mark.parametrize(
    ("asks", "argument"),
    [
        ("fix_unicode_mapper: {where: {NAME: {min: 1}}}", "where"),
        ("words_num_filter: {min_num: {agree: NAME}}", "min_num's agree"),
        ("weighted_score_selector: {weights: {NAME: 1}, top_num: 2}", "weights"),
        ("cluster_uniform_selector: {embedding: NAME, clusters: 2, top_num: 2}", "embedding"),
        ("topk_specified_field_selector: {field_key: __dj__stats__.NAME, topk: 2}", "field_key"),
        ("tags_specified_field_selector: {field_key: __dj__stats__.NAME, target_tags: [a]}", "field_key"),
    ],
)
def test_a_statistic_that_a_step_asks_for_is_computed_before_it(
    tmp_path: Path, asks: str, argument: str
) -> None:
    operator, computes = asks.split(":")[0], "{text_length_filter: {}}"
    known = f"{computes}, {{{asks.replace('NAME', 'text_len')}}}"
    assert load(tmp_path, known) == ""
    found = load(tmp_path, f"{computes}, {{{asks.replace('NAME', 'text_lem')}}}")
    assert found == (
        f"step 2, {operator}: {argument} names text_lem, {LACKS}, did you mean text_len?; known: text_len"
    )
    late = f"{{{asks.replace('NAME', 'text_len')}}}, {computes}"
    assert load(tmp_path, late) == f"step 1, {operator}: {argument} names text_len, {LACKS}; known: none"
    between = f"{computes}, {{clean_html_mapper: {{}}}}, {{{asks.replace('NAME', 'text_len')}}}"
    assert load(tmp_path, between) == f"step 3, {operator}: {argument} names text_len, {LACKS}; known: none"


def test_a_duplicate_names_the_row_that_stays(tmp_path: Path) -> None:
    rows = seed_set(tmp_path, 6)
    rows[4]["text"] = rows[1]["text"]
    assert synthesize(tmp_path, "process: [{document_deduplicator: {}}]", rows) == 0
    _, removed, _ = account(tmp_path, 6)
    assert removed[rows[4]["id"]]["of"] == rows[1]["id"]


def test_rows_behind_known_ones_are_computed(
    tmp_path: Path, counted: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "LOOKUP", 10)
    rows = seed_set(tmp_path, 25)
    write_rows(tmp_path / "rows.jsonl", rows[:10])
    assert score(tmp_path, RECIPE) == 0
    counted.clear()
    write_rows(tmp_path / "rows.jsonl", rows)
    assert score(tmp_path, RECIPE) == 0
    assert counted["whitespace_normalization_mapper"] == 15


def test_a_touched_image_is_read_again_and_scored_again(tmp_path: Path, counted: dict[str, int]) -> None:
    from tiny_data import picture

    rows = seed_set(tmp_path, 5)
    text = "process: [{image_shape_filter: {min_width: 60}}]"
    assert synthesize(tmp_path, text, rows) == 0 and counted == {"image_shape_filter": 5}
    picture(tmp_path / rows[3]["images"][0], 77, size=40)
    assert synthesize(tmp_path, text, rows) == 0 and counted == {"image_shape_filter": 6}
    _, removed, _ = account(tmp_path, 5)
    assert list(removed) == [rows[3]["id"]] and removed[rows[3]["id"]]["statistics"]["image_width"] == [40]
    os.utime(tmp_path / rows[0]["images"][0])  # touched, but the same bytes
    assert synthesize(tmp_path, text, rows) == 0 and counted == {"image_shape_filter": 6}


def test_another_model_in_the_same_folder_is_scored_again(tmp_path: Path) -> None:
    scores = Scores(tmp_path / "scores.sqlite")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/weights").write_text("one")
    first = scores.folder(tmp_path / "model")
    assert scores.folder(tmp_path / "model") == first
    (tmp_path / "model/weights").write_text("two")
    assert scores.folder(tmp_path / "model") != first


def test_a_file_that_was_only_hashed_is_still_decoded(tmp_path: Path) -> None:
    scores = Scores(tmp_path / "scores.sqlite")
    image = tmp_path / "model/x.jpg"
    image.parent.mkdir()
    image.write_text("no image")
    scores.folder(image.parent)
    for _ in range(2):
        ((problem, digest),) = scores.images([str(image)], 1).values()
        assert problem.startswith("unreadable image") and digest


def test_what_could_not_be_read_once_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.jpg").write_text("there")
    scores = Scores(tmp_path / "scores.sqlite")
    image = str(tmp_path / "x.jpg")
    for problem, digest in [("unreadable image: Input/output error", ""), (None, "0" * 64)]:
        monkeypatch.setattr(
            "toolkit.data.engine.scores.inspected",
            lambda paths, processes, answer=(problem, digest): (answer for _ in paths),
        )
        assert scores.images([image], 1) == {image: (problem, bytes.fromhex(digest))}


def test_an_image_of_several_rows_is_read_once_and_noted_as_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def inspect(paths: Iterable[str], processes: int) -> Iterator[tuple[None, str]]:
        for path in paths:
            if len(read) == 2:
                raise KeyboardInterrupt
            read.append(Path(path).name)
            yield None, "0" * 64

    monkeypatch.setattr("toolkit.data.engine.scores.inspected", inspect)
    monkeypatch.setattr("toolkit.data.engine.scores.NOTED", 1)
    monkeypatch.setattr("toolkit.data.engine.scores.LOOKUP", 2)
    paths = [str(tmp_path / f"{name}.jpg") for name in "abacb"]
    for path in paths:
        Path(path).write_text("x")
    scores = Scores(tmp_path / "scores.sqlite")
    with pytest.raises(KeyboardInterrupt):
        scores.images(paths, 1)
    assert read == ["a.jpg", "b.jpg"]
    read.clear()
    assert scores.images(paths, 1) == dict.fromkeys(paths, (None, bytes(32))) and read == ["c.jpg"]


def test_an_operators_source_is_everything_it_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(
        code, "sha256", lambda path: read.append(path.relative_to(code.HERE).as_posix()) or "0"
    )
    with juicer.offline():
        from data_juicer.ops import OPERATORS

        from toolkit.data.operators import registered

        own = kinds._source(registered("endpoint_rewriting_mapper"))
        stock = kinds._source(OPERATORS.modules["image_size_filter"])
    wanted = (
        "operators/endpoint_rewriting_mapper",
        "endpoint/mapper",
        "augment",
        "endpoint/__init__",
        "endpoint/responses",
        "samples",
    )
    assert {f"data/{name}.py" for name in wanted} <= set(read)
    assert len(read) == len(set(read)) and "data/engine/juicer.py" not in read
    assert own != stock


def test_what_another_engine_computed_is_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: dict[str, int]
) -> None:
    rows = seed_set(tmp_path, 6)
    text = "process: [{text_length_filter: {min_len: 1}}]"
    assert synthesize(tmp_path, text, rows) == synthesize(tmp_path, text, rows) == 0
    assert counted["text_length_filter"] == 6
    edited = tmp_path / "juicer.py"
    edited.write_bytes(Path(juicer.__file__).read_bytes() + b"# edited\n")
    monkeypatch.setattr(juicer, "__file__", str(edited))
    assert synthesize(tmp_path, text, rows) == 0
    assert counted["text_length_filter"] == 12


def test_a_store_that_cannot_be_opened_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "scores/scores.sqlite").mkdir(parents=True)
    assert synthesize(tmp_path, "process: []", seed_set(tmp_path, 2)) == 1
    assert "scores.sqlite cannot be opened" in capsys.readouterr().err


def test_a_damaged_store_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores/scores.sqlite").write_text(
        "this is no database, and long enough to be taken for one" * 40
    )
    assert synthesize(tmp_path, "process: []", seed_set(tmp_path, 2)) == 1
    error = capsys.readouterr().err
    assert "scores.sqlite is damaged" in error and "delete it" in error


def test_a_store_of_another_format_is_named(tmp_path: Path) -> None:
    scores = Scores(tmp_path / "scores.sqlite")
    scores.database.execute("PRAGMA user_version = 99")
    scores.close()
    with pytest.raises(UserError, match="has format 99, not 1: delete it"):
        Scores(tmp_path / "scores.sqlite")


@pytest.mark.parametrize(
    ("gpus", "modelled", "rows", "processes", "expected"),
    [
        (0, False, 100_000, 2, 256),
        (0, False, 100, 2, 13),
        (0, True, 100_000, 16, 64),
        (0, True, 500, 16, 16),
        (0, True, 200, 2, 32),
        (1, True, 10_000, 2, 4096),
        (4, True, 10_000, 2, 2560),
    ],
)
def test_every_process_and_gpu_has_its_share_of_few_rows(
    gpus: int, modelled: bool, rows: int, processes: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from toolkit.data.batches import default_rows

    monkeypatch.setattr(juicer, "operator", lambda step: SimpleNamespace(use_cuda=lambda: gpus > 0))
    monkeypatch.setattr(kinds, "has_model", lambda step: modelled)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert statistics.rows_a_task(None, rows, processes) == expected
    assert {"cpu": default_rows(False), "cuda": default_rows(True)} == statistics.BATCH


SLOWLY = """
import sys, time
from toolkit.__main__ import main
from toolkit.data.engine import juicer
with juicer.offline():
    from data_juicer.ops.mapper.whitespace_normalization_mapper import WhitespaceNormalizationMapper as slow
quick = slow.process_batched
def slowly(self, samples):
    time.sleep(0.01 * len(samples["text"]))
    return quick(self, samples)
slow.process_batched = slowly
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_killed_run_continues_where_it_was(tmp_path: Path) -> None:
    # each its own
    rows = [row | {"text": row["text"].replace("\n", f"\n{row['id']} ")} for row in seed_set(tmp_path, 900)]
    recipe = "process: [whitespace_normalization_mapper, {text_length_filter: {min_len: 24}}]"
    arguments = [*map(str, synthesize_arguments(tmp_path, recipe, rows, tmp_path))]
    command = [sys.executable, "-c", SLOWLY, "data", "synthesize", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    store = tmp_path / "scores/scores.sqlite"

    def done() -> int:
        if not store.exists():
            return 0
        scores = Scores(store)
        try:
            return scores.database.execute("SELECT count(*) FROM scores").fetchone()[0]
        finally:
            scores.close()

    until = time.monotonic() + 600
    while done() == 0 and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = done()
    assert 0 < there < 900 and not (tmp_path / "out.jsonl").exists()
    again = run_data("synthesize", *arguments)
    assert again.returncode == 0, again.stderr
    assert f"whitespace_normalization_mapper: {900 - there}/{900 - there}" in again.stderr
    killed = {name: (tmp_path / name).read_bytes() for name in ("out.jsonl", "removed.jsonl")}
    (tmp_path / "scores/scores.sqlite").unlink()
    assert run_data("synthesize", *arguments).returncode == 0
    assert killed == {name: (tmp_path / name).read_bytes() for name in killed}


SYNTHESIZE = [sys.executable, "-m", "toolkit", "data", "synthesize"]


@pytest.mark.slow
def test_ray_gives_the_same_bytes(tmp_path: Path) -> None:
    rows = seed_set(tmp_path, 40)
    done = {}
    for executor, run in (("local", forks.run), ("ray", subprocess.run)):
        out = tmp_path / executor
        out.mkdir()
        flags = synthesize_arguments(tmp_path, RECIPE, rows, out, "--processes", 2, "--executor", executor)
        ran = run([*SYNTHESIZE, *map(str, flags)], cwd=ROOT, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        done[executor] = [(out / name).read_bytes() for name in ("out.jsonl", "removed.jsonl")]
    assert done["local"] == done["ray"] and list(read_jsonl(tmp_path / "ray/out.jsonl"))
    failing = "process: [{alphanumeric_filter: {tokenization: true}}]"  # no tokenizer is there
    flags = synthesize_arguments(tmp_path, failing, rows[:3], tmp_path, "--processes", 1, "--executor", "ray")
    ran = subprocess.run([*SYNTHESIZE, *map(str, flags)], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 1 and "Traceback" not in ran.stderr
    assert "error: step 1 of the recipe, operator alphanumeric_filter, failed: OSError" in ran.stderr


@pytest.fixture
def ray_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ray computes at once and in this process; the list says when it was started and ended."""
    import ray

    calls: list[str] = []
    decorate = ray.remote

    def submitted(function: Callable, *task: object) -> SimpleNamespace:
        future: Future = Future()
        try:
            future.set_result(function(*task))
        except UserError as error:
            future.set_exception(error)
        return SimpleNamespace(future=lambda: future)

    def remote(*decorated: Any, **options: Any) -> Any:  # Data-Juicer's own classes are decorated as ever
        return (
            decorate(*decorated, **options)
            if decorated
            else lambda function: SimpleNamespace(remote=partial(submitted, function))
        )

    def init(address: str, **_: Any) -> None:
        assert address == "local"  # not a cluster that happens to run on this machine
        calls.append("init")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no tokenizer is looked for
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: calls.append("shutdown"))
    monkeypatch.setattr(ray, "is_initialized", lambda: calls[-1:] == ["init"])
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(ray, "remote", remote)
    return calls


@pytest.mark.parametrize(
    ("last", "status"),
    [("words_num_filter: {min_num: 1}", 0), ("alphanumeric_filter: {tokenization: true}", 1)],
)
def test_ray_starts_once_a_command_and_ends_with_it(
    tmp_path: Path, ray_calls: list[str], last: str, status: int
) -> None:
    steps = (
        "process: [{text_length_filter: {}}, whitespace_normalization_mapper, fix_unicode_mapper, "
        f"{{{last}}}]"
    )
    rows = seed_set(tmp_path, 5)
    assert synthesize(tmp_path, steps, rows, "--executor", "ray") == status
    assert ray_calls == ["init", "shutdown"]
    if status == 0:  # nothing is left to compute
        assert synthesize(tmp_path, steps, rows, "--executor", "ray") == 0 and ray_calls == [
            "init",
            "shutdown",
        ]
