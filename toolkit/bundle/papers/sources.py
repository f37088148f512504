"""What lies beside an entry for whoever rebuilds or reuses it: configuration, licences of the assets, bill of
materials, how to cite.

python -m toolkit bundle sources --config '{"scale": "tiny"}' --output output/reports
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from toolkit import assets, config
from toolkit.bundle.papers.sbom import sbom
from toolkit.errors import UserError
from toolkit.files import atomic, write_json, write_text

CITATION = "CITATION.cff"
HEAD = "# The configuration that made this entry, every key: snakemake submit.zip --configfile FILE\n"


def write(values: str, folder: Path) -> None:
    """Fill `folder` with config.yaml, licences.json, sbom.cdx.json and CITATION.cff. values: the
    configuration as JSON."""
    try:
        settings = config.Config.model_validate_json(values)
    except ValidationError as error:
        problems = "; ".join(config.sentence(details) for details in error.errors(include_url=False))
        raise UserError(f"--config cannot be used: {problems}") from None
    write_text(folder / "config.yaml", config_text(settings))
    write_json(folder / "licences.json", licences(settings, assets.registry()))
    write_json(folder / "sbom.cdx.json", sbom())
    with atomic(folder / CITATION) as temporary:
        shutil.copyfile(CITATION, temporary)


def config_text(settings: config.Config) -> str:
    """config.yaml: every key."""
    return HEAD + yaml.safe_dump(settings.model_dump(), sort_keys=False, allow_unicode=True, width=1000)


def licences(settings: config.Config, registry: Mapping[str, assets.AnyEntry]) -> list[dict[str, Any]]:
    """Each asset that the configuration names: what it is for, its licence and where it comes from, as the
    registry states it. UserError for an unknown asset."""
    listed = []
    for role, name in settings.assets:
        if name not in registry:
            raise UserError(f"the configuration names the asset {name!r}, which the registry does not know")
        entry = registry[name]
        listed.append(
            {
                "asset": name,
                "part": role,
                "role": entry.role,
                "licence": entry.licence,
                "from": assets.origin(entry),
            }
        )
    return listed
