"""Where a file or a score of submit.zip comes from, in words, back to the seed rows: the records inside the
archive, read aloud.

    python -m toolkit bundle explain submit.zip
    python -m toolkit bundle explain submit.zip textvqa/score.json

Nothing is unpacked or run. A record is a statement: hashes of files that the archive holds are compared,
`bundle verify` judges the rest.
"""

import re
import textwrap
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from toolkit import assets, seeds
from toolkit.bundle.zip.archive import Archive
from toolkit.bundle.zip.packed import experiment_of
from toolkit.contest.records import File, Record, record_of
from toolkit.contest.stages import RECORDED
from toolkit.counted import counted
from toolkit.errors import UserError
from toolkit.parse import Malformed, json_value
from toolkit.terminal import printable

READ = 1 << 20  # bytes; no record comes near
RECORDS = 400  # an entry has six, and six for each run that it is compared with
WIDTH, SENTENCE = 110, 4000  # characters
# Files without a record: what makes them, and from what. `validate` makes all but the last two again and
# compares.
MADE = [
    (
        r"(output/processed_data/[^/]+)/llava\.json",
        "the conversion to LLaVA's format: each caption with its question",
        ["{0}/processed_data.jsonl"],
    ),
    (
        r"(output/processed_data/[^/]+)/check\.json",
        "the check of rows, tokens and images",
        ["{0}/processed_data.jsonl"],
    ),
    (
        r"(output/processed_data/[^/]+)/contamination\.json",
        "the comparison of images and captions with the benchmarks",
        ["{0}/processed_data.jsonl"],
    ),
    (r"output/train\.sh", "the records of all stages: the commands that they state", ["records"]),
    (r"output/ro-crate-metadata\.json", "the records of all stages, as an RO-Crate", ["records"]),
    (
        r"output/reports/(compare|report|losses|validation)\..+",
        "the records and scores of all experiments",
        ["records"],
    ),
    (
        r"output/reports/(config\.yaml|licences\.json|sbom\.cdx\.json|CITATION\.cff)",
        "configuration, registry and locks of the repository",
        [],
    ),
    (r"solution/.+", "the contestant", []),
]


class Maker(BaseModel):
    """What made a file: a record, or a step that leaves none and reads `sources`."""

    record: Record | None = None
    words: str = ""
    sources: list[str] = []


def read(archive: Archive, name: str) -> Any:
    """The JSON of a member."""
    if archive.members[name].size > READ:
        raise UserError(
            f"{name} has {archive.members[name].size} bytes: no such file of an entry is that large"
        )
    try:
        with archive.open(name) as handle:
            return json_value(handle.read())
    except Malformed as error:
        raise UserError(f"{name} is not valid JSON, {error}: see `python -m toolkit bundle verify`") from None


def checked(archive: Archive) -> Archive:
    """`archive` after every byte was read once; UserError if it is not a sound zip."""
    if not archive.findings:
        archive.scan()
    if archive.findings:
        finding = archive.findings[0]
        raise UserError(
            f"{archive.path} cannot be trusted, {finding.file} {finding.message}: see `python -m toolkit "
            "bundle verify`"
        )
    return archive


class Story:
    """The records of an archive, and what each file comes from."""

    def __init__(self, archive: Archive):
        self.archive = checked(archive)
        self.records: list[Record] = []
        files = [name for name in archive.members if re.fullmatch(r"output/.+/(run|merge)\.json", name)]
        if not 0 < len(files) <= RECORDS:
            raise UserError(
                f"{archive.path} holds {len(files)} records of stages (run.json, merge.json): it is not an "
                "entry of this toolkit"
            )
        for name in files:
            try:
                self.records.append(record_of(read(archive, name), name))
            except UserError as error:
                raise UserError(printable(error)) from None
        order = list(RECORDED)
        try:
            self.own = experiment_of(archive)[0]
        except UserError:  # `verify` says why
            self.own = ""
        self.records.sort(
            key=lambda record: (
                self.run(record.file),
                order.index(record.stage) if record.stage in order else len(order),
                record.file,
            )
        )
        self.makers = {
            item.path: Maker(record=record) for record in self.records for item in record.outputs.values()
        }
        self.makers |= {record.file: Maker(record=record) for record in self.records}
        self.items: dict[str, File] = {}
        for record in self.records:
            for item in [*record.inputs.values(), *record.outputs.values()]:
                self.items.setdefault(item.path, item)

    def run(self, path: str) -> str:
        """The run that a file belongs to, "" for that of the entry and for what all share."""
        match = re.match(
            r"output/(?:processed_data/|(?:training_dirs|eval_results)/MGM-[^-/]+-\w+-)([^/]+)/", path
        )
        name = match[1] if match else ""
        return "" if name in (self.own, seeds.experiment_of(self.own)) or not self.own else name

    def maker(self, path: str) -> Maker | None:
        """What made `path`; None for a file from outside."""
        if path in self.makers:
            return self.makers[path]
        for pattern, words, sources in MADE:
            if match := re.fullmatch(pattern, path):
                files = (
                    [record.file for record in self.records]
                    if sources == ["records"]
                    else [text.format(*match.groups()) for text in sources]
                )
                return Maker(words=words, sources=files)
        return None

    def find(self, path: str) -> str:
        """The file that `path` names, in full or by its ending; UserError names similar files."""
        paths = {*self.archive.members, *self.items}
        path = path.removeprefix("./")
        if path in paths:
            return path
        ending = sorted(name for name in paths if name.endswith(f"/{path}"))
        ending = [name for name in ending if not self.run(name)] or ending
        if len(ending) == 1:
            return ending[0]
        # Compared with as many of a name's last parts as were given.
        endings = {"/".join(name.split("/")[-len(path.split("/")) :]): name for name in sorted(paths)}
        near = ending[:3] or [endings[match] for match in get_close_matches(path, endings, n=3)]
        raise UserError(
            f"{path} is {'more than one file' if ending else 'no file'} of this entry: {hint(near)}"
        )

    def file(self, path: str) -> str:
        """A file with its hash, and whether the archive holds just that."""
        item, digest = self.items.get(path), self.archive.digests.get(path)
        if digest is None:
            if item is None:
                return f"{path} (neither in the archive nor in a record)"
            return f"{path} ({item.bytes:,} bytes, sha256 {item.sha256[:12]}…; not in the archive)"
        if item is None:
            verdict = ""
        elif item.sha256 == digest:
            verdict = "; as recorded"
        else:
            verdict = f"; NOT what the records name, {item.sha256[:12]}…"
        return f"{path} ({self.archive.members[path].size:,} bytes, sha256 {digest[:12]}…{verdict})"

    def trace(self, path: str, explained: set[str], depth: int = 0) -> Iterator[str]:
        """Lines about `path` and, deeper, what it was made from; each file is told once."""
        indent = "  " * depth
        if path in explained:
            yield f"{indent}{path}, see above"
            return
        explained.add(path)
        yield indent + self.file(path)
        if path.startswith("input/"):
            yield f"{indent}  {origin(path)}"
            return
        maker = self.maker(path)
        if maker is None:
            yield f"{indent}  no record in the archive says where it comes from"
        elif maker.record is None:
            yield f"{indent}  made by {maker.words}" + (", from" if maker.sources else "")
            for source in maker.sources:
                yield from self.trace(source, explained, depth + 2)
        else:
            if maker.record.file not in explained or maker.record.file == path:
                explained.add(maker.record.file)
                yield from textwrap.wrap(
                    sentence(maker.record),
                    WIDTH,
                    initial_indent=f"{indent}  ",
                    subsequent_indent=f"{indent}  ",
                )
                yield f"{indent}  from"
                for item in maker.record.inputs.values():
                    yield from self.trace(item.path, explained, depth + 2)
            else:
                yield f"{indent}  made with {maker.record.file}, see above"

    def page(self) -> Iterator[str]:
        """The whole story, a paragraph a stage."""
        yield f"{self.archive.path.name}: {counted(len(self.archive.members), 'file')}"
        for record in self.records:
            yield ""
            of = f"{run}, " if (run := self.run(record.file)) else ""
            yield from textwrap.wrap(f"{of}{record.stage}: {sentence(record)}", WIDTH)
            for item in record.inputs.values():
                yield f"  read  {self.file(item.path)}"
            for item in record.outputs.values():
                yield f"  wrote {self.file(item.path)}"
        yield ""
        yield from environment(self.records)


SOURCES = {
    "url": "from the network",
    "hub": "from the network",
    "own": "the contestant's own",
    "package": "from a Python package",
    "random": "random weights for a rehearsal",
    "world": "made by this repository's embedded world",
    "zoo": "made by this repository's embedded world",
}


def origin(path: str) -> str:
    """Where a file of an asset comes from, as the registry of this toolkit states it."""
    name = path.split("/")[1]
    asset = assets.registry().get(name)
    if asset is None:
        return f"a file of the asset {name}, which the registry of this toolkit does not know"
    return f"a file of the asset {name}: {asset.role}, {SOURCES[asset.kind]}; licence: {asset.licence}"


def sentence(record: Record) -> str:
    """What a stage did, with the numbers that matter."""
    results, settings = record.results, record.settings
    facts = []
    if record.stage == "synthesize":
        facts.append(
            f"{results.get('read')} seed rows were read, {results.get('kept')} kept, "
            f"{results.get('removed')} removed"
        )
        facts.append(f"{counted(results.get('captions_changed'), 'new caption')}")
        models = settings.get("models")
        for name, model in models.items() if isinstance(models, dict) else []:
            facts.append(f"{name} is {model.get('path') if isinstance(model, dict) else model}")
        funnel = results.get("funnel")
        for step in funnel if isinstance(funnel, list) else []:
            if isinstance(step, dict) and step.get("in") != step.get("out"):
                facts.append(f"{step.get('operator')} kept {step.get('out')} of {step.get('in')}")
    elif record.stage in ("pretrain", "finetune"):
        facts.append(
            f"{counted(results.get('rows'), 'row')}, {counted(results.get('steps'), 'step')} of "
            f"{settings.get('global_batch')}, seed {settings.get('seed')}"
        )
        facts.append(f"loss {results.get('first_loss')} to {results.get('last_loss')}")
    elif record.stage == "merge":
        facts.append(f"{results.get('tensors_changed')} of {results.get('tensors_total')} tensors changed")
        facts.append(f"largest difference of logits {results.get('max_logit_difference')}")
    else:
        facts += [f"{key} {value}" for key, value in results.items() if isinstance(value, int | float)]
    did = RECORDED[record.stage].did if record.stage in RECORDED else "an unknown stage"
    return f"{did} on {record.device}: {'; '.join(facts)}"[:SENTENCE]


def environment(records: list[Record]) -> Iterator[str]:
    """Code, locks, images and drivers, each with the stages that state it."""
    for title, key, fallback in [
        ("code", "code", ""),
        ("locked packages", "lock", "not the locked versions"),
        ("container", "image", "none"),
        ("GPU driver", "driver", "none"),
    ]:
        values: dict[str, list[str]] = {}
        for record in records:
            stages = values.setdefault(getattr(record, key) or fallback, [])
            stages += [record.stage] if record.stage not in stages else []
        for value, stages in values.items():
            yield f"{title}: {value} ({'all stages' if len(values) == 1 else ', '.join(stages)})"


def hint(near: list[str]) -> str:
    return f"did you mean {' or '.join(near)}?" if near else "`unzip -l` lists what there is"


def explain(path: Path, member: str | None) -> list[str]:
    """The lines to show. UserError if the archive is not sound, holds no records, or knows no `member`."""
    if not path.is_file():
        raise UserError(f"{path} is not a file: name the archive to explain")
    with Archive(path) as archive:
        story = Story(archive)
        return list(
            map(printable, story.page() if member is None else story.trace(story.find(member), set()))
        )
