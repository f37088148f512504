"""README.md of an exported folder: a model card in the Hub's format, from the records beside the model; and
what it shares with the dataset card (`data_card`)."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import CardData, ModelCard, ModelCardData, RepoCard

from toolkit.ask.folder import name_of
from toolkit.benchmarks import BENCHMARKS
from toolkit.files import read_json, sha256
from toolkit.scales import load

VICUNA = 32_000  # tokens of its vocabulary; Llama-3 has four times as many
USE = """```python
from PIL import Image
from transformers import AutoModelForCausalLM, AutoProcessor

folder = "{name}"
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
inputs = processor(images=Image.open("photo.jpg"), text="What is on the sign?").to(model.device)
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
    """The card. model: the finetuning folder, beside whose folder answers and scores lie. folder: the
    exported one, by its final name."""
    if model.resolve().name == "merged":  # whose records and scores are the folder's around it
        model = model.resolve().parent
    record = read_json(model / "run.json") if (model / "run.json").is_file() else None
    name = name_of(model)
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        license=_licence(read_json(folder / "config.json"), record),
        language="en",
        tags=["mgm", "mini-gemini", "better-synth"],
    )
    trained = " trained with the Better Synth toolkit" if record else ""
    sections = [
        f"# {name}",
        f"An MGM (Mini-Gemini, arXiv 2403.18814){trained}. It needs transformers 5 or newer, and "
        "`trust_remote_code=True` runs the Python files of this folder: read them first.",
        "## Use",
        USE.format(name=folder.name),
        *(_training(record) if record else []),
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


def _licence(config: dict[str, Any], record: dict[str, Any] | None) -> str:
    """The language model's; those of the embedded world have this repository's."""
    if record and load(record["settings"]["scale"]).embedded:
        return "apache-2.0"
    if config["model_type"] == "mgm_gemma":
        return "gemma"
    return "llama2" if config["vocab_size"] == VICUNA else "llama3"


def _training(record: dict[str, Any]) -> list[str]:
    """What run.json says of the finetuning."""
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
    """Accuracies of the scores that lie in the kit's place and are of these very weights: an earlier training
    may have left its own there."""
    home = model.resolve()
    if not (home / "merge.json").is_file():
        return []
    digest, rows = sha256(home / "merge.json"), []
    for name, benchmark in BENCHMARKS.items():
        path = home.parent.parent / "eval_results" / home.name / name / "score.json"
        score = read_json(path) if path.is_file() else None
        if score and score["model"]["merge_sha256"] == digest:
            rows.append(f"| {benchmark.measure} | {score['accuracy']:.2f} |")
    return ["## Scores", "\n".join(["| benchmark | % |", "|---|---|", *rows])] if rows else []
