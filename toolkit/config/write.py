"""The files that follow from the models: workflow/config/tiny.yaml and workflow/schemas/*.json (`python -m
toolkit config write`).

A test fails with the difference when they are out of step.
"""

import json
from collections.abc import Iterator

import yaml
from pydantic import BaseModel

from toolkit.config import Config
from toolkit.config.records import Contamination, Manifest, Validation
from toolkit.contest.records import Record

HEAD = """\
# yaml-language-server: $schema=../schemas/config.schema.json
# The default: the whole path on the embedded world, on two cores. Every key with its default,
# written by `python -m toolkit config write`. For an entry of your own, copy this file, keep the
# keys that you change and run `snakemake submit.zip --configfile workflow/config/mine.yaml`.
"""


def files() -> dict[str, str]:
    """Path below the project's folder: text."""
    return {
        "workflow/config/tiny.yaml": HEAD + "\n".join(section(Config())) + "\n",
        "workflow/schemas/config.schema.json": schema(Config),
        "workflow/schemas/contamination.schema.json": schema(Contamination),
        "workflow/schemas/manifest.schema.json": schema(Manifest),
        "workflow/schemas/record.schema.json": schema(Record),
        "workflow/schemas/validation.schema.json": schema(Validation),
    }


def schema(model: type[BaseModel]) -> str:
    """JSON Schema of `model`."""
    document = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | model.model_json_schema()
    return json.dumps(document, indent=2) + "\n"


def section(values: BaseModel, indent: str = "") -> Iterator[str]:
    """YAML lines of `values`, each key with its description."""
    for name, value in values:
        field = type(values).model_fields[name]
        if isinstance(value, BaseModel):
            yield f"{indent}{name}:  # {(type(value).__doc__ or '').rstrip('.')}"
            yield from section(value, indent + "  ")
        elif isinstance(value, dict):
            yield f"{indent}{name}:  # {field.description}"
            for key, inner in value.items():
                yield f"{indent}  {key}:"
                yield from section(inner, indent + "    ")
        else:
            # a bare scalar is followed by an end-of-document line
            scalar, *_ = yaml.safe_dump(value, width=1000, default_flow_style=True).splitlines()
            yield f"{indent}{name}: {scalar}  # {field.description}"
