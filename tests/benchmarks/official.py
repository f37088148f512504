"""Our figures beside those that the official scorers printed for the same files (tests/golden/benchmarks).

    python tests/benchmarks/official.py

prints the table in docs/benchmarks.md.
"""

import json
from pathlib import Path

from toolkit.benchmarks import BENCHMARKS
from toolkit.tables import markdown

GOLDEN = Path(__file__).parents[1] / "golden/benchmarks"
# benchmark: what the command prints, and where the official figure stands in expected.json
FIGURES = {
    "pope": {"score": "mean_F1_percent"},
    "mme": {"perception": "perception", "cognition": "cognition"},
    "scienceqa": {"score": "img_accuracy_percent", "all": "accuracy_percent", "images": "img_total"},
    "seed_bench": {"score": "image_percent", "all": "total_percent"},
    "ai2d": {"score": "lmms_eval_accuracy_percent"},
    "chartqa": {"score": "overall_percent", "human": "human_percent", "augmented": "augmented_percent"},
    "docvqa": {"score": "anls_percent"},
    "ocrbench": {"score": "right"},
    "gqa": {"score": "accuracy_percent", "questions": "balanced"},
}
LANGUAGES = ("EN", "CN")


def expected(name: str) -> dict:
    return json.loads((GOLDEN / name / "expected.json").read_text(encoding="utf-8"))


def answers_of(name: str, folder: Path = GOLDEN) -> Path:
    return folder / name / "answers.jsonl"


def published(name: str, folder: Path = GOLDEN, answers: Path | None = None) -> dict:
    answers = answers or answers_of(name, folder)
    return BENCHMARKS[name].published(BENCHMARKS[name].official_files(folder / name, answers), answers)


def table() -> str:
    rows = []
    for name, figures in FIGURES.items():
        ours, official = published(name), expected(name)
        for figure in (figure for figure in figures if figure not in ("images", "questions")):
            values = (f"{value:.10g}" for value in (ours[figure], official[figures[figure]]))
            rows.append([f"`{name}`", str(ours["questions"]), f"`{figure}`", *values])
    for language in LANGUAGES:
        ours = published("mmbench", answers=GOLDEN / f"mmbench/answers_{language.lower()}.jsonl")
        values = (f"{v:.10g}" for v in (ours["score"], expected("mmbench")[language]["circular_percent"]))
        rows.append([f"`mmbench`, {language}", str(ours["questions"]), "`score`", *values])
    return markdown(["benchmark", "questions", "figure", "ours", "official"], rows)


if __name__ == "__main__":
    print(table(), end="")
