"""Command line of the bundle."""

import argparse
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.arguments import Output, above_zero, file, folder, output_folder, seed
from toolkit.counted import counted

if TYPE_CHECKING:
    from toolkit.bundle.checks.reproduced import Sample

EXCEPTED = 3  # exit status of `verify`: valid, but for what solution/exceptions.yaml admits (2 is argparse's)


def commands(subparsers: argparse._SubParsersAction) -> None:
    """Declare the verbs of `bundle`."""
    entry = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    entry.add_argument(
        "--root",
        type=Path,
        default=Path(),
        help="work tree with solution/, input/ and output/ (the current folder)",
    )
    entry.add_argument("--experiment", required=True, help="the experiment that is handed in")
    entry.add_argument("--rules", required=True, help="contest rules: a name in toolkit/contest/rules")
    checked = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    checked.add_argument("--strict", action="store_true", help="warnings are errors")

    parser = subparsers.add_parser(
        "validate", parents=[entry, checked], help="check an entry and list all findings", allow_abbrev=False
    )
    parser.add_argument("--output", type=Output, required=True, help="validation.json")
    parser.set_defaults(run=validate)

    parser = subparsers.add_parser(
        "submit", parents=[entry, checked], help="pack submit.zip from a valid entry", allow_abbrev=False
    )
    parser.add_argument("--output", type=Output, required=True, help="the archive")
    parser.set_defaults(run=submit)

    parser = subparsers.add_parser("verify", help="check a submit.zip and nothing else", allow_abbrev=False)
    parser.add_argument("archive", type=Path, help="the archive")
    parser.add_argument(
        "--inputs", type=folder, help="folder of assets that you fetched, like a work tree's input/"
    )
    parser.add_argument(
        "--deep",
        nargs="?",
        const="100",
        metavar="N|all",
        help="also recompute the merge and re-evaluate so many answers of each file with the model (100)",
    )
    parser.add_argument(
        "--seed", type=seed, help="of the draw of those answers; without it one of this system's own"
    )
    parser.add_argument(
        "--base",
        type=folder,
        help="folder of the language model that the entry was trained from, for --deep",
    )
    parser.add_argument(
        "--retrain",
        nargs="+",
        default=[],
        choices=["pretrain", "finetune"],
        help="train these stages again, and compare the log",
    )
    parser.add_argument(
        "--steps",
        metavar="K|all",
        help="of a stage that is trained again (20); all: also compare what it leaves",
    )
    parser.add_argument(
        "--signer",
        type=Path,
        metavar="FILE",
        help="names and public SSH keys, of which one has to have signed",
    )
    parser.add_argument("--json", type=Output, help="write all that was found to this file")
    parser.set_defaults(run=verify)

    parser = subparsers.add_parser("sign", help="sign a submit.zip with an SSH key", allow_abbrev=False)
    parser.add_argument("archive", type=Path, help="the archive; its signature is written beside it")
    parser.add_argument(
        "--key", type=Path, required=True, help="the private key, or the public one of an agent's"
    )
    parser.set_defaults(run=sign)

    parser = subparsers.add_parser(
        "audit", help="judge entries that were made with the contest's kit alone", allow_abbrev=False
    )
    parser.add_argument("entries", nargs="+", type=Path, metavar="ENTRY", help="a submit.zip or its folder")
    parser.add_argument(
        "--references",
        type=folder,
        help="the kit's folder eval_stage_1: recompute the scores with its answers",
    )
    parser.add_argument("--seed-rows", type=file, help="the seed's .jsonl: see which captions are new")
    parser.add_argument("--base", type=folder, help="folder of gemma-2b-it: see which weights were trained")
    parser.add_argument("--html", type=Output, help="write a page that shows all entries")
    parser.add_argument("--json", type=Output, help="write all that was found to this file")
    parser.set_defaults(run=audit)

    parser = subparsers.add_parser(
        "train-script", help="write the commands that made an experiment", allow_abbrev=False
    )
    parser.add_argument("--experiment", required=True, help="a trained and evaluated experiment")
    parser.add_argument("--output", type=Output, required=True, help="train.sh")
    parser.set_defaults(run=train_script)

    parser = subparsers.add_parser(
        "sbom", help="write the bill of materials of the locked packages", allow_abbrev=False
    )
    parser.add_argument("--output", type=Output, required=True, help="CycloneDX 1.6 JSON")
    parser.add_argument(
        "--system", action="store_true", help="with the Debian or Ubuntu packages of this machine"
    )
    parser.set_defaults(run=sbom)

    parser = subparsers.add_parser(
        "sources", help="write configuration, licences, bill of materials", allow_abbrev=False
    )
    parser.add_argument("--config", required=True, help="the effective configuration as JSON")
    parser.add_argument(
        "--output",
        type=output_folder,
        required=True,
        help="folder for config.yaml, licences.json, sbom.cdx.json, CITATION.cff",
    )
    parser.set_defaults(run=sources)

    parser = subparsers.add_parser(
        "crate", parents=[entry], help="write the RO-Crate's metadata from the records", allow_abbrev=False
    )
    parser.add_argument("--output", type=Output, required=True, help="ro-crate-metadata.json")
    parser.set_defaults(run=crate)

    parser = subparsers.add_parser(
        "explain", help="say where a file or a score comes from", allow_abbrev=False
    )
    parser.add_argument("archive", type=Path, help="submit.zip")
    parser.add_argument(
        "path", nargs="?", help="a file in it, in full or by its ending (without: the whole story)"
    )
    parser.set_defaults(run=explain)

    parser = subparsers.add_parser(
        "rebuild", help="make an entry again from its archive and compare", allow_abbrev=False
    )
    parser.add_argument("archive", type=Path, help="submit.zip")
    parser.add_argument(
        "--output",
        type=output_folder,
        required=True,
        help="folder for the work tree; an interrupted rebuild continues there",
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="run whatever its recipes name, with your keys, the whole environment and no sandbox",
    )
    parser.add_argument(
        "--hours", type=above_zero, default=24, help="the longest that the sandbox lets it run (24)"
    )
    for what in ("memory", "disk"):
        parser.add_argument(
            f"--{what}-gib", type=above_zero, help=f"the most {what} in the sandbox (three quarters of yours)"
        )
    parser.set_defaults(run=rebuild)


def validate(arguments: argparse.Namespace) -> int:
    """Show and write the findings; 1 if any is an error."""
    from toolkit.files import write_json

    document = _checked(arguments)[1]
    write_json(arguments.output, document)
    return int(not document["valid"])


def submit(arguments: argparse.Namespace) -> int:
    """Validate again, pack, print the archive's SHA-256; 1 and no archive if a finding is an error."""
    from toolkit.bundle.pack import pack
    from toolkit.files import sha256

    entry, document = _checked(arguments)
    if not document["valid"]:
        print("error: the entry is not valid, nothing was packed: see the findings above", file=sys.stderr)
        return 1
    members = pack(entry, document, arguments.output)
    print(f"{sha256(arguments.output)}  {arguments.output} ({counted(members, 'file')})")
    return 0


def verify(arguments: argparse.Namespace) -> int:
    """Show and write the findings; 1 if any is an error, EXCEPTED if some are only excepted."""
    from toolkit.bundle.findings import show
    from toolkit.bundle.verify import verify as verified
    from toolkit.errors import UserError
    from toolkit.files import write_json
    from toolkit.terminal import printable

    if arguments.deep is None and (arguments.base or arguments.seed is not None):
        raise UserError("--base and --seed are for what --deep repeats: add --deep")
    if arguments.steps and not arguments.retrain:
        raise UserError("--steps is for a stage that is trained again: add --retrain")
    report = verified(
        arguments.archive,
        inputs=arguments.inputs,
        deep=_sample(arguments),
        base=arguments.base,
        retrain=tuple(arguments.retrain),
        steps=_count("steps", arguments.steps or "20"),
        signers=arguments.signer,
    )
    show(report.findings, report.title())
    for line in report.remarks():
        print(printable(line))
    if arguments.json:
        write_json(arguments.json, report.as_dict())
    return (EXCEPTED if report.excepted else 0) if report.valid else 1


def sign(arguments: argparse.Namespace) -> None:
    """Write the signature."""
    from toolkit.bundle import signature

    print(signature.sign(arguments.archive, arguments.key))


def _sample(arguments: argparse.Namespace) -> "Sample | None":
    """Which answers --deep re-evaluates; UserError for what is neither a number nor all."""
    if arguments.deep is None:
        return None
    count = _count("deep", arguments.deep)
    from toolkit.bundle.checks.reproduced import Sample

    seed = secrets.randbits(32) if arguments.seed is None else arguments.seed
    return Sample(count, seed)


def _count(option: str, value: str) -> int | None:
    """A number from 1 up, None for all; UserError for anything else."""
    from toolkit.errors import UserError

    if value != "all" and not (value.isdecimal() and int(value)):
        raise UserError(f"--{option} {value} is neither a number from 1 up nor all")
    return None if value == "all" else int(value)


def audit(arguments: argparse.Namespace) -> int:
    """Show the findings of each entry and a table of all; 1 if any finding is an error."""
    from toolkit.audit import page
    from toolkit.audit.audit import audit as audited
    from toolkit.bundle.findings import ERROR, show
    from toolkit.files import write_json, write_text
    from toolkit.terminal import console

    audits = audited(arguments.entries, arguments.references, arguments.seed_rows, arguments.base)
    for entry in audits:
        show(entry.findings, entry.title)
    console().print(page.table(audits))
    if arguments.html:
        write_text(arguments.html, page.html(audits))
    if arguments.json:
        write_json(arguments.json, [entry.as_dict() for entry in audits])
    return int(any(entry.count(ERROR) for entry in audits))


def train_script(arguments: argparse.Namespace) -> None:
    """Write train.sh."""
    from toolkit.bundle.papers.train_script import script
    from toolkit.contest.experiment import Experiment
    from toolkit.files import write_text

    write_text(arguments.output, script(Experiment.find(Path(), arguments.experiment)))


def sbom(arguments: argparse.Namespace) -> None:
    """Write the bill of materials."""
    from toolkit.bundle.papers.sbom import sbom, system_packages
    from toolkit.files import write_json

    write_json(arguments.output, sbom(system=system_packages() if arguments.system else ()))


def sources(arguments: argparse.Namespace) -> None:
    """Write what lies beside the entry."""
    from toolkit.bundle.papers.sources import write

    write(arguments.config, arguments.output)


def crate(arguments: argparse.Namespace) -> None:
    """Write ro-crate-metadata.json."""
    from toolkit.bundle.entry import Entry
    from toolkit.bundle.papers.crate import document
    from toolkit.contest import ruleset
    from toolkit.files import write_json

    write_json(
        arguments.output, document(Entry(arguments.root, arguments.experiment, ruleset.load(arguments.rules)))
    )


def explain(arguments: argparse.Namespace) -> None:
    """Print where a file comes from, or the whole story."""
    from toolkit.bundle.explain import explain as explanation

    print("\n".join(explanation(arguments.archive, arguments.path)))


def rebuild(arguments: argparse.Namespace) -> int:
    """Print a verdict for each file; 1 if any file is neither the same nor within the tolerance."""
    from toolkit.bundle.rebuild import EQUAL, NEAR, report
    from toolkit.bundle.rebuild import rebuild as rebuilt

    remarks, verdicts = rebuilt(
        arguments.archive,
        arguments.output,
        arguments.trust,
        arguments.hours,
        arguments.memory_gib,
        arguments.disk_gib,
    )
    print("\n".join(report(remarks, verdicts)))
    return int(not set(verdicts.values()) <= {EQUAL, NEAR})


def _checked(arguments: argparse.Namespace) -> tuple:
    """The entry and its validation document, after the table was shown."""
    from toolkit.bundle.entry import Entry
    from toolkit.bundle.findings import show
    from toolkit.bundle.validate import document, validate
    from toolkit.contest import ruleset

    rules = ruleset.load(arguments.rules)
    entry = Entry(arguments.root, arguments.experiment, rules)
    findings = validate(entry, arguments.strict)
    show(findings, f"{arguments.experiment}, rules {rules.name} version {rules.version}")
    return entry, document(entry, findings)
