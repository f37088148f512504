"""The study of the planted defects: what counts as removed, mended and left, and the recipes on a small
world."""

from pathlib import Path

import pytest
from test_data_recipe import SHIPPED
from test_data_strategies import small_recipes
from tiny_data import run_data

from toolkit.errors import UserError
from toolkit.files import read_json, write_jsonl
from toolkit.studies.defects import contradicts, filters, judge, markdown, outcome, study
from toolkit.studies.runs import RecipeRun, lacking, recipes

FULL = "a blue box right of a red mug, sign reads nova"


@pytest.mark.parametrize(
    ("caption", "wrong"),
    [
        ("nova sign and a red mug left of a blue box", False),
        ("boxes", False),
        ("a picture of a Red Mug!", False),
        ("an image", False),
        ("a green mug", True),
        ("a red ball", True),
        ("two red mugs", True),
        ("the word luna near a red mug", True),
    ],
)
def test_a_caption_contradicts_what_the_scene_does_not_have(caption: str, wrong: bool) -> None:
    assert contradicts(caption, FULL) is wrong


@pytest.mark.parametrize(
    ("defect", "captions", "expected"),
    [
        ("clean", None, "removed"),
        ("clean", ["a red mug"], "left"),
        ("clean", ["a red mug", "a green mug"], "removed"),  # spoilt
        ("swapped", None, "removed"),
        ("swapped", [FULL], "mended"),
        # the old caption, or another wrong one, is still taught
        ("swapped", [FULL, "three green fish"], "left"),
        ("generic", ["a photo"], "left"),
        ("generic", [FULL, "A photo."], "left"),
        ("generic", [FULL], "mended"),
        ("blurred", [FULL], "left"),
        ("tiny", None, "removed"),
        ("duplicate", [FULL], "left"),
    ],
)
def test_outcomes(defect: str, captions: list[str] | None, expected: str) -> None:
    raw = "a photo" if defect == "generic" else "three green fish"
    assert outcome({"defect": defect, "full_caption": FULL}, captions, raw, has_original=True) == expected


def test_a_duplicate_whose_original_is_gone_repeats_nothing() -> None:
    assert (
        outcome({"defect": "duplicate", "full_caption": FULL}, [FULL], FULL, has_original=False) == "removed"
    )


def produced(folder: Path) -> RecipeRun:
    """Ten rows: 1 to 4 clean, 5 to 10 swapped; the first step removes 4 and 5 to 8, the second 3 and 9."""
    rows = [(1, "a red mug"), (2, "a red mug"), (2, "blue box"), (10, "a green fish")]
    write_jsonl(
        folder / "processed_data.jsonl",
        [{"id": str(number), "text": f"<__dj__image>\n{text} <|__dj__eoc|>"} for number, text in rows],
    )
    steps = {1: (4, 5, 6, 7, 8), 2: (3, 9)}
    write_jsonl(
        folder / "removed.jsonl",
        [{"id": str(number), "step": step} for step, numbers in steps.items() for number in numbers],
    )
    names = ("read", "first_filter", "second_filter", "result")
    results = {
        "kept": 3,
        "rows_written": 4,
        "captions_changed": 0,
        "funnel": [{"operator": name} for name in names],
    }
    return RecipeRun("mine", folder, results, 0, 2.0, 1.0, 10)


def test_precision_and_recall(tmp_path: Path) -> None:
    truth = {
        str(n): {"id": str(n), "defect": "clean" if n < 5 else "swapped", "full_caption": FULL}
        for n in range(1, 11)
    }
    outcomes = judge(produced(tmp_path), truth, {str(n): "three green fish" for n in range(1, 11)})
    assert (
        outcomes["clean_kept"] == 2 / 4
        and outcomes["recall"]["swapped"] == 5 / 6
        and outcomes["recall"]["tiny"] is None
    )
    assert outcomes["precision"] == 5 / 7  # seven ids are gone, two of them clean
    assert outcomes["contradictions"] == 1 / 4
    first, second = filters(produced(tmp_path), truth)
    assert (first["removed"], first["precision"], first["recall"]["swapped"], first["clean_removed"]) == (
        5,
        4 / 5,
        4 / 6,
        1 / 4,
    )
    # of what reached it: two swapped and three clean rows
    assert (second["removed"], second["precision"], second["recall"]["swapped"], second["clean_removed"]) == (
        2,
        1 / 2,
        1 / 2,
        1 / 3,
    )
    table = markdown({"rows": 10, "recipes": {"mine": outcomes, "other": {"none": "not run: no model"}}})
    assert (
        "| mine | 3 | 50.0 | 71.4 | 83.3 (83.3) | none (none) |" in table
        and "| other | not run: no model |" in table
    )


def test_recipes_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert {path.stem for path in recipes([])} >= SHIPPED
    with pytest.raises(UserError, match=r"solution/recipes/nope\.yaml is not here"):
        recipes(["random", "nope"])
    assert lacking(recipes(["balanced"])[0], {"clip": Path()}) == [
        f"model {name}" for name in ("captioner", "itm", "nsfw", "perplexity", "sentences")
    ]
    (own,) = recipes(["own_captions"])
    assert lacking(own, {}) == ["model clip", "key OPENAI_API_KEY"]
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    assert lacking(own, {}) == ["model clip"]


def test_a_recipe_that_removes_everything_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolkit.studies.runs.RECIPES", small_recipes(tmp_path / "recipes"))
    recipes = study(tmp_path / "out", [], {}, 40, 1)["recipes"]
    assert (
        recipes["all"] == {"none": "removes all rows"}
        and recipes["most"]["kept"] == 1
        and recipes["none"]["kept"] == 40
    )
    first = (tmp_path / "out/study.md").read_text().split("\n\n")[1].splitlines()
    assert (
        first[2].startswith("| all | removes all rows |  |") and len({line.count("|") for line in first}) == 1
    )


def test_another_number_of_rows_is_drawn_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.studies.runs.RECIPES", small_recipes(tmp_path / "recipes"))
    with pytest.raises(UserError, match=r"nope\.yaml is not here"):
        study(tmp_path / "out", ["nope"], {}, 40, 1)
    assert not (tmp_path / "out").exists()
    assert [study(tmp_path / "out", ["none"], {}, rows, 1)["rows"] for rows in (20, 12, 12)] == [20, 12, 12]


def test_the_recipes_on_a_small_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    done = run_data("study", "--output", tmp_path, "--rows", 300)
    assert done.returncode == 0, done.stderr
    recipes = read_json(tmp_path / "study.json")["recipes"]
    assert (tmp_path / "study.md").read_text().strip() in done.stdout
    # the world has every model but three: the reader, ICC, and one that was trained before
    assert recipes.pop("ocr_synthesis") == {"none": "not run: no model ocr"}
    assert recipes.pop("concreteness") == {"none": "not run: no model concreteness"}
    for name in ("easiest_half", "hardest_half"):
        assert recipes.pop(name) == {"none": "not run: no model mgm"}
    assert recipes.pop("own_captions") == {"none": "not run: no key OPENAI_API_KEY"}
    assert recipes.keys() >= SHIPPED and all("none" not in row for row in recipes.values())
    assert (
        recipes["baseline"]["kept"] == 300
        and recipes["baseline"]["clean_kept"] == 1
        and recipes["baseline"]["filters"] == []
    )
    assert recipes["baseline"]["recall"]["tiny"] == 0 and 0.4 < recipes["baseline"]["contradictions"] < 0.6
    assert recipes["random"]["kept"] == recipes["cluster_uniform"]["kept"] == 150
    assert 0.3 < recipes["random"]["clean_kept"] < 0.7
    assert recipes["cluster_uniform"]["model_calls"] == 300
    for strict in (recipes["quality_focused"], recipes["balanced"], recipes["grounding_itm"]):
        assert strict["recall"]["swapped"] > 0.9 and strict["contradictions"] < 0.05
    assert recipes["balanced"]["clean_kept"] > 0.7 < recipes["quality_focused"]["clean_kept"]
    assert recipes["grounding_itm"]["rows_written"] == 2 * recipes["grounding_itm"]["kept"]
    assert 0 < recipes["quality_focused"]["captions_changed"] <= recipes["quality_focused"]["rows_written"]
