"""Draw scores.svg from the comparison of a run: `python docs/images/draw.py output/reports/compare.json
docs/images/scores.svg`.

Bars are accuracies, whiskers their 95 % intervals, the title the contest score: all of it as `evaluate
compare` wrote it.
"""

import json
import sys
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

NAMES = {"textvqa": "TextVQA", "mmbench": "MMBench, circular"}
STYLE = {
    "svg.hashsalt": "better-synth",  # in place of random names, so the same numbers give the same bytes
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["Arial", "Helvetica", "DejaVu Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
COLOURS = ("#9a9a9a", "#2a6fb0")


def draw(table: dict, path: Path) -> None:
    """Write the figure of compare.json's content."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 2.6), layout="constrained")
        axes = figure.subplots()
        experiments = [table["baseline"], *table["experiments"]]
        labels = []
        for row, (name, benchmark) in enumerate(table["benchmarks"].items()):
            labels.append(f"{NAMES.get(name, name)}\n{benchmark['questions']} questions")
            for place, experiment in enumerate(experiments):
                result = benchmark["results"][experiment]
                at = row + (place - (len(experiments) - 1) / 2) * 0.36
                low, high = result["interval"]
                accuracy = result["accuracy"]
                axes.barh(
                    at,
                    accuracy,
                    height=0.32,
                    color=COLOURS[min(place, 1)],
                    label=experiment if row == 0 else None,
                )
                axes.plot([low, high], [at, at], color="black", linewidth=1)
                axes.text(high + 1.5, at, f"{accuracy:.2f} %", va="center")
        axes.set_yticks(range(len(labels)), labels)
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("accuracy, %, with 95 % interval")
        figure.legend(loc="outside lower center", ncols=len(experiments), frameon=False)
        score = table["score"][table["experiments"][0]]
        low, high = score["interval"]
        title = (
            f"contest score {score['score']:.2f} (95 % interval {low:.2f} to {high:.2f}); the baseline has 1"
        )
        axes.set_title(title, fontsize=9, loc="left")
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
