"""Recipes over one seed set, each beside as many rows drawn at random: what is kept, how good, how varied, at
what cost.

    python -m toolkit data strategies --samples input/world-seed/mgm_pretrain_stage_1.jsonl --images
    input/world-seed \\
        --model clip=input/world-clip --model captioner=input/world-captioner --questions
        input/world-evaluation --results output/reports/compare.json

A recipe that drops rows changes most measures by being smaller; only its difference to the control of equal
number is its own. Intervals hold 95 %: of the mean similarity by bootstrap over the rows, of diversity as in
toolkit/data/analysis/diversity.py. Likeness is the mean cosine of the captions' sentence
embeddings over all pairs of rows: the lower, the more varied is what they say.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy

from toolkit.benchmarks import in_folder
from toolkit.counted import counted
from toolkit.data import recipe
from toolkit.data.analysis import diversity
from toolkit.data.analysis.diversity import Corpus
from toolkit.data.analysis.rows import Rows, read_rows
from toolkit.data.analysis.statistics import estimates, null_if_undefined
from toolkit.data.engine import juicer
from toolkit.data.engine.pipeline import Walk
from toolkit.data.engine.scores import Scores
from toolkit.data.engine.statistics import WalkRow
from toolkit.data.synthesize import STORE, NothingLeft
from toolkit.evaluate.comparison import read_comparison
from toolkit.evaluate.contamination import contamination
from toolkit.files import write_json, write_text
from toolkit.intervals import middle, resampled_means
from toolkit.progress import Progress
from toolkit.studies.runs import RECIPES, REMOVES_ALL, NotRun, RecipeRun, make, recipes
from toolkit.tables import markdown as table

SEED = 1024  # of the controls and of the bootstrap
RESAMPLES = 1000
DIVERSITY = ("HD-D", "MTLD")
# What is computed of rows, by the model that it takes.
SIMILARITY = 'batched_similarity_filter: {hf_clip: "{clip}", min_score: -1.0}'
UNSAFE = 'image_nsfw_filter: {hf_nsfw_model: "{nsfw}", max_score: 1.0}'
EMBEDDING = 'sentence_embedding_filter: {hf_sentences: "{sentences}"}'


def strategies(
    samples: Path,
    images: Path,
    models: Mapping[str, Path],
    names: Sequence[str],
    results: Path | None,
    questions: Path | None,
    processes: int,
    output: Path,
) -> dict[str, Any]:
    """Run the recipes and measure; write strategies.json and strategies.md to `output`, return the former.

    The similarity is null without a model `clip`, the likeness without `sentences`, the unsafe rows without
    `nsfw`, the contamination without `questions`, a folder with official files of benchmarks. A recipe that
    needs what is not there is listed as not run, a recipe that keeps no row as removing all.
    """
    scores = trained(results) if results else {}
    evaluation = in_folder(questions) if questions else {}
    recipe_files = recipes(names)
    progress = Progress("recipes", len(recipe_files) + 1, interval=0)
    everything = make(RECIPES / "baseline.yaml", samples, images, models, processes, output)
    valid = read_rows(everything.folder / "processed_data.jsonl", images)
    progress.step(note="all valid rows")
    outcomes: dict[str, Any] = {}
    for path in recipe_files:
        try:
            recipe_run = make(path, samples, images, models, processes, output)
            samples_made = recipe_run.folder / "processed_data.jsonl"
            outcomes[path.stem] = compared(recipe_run, valid, images, models, processes, output) | {
                "contaminated": len(contamination(samples_made, images, evaluation, processes)["found"])
                if evaluation
                else None,
                "score": scores.get(path.stem),
            }
        except NotRun as reason:
            outcomes[path.stem] = {"none": str(reason)}
        except NothingLeft:
            outcomes[path.stem] = {"none": REMOVES_ALL}
        progress.step(note=path.stem)
    result = {"read": everything.results["read"], "valid": len(valid.ids), "recipes": outcomes}
    write_json(output / "strategies.json", result)
    write_text(output / "strategies.md", markdown(result))
    return result


def compared(
    recipe_run: RecipeRun, valid: Rows, images: Path, models: Mapping[str, Path], processes: int, output: Path
) -> dict[str, Any]:
    """All figures of one recipe, and of as many of the `valid` rows drawn at random."""
    rows = read_rows(recipe_run.folder / "processed_data.jsonl", images)
    random = numpy.random.default_rng(SEED)
    places = sorted(random.choice(len(valid.ids), recipe_run.results["kept"], replace=False).tolist())
    random_rows: dict[str, Any] = {
        name: [getattr(valid, name)[place] for place in places]
        for name in ("ids", "texts", "captions", "images", "files")
    }
    return {
        "kept": recipe_run.results["kept"],
        "retention": recipe_run.results["kept"] / recipe_run.results["read"],
        "rows_written": recipe_run.results["rows_written"],
        "captions_changed": recipe_run.results["captions_changed"],
        "recipe": measure(rows, models, processes, output),
        "control": measure(Rows(**random_rows), models, processes, output),
        "seconds_first": round(recipe_run.first_seconds, 1),
        "seconds": round(recipe_run.seconds, 1),
        "model_calls": recipe_run.model_calls,
        "bytes": recipe_run.bytes,
    }


def trained(results: Path) -> dict[str, dict[str, Any]]:
    """Contest scores with intervals by the name of the experiment. UserError for a file that is not of
    `evaluate compare`."""
    scores = read_comparison(results)["score"]
    return {name.split("-Finetune-")[-1]: score for name, score in scores.items()}


def measure(rows: Rows, models: Mapping[str, Path], processes: int, output: Path) -> dict[str, Any]:
    """Mean similarity and likeness with their intervals, rows with an image that is more likely unsafe than
    safe, rows that repeat another's image bytes and caption, diversity with intervals."""
    digests = [hashlib.sha256(file.read_bytes()).digest() for file in rows.files]
    measures = estimates(Corpus(rows.captions), rows.ids)

    def computed(step: str) -> Iterator[dict[str, Any]]:
        return statistics(step, rows, digests, models, processes, output)

    return {
        "similarity": similarity(computed(SIMILARITY)) if "clip" in models else None,
        "likeness": likeness(computed(EMBEDDING), rows.ids) if "sentences" in models else None,
        "unsafe": sum(row["image_nsfw_score"][0] > 0.5 for row in computed(UNSAFE))
        if "nsfw" in models
        else None,
        "repeated": len(rows.ids) - len(set(zip(digests, rows.captions, strict=True))),
        "diversity": {name: measures[name].model_dump() for name in DIVERSITY},
    }


def statistics(
    step: str,
    rows: Rows,
    digests: Sequence[bytes],
    models: Mapping[str, Path],
    processes: int,
    output: Path,
) -> Iterator[dict[str, Any]]:
    """What a filter computes of every row, from the store where it knows them."""
    recipe_file = output / "statistics.yaml"
    write_text(recipe_file, f"process:\n  - {step}\n")
    parts = zip(rows.texts, rows.files, digests, strict=True)
    with juicer.offline():
        walk = Walk(
            recipe.load(recipe_file, models), Scores(output / "scores" / STORE), output / "scores", processes
        )
        seeds = [
            WalkRow(place, text, str(file.absolute()), digest)
            for place, (text, file, digest) in enumerate(parts)
        ]
        yield from walk.values(walk.recipe.steps[0], seeds)


def likeness(of_rows: Iterable[dict[str, Any]], ids: Sequence[str]) -> dict[str, float | None]:
    """The mean cosine of all pairs of embeddings; its interval is that of random halves of the ids."""
    vectors = numpy.stack([numpy.array(row["sentence_embedding"]) for row in of_rows])
    vectors /= numpy.linalg.norm(vectors, axis=1, keepdims=True)

    def mean(mask: numpy.ndarray) -> float:
        count, total = int(mask.sum()), vectors[mask].sum(0)
        return float(total @ total - count) / (count * (count - 1)) if count > 1 else float("nan")

    value = mean(numpy.ones(len(vectors), dtype=bool))
    reach = diversity.spread([mean(mask) for mask in diversity.halves(ids)])
    ends = {"mean": value, "low": value - reach, "high": value + reach}
    return {name: null_if_undefined(end) for name, end in ends.items()}


def similarity(of_rows: Iterable[dict[str, Any]]) -> dict[str, float | None]:
    """CLIP's mean similarity of image and caption."""
    values = numpy.array([row["image_text_similarity"][0] for row in of_rows])
    low, high = middle(resampled_means(values[None], RESAMPLES, numpy.random.default_rng(SEED)))
    return {"mean": float(values.mean()), "low": low, "high": high}


def markdown(result: dict[str, Any]) -> str:
    """One line a recipe; "random" is the control of as many rows."""
    header = ["recipe", "rows kept", "rows written"]
    header += [
        column
        for name in ("CLIP similarity", "likeness", "unsafe rows", "repeated rows", "HD-D", "MTLD")
        for column in (name, "random")
    ]
    header += ["contaminated", "s", "model calls", "bytes", "contest score"]
    lines = []
    for name, row in result["recipes"].items():
        if "none" in row:
            lines.append([name, row["none"], *[""] * (len(header) - 2)])
            continue
        pair = row["recipe"], row["control"]
        cells = [name, f"{row['kept']} ({100 * row['retention']:.1f} %)", row["rows_written"]]
        cells += [_interval(side["similarity"], "mean", 3) for side in pair]
        cells += [_interval(side["likeness"], "mean", 3) for side in pair]
        cells += [_count(side["unsafe"]) for side in pair] + [side["repeated"] for side in pair]
        cells += [
            _interval(side["diversity"][measure], "value", digits)
            for measure, digits in zip(DIVERSITY, (3, 1), strict=True)
            for side in pair
        ]
        cells += [_count(row["contaminated"]), row["seconds"], row["model_calls"], row["bytes"]]
        score = row["score"]
        cells.append("not trained" if score is None else _score(score))
        lines.append(cells)
    return (
        f"{result['valid']} of {counted(result['read'], 'row')} are valid; s: with all statistics "
        f"known\n\n{table(header, lines)}"
    )


def _count(number: int | None) -> str:
    return "none" if number is None else str(number)


def _interval(estimate: dict[str, float | None] | None, name: str, digits: int) -> str:
    if estimate is None or estimate[name] is None:
        return "none"
    ends = ["?" if estimate[end] is None else f"{estimate[end]:.{digits}f}" for end in ("low", "high")]
    return f"{estimate[name]:.{digits}f} ({' to '.join(ends)})"


def _score(score: dict[str, Any]) -> str:
    low, high = score["interval"]
    return _interval({"score": score["score"], "low": low, "high": high}, "score", 2)
