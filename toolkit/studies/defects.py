"""What the recipes do to the planted defects of the embedded world: precision and recall, by recipe and by
filter.

    python -m toolkit data study --output output/data-study

A row of the seed is *removed* (no row of its id is kept), *mended* or *left*. A swapped caption is mended if
every row of its id says only what its picture shows: a kind, colour, number or sign's word that is not in the
picture is a contradiction (relations are not compared). A generic, truncated, garbled or boilerplate caption
is mended if it is no longer in the data. A duplicate is left if both it and the row it repeats are in the
data; a blurred or tiny image cannot be mended. A clean row is kept if it is in the data and none of its
captions contradicts its picture. Only this module reads truth/labels.jsonl.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit import assets
from toolkit.config import Assets
from toolkit.counted import counted
from toolkit.data.samples import caption_of
from toolkit.data.synthesize import NothingLeft
from toolkit.files import read_jsonl, write_json, write_text
from toolkit.progress import Progress
from toolkit.studies.runs import REMOVES_ALL, NotRun, RecipeRun, make, recipes
from toolkit.tables import markdown as table
from toolkit.world.build import build, drawn
from toolkit.world.captions import DEFECTS
from toolkit.world.words import COLOURS, KINDS, NUMBERS, PLURALS, SIGNS

ZOO = Path(__file__).parents[1] / "world/zoo"
SEED = 1024  # of the world, as in toolkit/assets/registry.yaml
SAMPLES = "mgm_pretrain_stage_1.jsonl"
PLANTED = [defect for defect in DEFECTS if defect != "clean"]
SAYS = {word: word for word in (*KINDS, *COLOURS, *SIGNS, *NUMBERS[1:])} | {
    plural: kind for kind, plural in PLURALS.items()
}


def study(
    output: Path, names: Sequence[str], given: Mapping[str, Path], rows: int | None, processes: int
) -> dict[str, Any]:
    """Build the world's seed, run the recipes over it, judge them; write study.json and study.md to `output`,
    return the former. given: folders of models, beside or in place of the zoo's."""
    recipe_files = recipes(names)
    corpus = output / "corpus"
    wanted = drawn("seed", rows)["rows"]
    if not (corpus / SAMPLES).is_file() or sum(1 for _ in read_jsonl(corpus / SAMPLES)) != wanted:
        (corpus / SAMPLES).unlink(missing_ok=True)  # written last
        build("seed", corpus, SEED, rows)
    registry = assets.registry()
    models = {
        role: ZOO / entry.folder for role, name in Assets() if isinstance(entry := registry[name], assets.Zoo)
    } | dict(given)
    truth = {label["id"]: label for label in read_jsonl(corpus / "truth/labels.jsonl")}
    raw = {row["id"]: caption_of(row["text"]) for row in read_jsonl(corpus / SAMPLES)}
    result: dict[str, Any] = {
        "rows": len(truth),
        "planted": dict(Counter(label["defect"] for label in truth.values())),
        "recipes": {},
    }
    progress = Progress("recipes", len(recipe_files), interval=0)
    for recipe in recipe_files:
        try:
            recipe_run = make(recipe, corpus / SAMPLES, corpus, models, processes, output)
            result["recipes"][recipe.stem] = judge(recipe_run, truth, raw)
        except NotRun as reason:
            result["recipes"][recipe.stem] = {"none": str(reason)}
        except NothingLeft:
            result["recipes"][recipe.stem] = {"none": REMOVES_ALL}
        progress.step(note=recipe.stem)
    write_json(output / "study.json", result)
    write_text(output / "study.md", markdown(result))
    return result


def judge(recipe_run: RecipeRun, truth: dict[str, dict], raw: dict[str, str]) -> dict[str, Any]:
    """All figures of one recipe. truth: id -> label; raw: id -> caption of the seed."""
    captions: dict[str, list[str]] = {}
    for row in read_jsonl(recipe_run.folder / "processed_data.jsonl"):
        captions.setdefault(row["id"], []).append(caption_of(row["text"]))
    outcomes = {defect: {"removed": 0, "mended": 0, "left": 0} for defect in DEFECTS}
    for row_id, label in truth.items():
        result = outcome(label, captions.get(row_id), raw[row_id], label.get("of") in captions)
        outcomes[label["defect"]][result] += 1
    removed_defects = [truth[row_id]["defect"] for row_id in truth if row_id not in captions]
    contradictions = sum(
        contradicts(text, truth[row_id]["full_caption"])
        for row_id, texts in captions.items()
        for text in texts
    )
    return {
        "kept": recipe_run.results["kept"],
        "rows_written": recipe_run.results["rows_written"],
        "captions_changed": recipe_run.results["captions_changed"],
        "bytes": recipe_run.bytes,
        "seconds_first": round(recipe_run.first_seconds, 1),
        "seconds": round(recipe_run.seconds, 1),
        "model_calls": recipe_run.model_calls,
        "clean_kept": _share(outcomes["clean"]["left"], sum(outcomes["clean"].values())),
        "precision": _share(sum(defect != "clean" for defect in removed_defects), len(removed_defects)),
        "recall": {
            defect: _share(outcomes[defect]["removed"] + outcomes[defect]["mended"], _sum(outcomes, [defect]))
            for defect in PLANTED
        },
        "contradictions": _share(contradictions, recipe_run.results["rows_written"]),
        "outcomes": outcomes,
        "filters": filters(recipe_run, truth),
    }


def outcome(label: dict[str, Any], captions: list[str] | None, raw: str, has_original: bool) -> str:
    """ "removed", "mended" or "left"; for a clean row "left" is what it should be. `captions`: of its rows in
    the data, None for no row."""
    defect = label["defect"]
    if captions is None:
        return "removed"
    if defect in ("blurred", "tiny"):
        return "left"
    if defect == "duplicate":
        return "left" if has_original else "removed"
    contradicted = any(contradicts(caption, label["full_caption"]) for caption in captions)
    if defect == "clean":
        return "removed" if contradicted else "left"
    if defect == "swapped":
        return "left" if contradicted else "mended"
    return "left" if _words(raw) in map(_words, captions) else "mended"


def contradicts(caption: str, full_caption: str) -> bool:
    """Whether a caption names what its scene, fully described, does not have."""
    return bool(_claims(caption) - _claims(full_caption))


def _claims(caption: str) -> set[str]:
    return {SAYS[word] for word in _words(caption) if word in SAYS}


def _words(caption: str) -> list[str]:
    return re.findall(r"[a-z]+", caption.lower())


def filters(recipe_run: RecipeRun, truth: dict[str, dict]) -> list[dict[str, Any]]:
    """Each step that removed rows: how many, how many of them had a defect, and of each defect's rows that
    reached it the share removed."""
    removed: dict[int, list[str]] = {}
    for entry in read_jsonl(recipe_run.folder / "removed.jsonl"):
        if "step" in entry:
            removed.setdefault(entry["step"], []).append(truth[entry["id"]]["defect"])
    arriving, filtering_steps = Counter(label["defect"] for label in truth.values()), []
    for step, line in enumerate(recipe_run.results["funnel"][1:-1], start=1):
        removed_here = Counter(removed.get(step, ()))
        if removed_here:
            filtering_steps.append(
                {
                    "step": step,
                    "operator": line["operator"],
                    "limits": line.get("limits", {}),
                    "removed": removed_here.total(),
                    "precision": _share(removed_here.total() - removed_here["clean"], removed_here.total()),
                    "recall": {defect: _share(removed_here[defect], arriving[defect]) for defect in PLANTED},
                    "clean_removed": _share(removed_here["clean"], arriving["clean"]),
                }
            )
        arriving -= removed_here
    return filtering_steps


def _sum(outcomes: dict[str, dict[str, int]], defects: Iterable[str]) -> int:
    return sum(sum(outcomes[defect].values()) for defect in defects)


def _share(part: int, total: int) -> float | None:
    return part / total if total else None


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{100 * share:.1f}"


def markdown(result: dict[str, Any]) -> str:
    """Two tables: a line a recipe, and a line a step that removed rows."""
    header = [
        "recipe",
        "rows kept",
        "clean kept, %",
        "precision, %",
        *PLANTED,
        "wrong captions kept, %",
        "model calls",
        "s",
        "bytes",
    ]
    lines = []
    for name, row in result["recipes"].items():
        if "none" in row:
            lines.append([name, row["none"], *[""] * (len(header) - 2)])
            continue
        cells = []
        for defect in PLANTED:
            counts = row["outcomes"][defect]
            cells.append(
                f"{_percent(row['recall'][defect])} "
                f"({_percent(_share(counts['removed'], sum(counts.values())))})"
            )
        ends = [_percent(row["contradictions"]), row["model_calls"], row["seconds"], row["bytes"]]
        starts = [name, row["kept"], _percent(row["clean_kept"]), _percent(row["precision"])]
        lines.append([*starts, *cells, *ends])
    steps = []
    for name, row in result["recipes"].items():
        for step in row.get("filters", ()):
            cells = [_percent(step["recall"][defect]) for defect in PLANTED]
            ends = [*cells, _percent(step["clean_removed"])]
            start = [name, f"{step['step']} {step['operator']}", step["removed"], _percent(step["precision"])]
            steps.append([*start, *ends])
    recipes = (
        f"{counted(result['rows'], 'row')}; recall: removed or repaired, in brackets removed alone, "
        f"%\n\n{table(header, lines)}"
    )
    caption = "Of the rows that reach a step, by what their seed row was, the share that it removes, %"
    header = ["recipe", "step", "removed", "precision", *PLANTED, "clean"]
    return f"{recipes}\n{caption}\n\n{table(header, steps)}"
