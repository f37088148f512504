"""`data analyze` and `data compare`: the planted facts come out, on made rows and on real ones."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from tiny_data import record, seed_row, seed_set, write_rows

from toolkit.__main__ import main
from toolkit.data.analysis.shape import Comparison, Statistics
from toolkit.data.analysis.statistics import script

REAL = Path(__file__).parents[3] / "shared" / "seed_10k_sample"
real = pytest.mark.skipif(not REAL.is_dir(), reason="the 500 real rows are not beside the project")


def analyze(samples: Path, images: Path, output: Path, *more: str) -> Statistics:
    assert (
        main(["data", "analyze", str(samples), "--images", str(images), "--output", str(output), *more]) == 0
    )
    return Statistics.model_validate_json((output / "statistics.json").read_text(), strict=True)


def compare(a: Path, b: Path, images: Path, output: Path) -> Comparison:
    arguments = [
        "--images",
        str(images),
        "--output",
        str(output / "compare.json"),
        "--markdown",
        str(output / "compare.md"),
    ]
    assert main(["data", "compare", str(a), str(b), *arguments]) == 0
    return Comparison.model_validate_json((output / "compare.json").read_text(), strict=True)


def test_what_is_planted_is_found(tmp_path):
    rows = seed_set(tmp_path, 12)
    shutil.copy(tmp_path / rows[0]["images"][0], tmp_path / rows[1]["images"][0])  # same image, other id
    Image.new("L", (100, 50)).save(tmp_path / rows[2]["images"][0])
    whole = (tmp_path / rows[3]["images"][0]).read_bytes()
    (tmp_path / rows[3]["images"][0]).write_bytes(whole[:-40])
    (tmp_path / rows[4]["images"][0]).unlink()
    rows[6] = seed_row(6, "a caption that comes twice")
    rows[7] = seed_row(7, "a caption that comes twice")
    rows[8] = seed_row(8, "\u4e00\u53ea\u72d7\u72d7 dog")
    rows[9]["text"] = "a mug <__dj__image>"
    rows[10]["text"] = "<__dj__image>\na mug <|__dj__eoc|> of tea"
    bad = ['{"id": "0000', {**rows[0], "text": "no token"}, {**rows[0], "images": ["../x.jpg"]}]
    found = analyze(write_rows(tmp_path / "rows.jsonl", [*rows, rows[11], *bad]), tmp_path, tmp_path / "out")

    assert (found.lines, found.rows, found.ids, found.problem_lines) == (16, 13, 12, 3)
    assert [problem.line for problem in found.problems] == [14, 15, 16] and "malformed" in found.problems[
        0
    ].reason
    assert [group.ids for group in found.same_caption.largest] == [
        ["000000006", "000000007"],
        ["000000011", "000000011"],
    ]
    assert (found.same_caption.distinct, found.same_caption.groups, found.same_caption.rows) == (11, 2, 4)
    assert {tuple(group.ids) for group in found.same_image.largest} == {
        ("000000000", "000000001"),
        ("000000011", "000000011"),
    }
    assert [group.ids for group in found.same_row.largest] == [["000000011", "000000011"]]
    assert (found.images.files, found.images.readable) == (12, 10)
    assert [problem.line for problem in found.images.problems] == [
        4,
        5,
    ] and "missing" in found.images.problems[1].reason
    assert (found.images.width.maximum, found.images.height.minimum, found.images.short_side.minimum) == (
        100,
        50,
        50,
    )
    assert (found.images.commonest_short_side, found.images.of_commonest_short_side) == (64, 10)
    assert found.images.modes == {"RGB": 10, "L": 1}
    assert found.text.scripts == {"Latin": 12, "Han": 1}
    marks = found.markers
    assert (
        marks.image_first,
        marks.image_elsewhere,
        marks.end_last,
        marks.end_elsewhere,
        marks.end_missing,
    ) == (12, 1, 11, 1, 1)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a red mug", "Latin"),
        ("\u4e00\u53ea\u7ea2\u8272\u7684\u72d7 mug", "Han"),
        ("\u043a\u043e\u0442 a", "Cyrillic"),
        ("\u732b \u3068 \u306e", "Hiragana"),
        ("12 !", "none"),
    ],
)
def test_scripts(caption, expected):
    assert script(caption) == expected


def test_odd_data_sets(tmp_path, capsys):
    seed_set(tmp_path, 2)
    # one row, no word, no letter
    item = analyze(write_rows(tmp_path / "one.jsonl", [seed_row(0, "!!!")]), tmp_path, tmp_path / "one")
    assert item.diversity is None and item.text.scripts == {"none": 1}
    few = analyze(
        write_rows(tmp_path / "few.jsonl", [seed_row(0, "a mug"), seed_row(9, "a box")]),
        tmp_path,
        tmp_path / "few",
    )
    assert few.diversity.measures["HD-D"].value is None and few.diversity.by_sample_size == []
    lost = write_rows(tmp_path / "lost.jsonl", [seed_row(9, "its image is gone")])
    assert (
        main(["data", "analyze", str(lost), "--images", str(tmp_path), "--output", str(tmp_path / "no")]) == 1
    )
    assert "has no image of" in capsys.readouterr().err
    assert (
        main(
            [
                "data",
                "analyze",
                str(write_rows(tmp_path / "no.jsonl", [])),
                "--images",
                str(tmp_path),
                "--output",
                str(tmp_path / "no"),
            ]
        )
        == 1
    )
    assert "no.jsonl has no valid row: it is empty" in capsys.readouterr().err
    one = tmp_path / "one.jsonl"
    compare(one, one, tmp_path, tmp_path)  # no half has another row
    assert "none to none" not in (tmp_path / "compare.md").read_text()


def test_a_wrong_record_is_noticed_before_anything_is_measured(tmp_path, capsys):
    rows = seed_set(tmp_path, 3)
    samples = write_rows(tmp_path / "rows.jsonl", rows[:2])
    removed, other = write_rows(tmp_path / "removed.jsonl", []), write_rows(tmp_path / "b.jsonl", rows[2:])
    outputs = {"processed_data": samples, "removed": removed}
    arguments = [
        "--images",
        str(tmp_path),
        "--output",
        str(tmp_path / "out"),
        "--record",
        str(tmp_path / "run.json"),
    ]
    record(tmp_path / "run.json", outputs, {})
    assert main(["data", "analyze", str(samples), *arguments]) == 1
    assert "run.json is not a record of `data synthesize` (KeyError('funnel')" in capsys.readouterr().err
    record(tmp_path / "run.json", outputs, {"funnel": []})
    assert main(["data", "analyze", str(other), *arguments]) == 1
    assert "b.jsonl is not the file that" in capsys.readouterr().err
    assert main(["data", "analyze", str(samples), *arguments, "--removed", str(other)]) == 1
    assert "b.jsonl is not the file that" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main(["data", "analyze", str(samples), *arguments, "--removed", str(removed)]) == 0


def test_lines_that_are_no_row_are_counted_in_a_comparison(tmp_path):
    rows = seed_set(tmp_path, 4)
    a = write_rows(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.jsonl").write_text(a.read_text() + '{"id": "x"}\nnothing\n')
    found = compare(a, tmp_path / "b.jsonl", tmp_path, tmp_path)
    assert (found.other_lines_a, found.other_lines_b) == (0, 2)
    assert (
        "b.jsonl, 4 rows (2 lines are no valid row); 4 ids in both" in (tmp_path / "compare.md").read_text()
    )


def test_new_images_lie_beside_the_rows(tmp_path):
    seed_set(tmp_path / "seed", 1)
    (tmp_path / "synthetic_images").mkdir()
    Image.new("RGB", (33, 44)).save(tmp_path / "synthetic_images/new.png")
    rows = [seed_row(0, "a mug"), {**seed_row(0, "a blue mug"), "images": ["synthetic_images/new.png"]}]
    found = analyze(write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "seed", tmp_path / "out")
    assert found.images.readable == 2 and found.images.formats == {"JPEG": 1, "PNG": 1}


@real
def test_the_real_rows(tmp_path):
    found = analyze(REAL / "mgm_pretrain_stage_1_10k.jsonl", REAL, tmp_path, "--processes", "2")
    assert (found.lines, found.rows, found.ids, found.problem_lines) == (500, 500, 500, 0)
    assert found.text.scripts == {"Latin": 496, "Han": 4}
    assert all(row_id.startswith("allava_laion_cap_") for row_id in found.text.other_scripts["Han"])
    assert (found.same_caption.distinct, found.same_caption.groups) == (498, 2)
    assert found.text.characters_with_markers.mean - found.text.characters.mean == pytest.approx(28)
    assert (found.text.words.median, found.text.words.minimum, found.text.words.maximum) == (8, 1, 21)
    assert (found.images.readable, found.images.formats) == (500, {"JPEG": 500})
    assert (found.images.commonest_short_side, found.images.of_commonest_short_side) == (336, 496)
    assert (found.markers.image_first, found.markers.end_last) == (500, 500)
    # fewer rows of the same data: another ratio, the same diversity
    smallest, largest = found.diversity.by_sample_size[0], found.diversity.by_sample_size[-1]
    assert largest.words == found.diversity.words > 3 * smallest.words
    assert smallest.type_token_ratio > 1.2 * largest.type_token_ratio
    assert smallest.distinct_words_of_1000 == pytest.approx(largest.distinct_words_of_1000, rel=0.08)
    assert smallest.hdd == pytest.approx(largest.hdd, rel=0.02)


@real
def test_halves_of_the_real_rows_do_not_differ_and_changed_rows_do(tmp_path, capsys):
    lines = (REAL / "mgm_pretrain_stage_1_10k.jsonl").read_text(encoding="utf-8").splitlines()
    odd, even = (
        write_rows(tmp_path / "odd.jsonl", lines[::2]),
        write_rows(tmp_path / "even.jsonl", lines[1::2]),
    )
    halves = compare(odd, even, REAL, tmp_path)
    assert halves.ids_in_both == 0
    assert sum(row.verdict != "undecided" for row in halves.measures.values()) <= 2  # one in twenty by chance
    rows = [json.loads(line) for line in lines]
    same = [{**row, "text": f"<__dj__image>\na picture of {row['id'][-1]} <|__dj__eoc|>"} for row in rows]
    capsys.readouterr()
    changed = compare(
        REAL / "mgm_pretrain_stage_1_10k.jsonl", write_rows(tmp_path / "same.jsonl", same), REAL, tmp_path
    ).measures
    verdicts = {name: row.verdict for name, row in changed.items()}
    fewer = ("words a caption", "distinct words of 100", "distinct captions of 100", "HD-D", "MTLD")
    assert {verdicts[name] for name in fewer} == {"lower"}
    assert {verdicts[name] for name in ("image width, px", "image height, px", "image file, KiB")} == {
        "undecided"
    }
    row = changed["words a caption"]
    assert row.low < row.difference < row.high < 0 and row.difference == pytest.approx(
        row.b - row.a, abs=1e-5
    )
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "compare.md").read_text() and f"| {row.difference:+.2f} |" in printed


def test_rows_of_one_seed_are_compared_in_pairs(tmp_path):
    """Long and short captions vary far more than the difference of one word that each row has: the pairs show
    it all the same."""
    rows = seed_set(tmp_path, 40)
    captions = ["mug " * (1 + 5 * (number % 7)) for number in range(40)]
    a = write_rows(
        tmp_path / "a.jsonl", [seed_row(number, caption) for number, caption in enumerate(captions)]
    )
    b = write_rows(
        tmp_path / "b.jsonl", [seed_row(number, f"{caption} box") for number, caption in enumerate(captions)]
    )
    assert len(rows) == 40
    found = compare(a, b, tmp_path, tmp_path).measures["words a caption"]
    assert (
        found.difference == pytest.approx(1) and found.low == pytest.approx(1) and found.verdict == "higher"
    )
