"""output/ro-crate-metadata.json: who made which file from which files, for tools that know RO-Crates. Made
from the records.

    python -m toolkit bundle crate --root . --experiment synth --rules embedded --output
    output/ro-crate-metadata.json

Profile: Workflow Run Crate 0.5 (https://w3id.org/ro/wfrun/workflow/0.5) over RO-Crate 1.1, the newest that
its validator has shapes for (roc-validator 0.13). The contest allows solution/ and output/ alone at the top
of submit.zip, so the crate's root is output/; what lies elsewhere (the recipes, the assets, which no entry
holds) is described by path and SHA-256. The workflow is train.sh: the commands that the records state. The
crate knows no times, because records have none; `datePublished` is that of the software (CITATION.cff).
"""

import re
from pathlib import PurePosixPath
from typing import Any

import yaml

from toolkit.bundle.entry import Entry
from toolkit.contest.experiment import Absent
from toolkit.contest.records import File, Record
from toolkit.contest.stages import STAGES
from toolkit.errors import UserError

FILE = "output/ro-crate-metadata.json"
REPORTS = "output/reports"
LATER = "output/reports/validation.json"  # made after the crate, which it validates too
CONTEST = "https://tianchi.aliyun.com/competition/entrance/532251"
CONTEXT = ["https://w3id.org/ro/crate/1.1/context", "https://w3id.org/ro/terms/workflow-run/context"]
PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": ("Process Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/workflow/0.5": ("Workflow Run Crate", "0.5"),
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": ("Workflow RO-Crate", "1.0"),
}
FORMATS = {
    ".cff": "application/yaml",
    ".jpg": "image/jpeg",
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".log": "text/plain",
    ".md": "text/markdown",
    ".png": "image/png",
    ".sh": "application/x-sh",
    ".svg": "image/svg+xml",
    ".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    ".yaml": "application/yaml",
}
Entity = dict[str, Any]


def ref(identifier: str) -> Entity:
    return {"@id": identifier}


def sentence(stage: str) -> str:
    """What a stage did, from the one table."""
    did = STAGES[stage].did
    return did[0].upper() + did[1:]


def name_in_crate(path: str) -> str:
    """Identifier of a file: relative to output/ inside, "#path" elsewhere. Names that a URI cannot hold are
    not names of the toolkit's."""
    if not re.fullmatch(r"[\w./+-]+", path, re.ASCII):
        raise UserError(f"{path!r} cannot stand in {FILE}: rename it with letters, digits and ._+- only")
    return path.removeprefix("output/") if path.startswith("output/") else f"#{path}"


class Crate:
    """The graph of one entry; entities are kept in the order in which they are first named."""

    def __init__(self, entry: Entry):
        self.entry = entry
        self.entities: dict[str, Entity] = {}
        self.packed = {*entry.members(), LATER} - {FILE}
        self.members = sorted(self.packed)

    def add(self, identifier: str, kind: str | list[str], **properties: Any) -> Entity:
        """Reference to the entity `identifier`, made now unless it is there."""
        # RO-Crate 1.1 wants one value, not a list of one.
        single = {
            key: value[0] if isinstance(value, list) and len(value) == 1 else value
            for key, value in properties.items()
        }
        self.entities.setdefault(identifier, {"@id": identifier, "@type": kind, **single})
        return ref(identifier)

    def file(self, path: str, item: File | None = None) -> Entity:
        """Reference to a file: of the crate where output/ holds it in the archive, else a work known by its
        hash (`item`)."""
        identifier = name_in_crate(path)
        properties: dict[str, Any] = {"name": path}
        if path != LATER:
            properties |= {"sha256": item.sha256 if item else self.entry.sha256(path)}
            properties |= {"contentSize": str(item.bytes if item else self.entry.length(path))}
        if path in self.packed and path.startswith("output/"):
            properties |= {
                "encodingFormat": FORMATS.get(PurePosixPath(path).suffix, "application/octet-stream")
            }
            return self.add(identifier, "File", **properties)
        if path.startswith("input/"):
            properties |= {"isPartOf": ref(f"#asset/{path.split('/')[1]}")}
        return self.add(
            identifier if identifier.startswith("#") else f"#{path}", "CreativeWork", **properties
        )

    def toolkit(self, code: str) -> Entity:
        """The software in the state that a record names."""
        return self.add(
            f"#toolkit/{code[:12]}",
            "SoftwareApplication",
            name="Better Synth toolkit",
            url=CONTEST,
            softwareVersion=code,
        )

    def image(self, digest: str) -> Entity:
        kind = ref("https://w3id.org/ro/terms/workflow-run#DockerImage")
        return self.add(f"#image/{digest}", "ContainerImage", name=digest, additionalType=kind)

    def settings(self, stage: str, record: Record) -> list[Entity]:
        """Settings that are one value; the record has them all."""
        values = {
            key: value
            for key, value in sorted(record.settings.items())
            if isinstance(value, str | int | float)
        }
        return [
            self.add(f"#{stage}/{key}", "PropertyValue", name=key, value=str(value))
            for key, value in values.items()
        ]

    def action(self, stage: str) -> Entity:
        """The run of one stage."""
        record = self.entry.record(stage)
        objects = [self.file(item.path, item) for _, item in sorted(record.inputs.items())] + self.settings(
            stage, record
        )
        results = [self.file(item.path, item) for _, item in sorted(record.outputs.items())] + [
            self.file(record.file)
        ]
        extra = {"containerImage": self.image(record.image)} if record.image else {}
        machine = record.device + (f", driver {record.driver}" if record.driver else "")
        return self.add(
            f"#stage/{stage}",
            "CreateAction",
            name=record.stage,
            description=f"{sentence(stage)} (on {machine}; package lock {record.lock or 'not in force'})",
            instrument=self.toolkit(record.code),
            object=objects,
            result=results,
            agent=ref("#authors"),
            **extra,
        )

    def conversion(self) -> Entity:
        """From the processed data to the training rows: it has no record of its own, because the validator
        repeats it (D1)."""
        return self.add(
            "#stage/convert",
            "CreateAction",
            name="convert",
            description=sentence("convert"),
            instrument=self.toolkit(self.entry.record("data").code),
            object=[self.file(f"{self.entry.data}/processed_data.jsonl")],
            result=[self.file(f"{self.entry.data}/llava.json")],
            agent=ref("#authors"),
        )

    def run(self) -> Entity:
        """The whole: train.sh from recipe, assets and settings to answers and scores."""
        produced = {
            item.path
            for stage in self.entry.record_files
            for item in self.entry.record(stage).outputs.values()
        }
        produced |= {f"{self.entry.data}/llava.json", *self.entry.record_files.values()}
        read = {
            item.path: item
            for stage in self.entry.record_files
            for item in self.entry.record(stage).inputs.values()
        }
        ends = [
            item
            for stage in self.entry.benchmarks
            for _, item in sorted(self.entry.record(stage).outputs.items())
        ]
        return self.add(
            "#run",
            "CreateAction",
            name=f"The experiment {self.entry.name}",
            description="From seed rows and recipe to answers and scores; its steps are the other actions",
            instrument=ref("train.sh"),
            object=[self.file(path, item) for path, item in sorted(read.items()) if path not in produced]
            + [ref("reports/config.yaml")],
            result=[self.file(item.path, item) for item in ends],
            agent=ref("#authors"),
        )

    def assets(self) -> list[Entity]:
        """Every asset with its licence."""
        entities = []
        for asset in self.entry.json(f"{REPORTS}/licences.json"):
            about = {"name": asset["asset"], "description": asset["role"], "license": asset["licence"]}
            if asset["from"][0].startswith("http"):
                about["url"] = asset["from"]
            entities.append(self.add(f"#asset/{asset['asset']}", "CreativeWork", **about))
        return entities

    def document(self) -> Entity:
        """The content of ro-crate-metadata.json."""
        with self.entry.open(f"{REPORTS}/CITATION.cff") as handle:
            cited = yaml.safe_load(handle)
        licence = f"https://spdx.org/licenses/{cited['license']}"
        parts = [self.file(path) for path in self.members if path.startswith("output/")]
        beside = [self.file(path) for path in self.members if not path.startswith("output/")]
        workflow = self.entities[self.file("output/train.sh")["@id"]]
        workflow |= {
            "@type": ["File", "SoftwareSourceCode", "ComputationalWorkflow"],
            "programmingLanguage": ref("#bash"),
            "version": workflow["sha256"],
            "url": CONTEST,
            "license": ref(licence),
        }
        self.add("#bash", "ComputerLanguage", name="Bash", url="https://www.gnu.org/software/bash/")
        self.add("#authors", "Organization", name=cited["authors"][0]["name"])
        self.add(licence, "CreativeWork", name=cited["license"])
        assets = self.assets()
        run = [
            stage for stage in STAGES.values() if stage.name in self.entry.record_files or not stage.record
        ]
        actions = [
            self.run(),
            *(self.action(stage.name) if stage.record else self.conversion() for stage in run),
        ]
        for uri, (name, version) in PROFILES.items():
            self.add(uri, "CreativeWork", name=name, version=version)
        root = {
            "@id": "./",
            "@type": "Dataset",
            "name": f"Better Synth entry: experiment {self.entry.name}",
            "description": "A contest entry: data, training logs, answers and scores, each with the record "
            "of the stage that made it. Data and models that it was made from keep the "
            "licences stated in reports/licences.json.",
            "datePublished": str(cited["date-released"]),
            "license": ref(licence),
            "author": ref("#authors"),
            "conformsTo": [ref(uri) for uri in PROFILES],
            "mainEntity": ref("train.sh"),
            "hasPart": parts,
            "mentions": [*actions, *assets, *beside],
        }
        descriptor = {
            "@id": "ro-crate-metadata.json",
            "@type": "CreativeWork",
            "about": ref("./"),
            "conformsTo": [
                ref("https://w3id.org/ro/crate/1.1"),
                ref("https://w3id.org/workflowhub/workflow-ro-crate/1.0"),
            ],
        }
        return {"@context": CONTEXT, "@graph": [descriptor, root, *self.entities.values()]}


def document(entry: Entry) -> Entity:
    """The content of ro-crate-metadata.json. UserError if a file that it needs is not there yet."""
    try:
        return Crate(entry).document()
    except Absent as absent:
        raise UserError(f"{absent} does not exist: build it first (snakemake {absent})") from None
