"""README.md of an experiment's data: a dataset card in the Hub's format, from the record of the synthesis.

    python -m toolkit data card output/processed_data/synth

The folder is then what `hf upload --repo-type dataset` takes. Its rows are the split `train`; the seed's
images stay where they are, under their owners' licences.
"""

import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import DatasetCard, DatasetCardData

from toolkit import assets
from toolkit.contest.records import Record, read_record
from toolkit.data.samples import SYNTHETIC, caption_of
from toolkit.export.card import document, listed
from toolkit.files import read_jsonl
from toolkit.mgm.tokenizer import load_tokenizer
from toolkit.tables import markdown

ROWS = "processed_data.jsonl"
SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}
# those of https://huggingface.co/docs/hub/repositories-licenses that an asset is likely to have
LICENCES = {
    "apache-2.0",
    "bsd-3-clause",
    "cc-by-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
    "cc-by-sa-4.0",
    "cc0-1.0",
    "mit",
    "odc-by",
}
UNKNOWN = "unknown: the registry of assets does not name it, find out before you publish"
FILES = {
    ROWS: "the rows kept, split `train`: `id`, `text`, `images`",
    "removed.jsonl": "all other rows of the seed, each with the operator and its reason",
    "llava.json": "the rows as the first stage of the training reads them, questions included",
    "run.json": "the record: recipe, models, inputs and outputs by SHA-256",
}


def data_card(folder: Path, tokenizer: Path | None = None) -> str:
    """The card of `output/processed_data/NAME`. tokenizer: a language model's folder, whose tokens are
    counted. UserError for a folder without a record, and for rows that are not those of the record."""
    record = read_record(folder / "run.json", "synthesize")
    digest = record.output(folder / ROWS, "processed_data")
    record.output(folder / "removed.jsonl", "removed")
    results, name = record.results, folder.resolve().name
    seed, *models = _sources(record)
    sections = [
        f"# {name}",
        f"{results['rows_written']:,} image-caption pairs for the first training stage of MGM (Mini-Gemini, "
        f"arXiv 2403.18814), made by the Better Synth toolkit from {results['read']:,} rows of {seed[0]}. "
        f"{results['captions_changed']:,} have a caption that the recipe wrote or changed.",
        "## Files",
        markdown(["file", "bytes", "what it holds"], _files(folder)).rstrip(),
        "`images` are paths below the seed's folder, whose images are not here"
        + (
            f"; those in {SYNTHETIC} were made by the recipe and are."
            if (folder / SYNTHETIC).is_dir()
            else "."
        ),
        "## Size",
        listed(_sizes(folder / ROWS, tokenizer)),
        "## Recipe",
        f"{record.settings['recipe']}, a Data-Juicer recipe (SHA-256 {record.inputs['recipe'].sha256}). The "
        f"rows have SHA-256 {digest}.",
        textwrap.indent(
            yaml.safe_dump(record.settings["process"], sort_keys=False, allow_unicode=True), "    "
        ).rstrip(),
        markdown(
            ["operator", "rows before", "rows after"],
            [(step["operator"], step["in"], step["out"]) for step in results["funnel"]],
        ).rstrip(),
        "## Data statement",
        markdown(["asset", "what it is here", "licence", "from"], [seed, *models]).rstrip(),
        "The seed's licences hold for its images and captions, and for what was made of them. Where a model "
        "wrote captions, its licence may limit their use.",
        "## Limits",
        "Captions may be wrong, name people, or repeat prejudices.",
    ]
    return document(DatasetCard, _metadata(name, results["rows_written"], seed[2]), sections)


def _metadata(name: str, rows: int, licence: str) -> DatasetCardData:
    """What the Hub searches by; rows: of the split."""
    known = licence.lower() in LICENCES
    terms: dict[str, Any] = {} if known else {"license_name": "see-the-data-statement"}
    if licence.startswith("https://"):
        terms["license_link"] = licence
    return DatasetCardData(
        pretty_name=name,
        language="en",
        license=licence.lower() if known else "other",
        task_categories=["image-to-text", "image-text-to-text"],
        size_categories=next((size for limit, size in SIZES.items() if rows < limit), "1M<n<10M"),
        source_datasets=["extended"],
        tags=["image-captions", "data-juicer", "mgm", "better-synth"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": ROWS}]}],
        **terms,
    )


def _sources(record: Record) -> list[tuple[str, str, str, str]]:
    """(asset, what it is here, licence, origin): the seed, then the models of the recipe."""
    folders = {"seed": record.settings["images"]["path"]}
    folders |= {name: model["path"] for name, model in record.settings["models"].items()}
    registry, sources = assets.registry(), []
    for part, path in folders.items():
        name = Path(path).name
        entry = registry.get(name)
        terms = (entry.licence, ", ".join(assets.origin(entry))) if entry else (UNKNOWN, "")
        sources.append((name, f"{part}: {entry.role}" if entry else part, *terms))
    return sources


def _files(folder: Path) -> list[tuple[str, str, str]]:
    """(name, bytes, what it holds) of the files that are there, made images together."""
    rows = [
        (name, f"{(folder / name).stat().st_size:,}", text)
        for name, text in FILES.items()
        if (folder / name).is_file()
    ]
    images = [path for path in (folder / SYNTHETIC).glob("*") if path.is_file()]
    if images:
        size = sum(path.stat().st_size for path in images)
        rows.append((f"{SYNTHETIC}/", f"{size:,}", f"{len(images):,} images that the recipe made"))
    return rows


def _sizes(samples: Path, tokenizer: Path | None) -> Iterable[tuple[str, str | None]]:
    """Counts over the captions of the rows."""
    rows = list(read_jsonl(samples))
    captions = [caption_of(row["text"]) for row in rows]
    yield "rows", f"{len(rows):,}"
    yield "images", f"{len({row['images'][0] for row in rows}):,}"
    yield "distinct captions", f"{len(set(captions)):,}"
    yield "words in captions", f"{sum(len(caption.split()) for caption in captions):,}"
    if tokenizer:
        counter = load_tokenizer(tokenizer, 1 << 20)
        tokens = sum(map(len, counter(captions, add_special_tokens=False)["input_ids"]))
        yield f"tokens in captions, by the tokenizer of {tokenizer.resolve().name}", f"{tokens:,}"
