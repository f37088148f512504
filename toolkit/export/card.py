"""README.md of an exported folder: a model card in the Hub's format, from the records beside the model; and
what it shares with the dataset card (`data_card`)."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import CardData, ModelCard, ModelCardData, RepoCard

from toolkit.benchmarks import BENCHMARKS
from toolkit.files import read_json

VICUNA = 32_000  # tokens of its vocabulary; Llama-3 has four times as many
USE = """```python
from PIL import Image
from transformers import AutoModelForCausalLM, AutoProcessor

folder = "{name}"
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
inputs = processor(images=Image.open("photo.jpg"), text="What is on the sign?")
print(processor.decode(model.generate(**inputs, max_new_tokens=64)[0]))
```
"""


def document(kind: type[RepoCard], data: CardData, sections: Iterable[str]) -> str:
    """README.md as huggingface_hub reads and writes it: the metadata as YAML, then the sections."""
    return str(kind("\n\n".join([f"---\n{data.to_yaml()}\n---", *sections]) + "\n"))


def listed(facts: Iterable[tuple[str, Any]]) -> str:
    """`- label: value` of each fact that is known."""
    return "\n".join(f"- {label}: {value}" for label, value in facts if value is not None)


def card(model: Path, folder: Path, proof: dict[str, Any]) -> str:
    """The card. model: the finetuning folder, beside whose folder answers and scores lie."""
    config = read_json(folder / "config.json")
    licence = "llama2" if config["vocab_size"] == VICUNA else "llama3"
    if config["model_type"] == "mgm_gemma":
        licence = "gemma"
    name = model.resolve().name
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        license=licence,
        language="en",
        tags=["mgm", "mini-gemini", "better-synth"],
    )
    sections = [
        f"# {name}",
        "An MGM (Mini-Gemini, arXiv 2403.18814) trained with the Better Synth toolkit. It needs transformers "
        "5 or newer, and `trust_remote_code=True` runs the Python files of this folder: read them first.",
        "## Use",
        USE.format(name=name),
        *_training(model),
        *_scores(model),
        "## Proof",
        f"Loaded as above and asked {proof['questions']} fixed questions about fixed images, this folder "
        f"gave the {proof['answers_equal']} answers of the model that it was made of; logits differ by at "
        f"most {proof['max_logit_difference']:.2g} of their standard deviation (proof.json).",
        "## Limits",
        "Trained for a contest on image-caption pairs from the web: it repeats their errors and prejudices, "
        "answers in English, and states falsehoods with confidence.",
    ]
    return document(ModelCard, data, sections)


def _training(model: Path) -> list[str]:
    """What run.json says of the finetuning."""
    if not (model / "run.json").is_file():
        return []
    record = read_json(model / "run.json")
    settings, results = record["settings"], record["results"]
    facts = (
        ("scale", settings.get("scale")),
        ("instruction rows", results.get("rows")),
        ("steps", results.get("steps")),
        ("learning rate", settings.get("learning_rate")),
        ("seed", settings.get("seed")),
    )
    return ["## Training", listed(facts)]


def _scores(model: Path) -> list[str]:
    """Accuracies of the scores that lie in the kit's place for this model."""
    folder = model.resolve().parents[1] / "eval_results" / model.resolve().name
    rows = []
    for name, benchmark in BENCHMARKS.items():
        if (path := folder / name / "score.json").is_file():
            rows.append(f"| {benchmark.measure} | {read_json(path)['accuracy']:.2f} |")
    return ["## Scores", "\n".join(["| benchmark | % |", "|---|---|", *rows])] if rows else []
