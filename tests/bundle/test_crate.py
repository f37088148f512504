"""The RO-Crate of an entry: what the profile demands, every file, every link.

The profile's own validator wants another rich than the locks pin, so it is run by hand, in an environment of
its own (needs the network for two JSON-LD contexts):

    uvx --from roc-validator==0.13.0 rocrate-validator validate output --profile-identifier
    workflow-run-crate-0.5 --no-paging
"""

import json
import shutil
from pathlib import Path

import pytest
from entry_tree import ENTRY, EntryTree

from toolkit.__main__ import main
from toolkit.bundle.entry import Entry
from toolkit.contest import ruleset
from toolkit.files import sha256

FILE = Path("output/ro-crate-metadata.json")
WRITE = ["bundle", "crate", *ENTRY, "--output", str(FILE)]


def written() -> dict[str, dict]:
    assert main(WRITE) == 0
    return {entity["@id"]: entity for entity in json.loads(FILE.read_text())["@graph"]}


def references(value) -> list[str]:
    """Every `{"@id": ...}` inside an entity's properties."""
    if isinstance(value, dict):
        return (
            [value["@id"]]
            if set(value) == {"@id"}
            else [actual for inner in value.values() for actual in references(inner)]
        )
    return [actual for inner in value for actual in references(inner)] if isinstance(value, list) else []


def test_every_packed_file_below_output_is_a_part(tree):
    graph = written()
    members = {
        name
        for name in Entry(tree, "synth", ruleset.load("embedded")).members()
        if name.startswith("output/")
    }
    parts = {f"output/{part['@id']}" for part in graph["./"]["hasPart"]}
    assert parts == (members | {"output/reports/validation.json"}) - {str(FILE)}
    for part in parts - {"output/reports/validation.json"}:
        entity = graph[part.removeprefix("output/")]
        assert entity["sha256"] == sha256(part) and entity["contentSize"] == str(Path(part).stat().st_size)


def test_every_reference_has_its_entity(tree):
    graph = written()
    outside = {"https://w3id.org/ro/crate/1.1"}
    for entity in graph.values():
        missing = {actual for key in entity for actual in references(entity[key])} - set(graph) - outside
        assert not missing, entity["@id"]
    assert len(graph) == len(json.loads(FILE.read_text())["@graph"])  # no identifier twice


def test_the_workflow_run_profile(tree):
    graph = written()
    root = graph["./"]
    assert graph["ro-crate-metadata.json"]["about"] == {"@id": "./"}
    assert {"@id": "https://w3id.org/ro/wfrun/workflow/0.5"} in root["conformsTo"]
    assert {"name", "description", "datePublished", "license"} <= set(root)
    workflow = graph[root["mainEntity"]["@id"]]
    assert (
        workflow["@type"] == ["File", "SoftwareSourceCode", "ComputationalWorkflow"]
        and workflow["@id"] == "train.sh"
    )
    assert graph[workflow["programmingLanguage"]["@id"]]["@type"] == "ComputerLanguage"
    runs = [entity for entity in graph.values() if entity["@type"] == "CreateAction"]
    assert sum(run["instrument"] == root["mainEntity"] for run in runs) == 1
    assert all({"name", "description", "instrument", "object", "result"} <= set(run) for run in runs)


def test_answers_lead_back_to_the_seed_and_the_recipe(tree):
    graph = written()
    makers = {
        produced: run
        for run in graph.values()
        if "result" in run and run["@id"] != "#run"
        for produced in references(run["result"])
    }
    reached, todo = set(), {f"eval_results/{EntryTree().results().split('/')[-1]}/textvqa/bm1.jsonl"}
    while todo:
        reached |= todo
        todo = {
            read for produced in todo if produced in makers for read in references(makers[produced]["object"])
        } - reached
    assert {"#solution/recipes/recaption.yaml", "#input/world-seed/mgm_pretrain_stage_1.jsonl"} <= reached
    assert "#input/world-instruction/mgm_instruction_stage_1.json" in reached and "#pretrain/seed" in reached
    seed = graph[graph["#input/world-seed/mgm_pretrain_stage_1.jsonl"]["isPartOf"]["@id"]]
    assert seed["license"] == "Apache-2.0"


def test_same_bytes_again_in_another_folder(tree, tmp_path, monkeypatch):
    written()
    first = FILE.read_bytes()
    # made after the crate: its content is not part of it
    Path("output/reports/validation.json").write_text("{}")
    shutil.copytree(tree, tmp_path / "other")
    monkeypatch.chdir(tmp_path / "other")
    written()
    assert FILE.read_bytes() == first


def test_a_container_is_named(tree):
    record = Path(EntryTree().pretrain, "run.json")
    value = json.loads(record.read_text())
    record.write_text(json.dumps(value | {"image": "sha256:abc", "driver": "575.1"}))
    graph = written()
    action = graph["#stage/pretrain"]
    assert (
        graph[action["containerImage"]["@id"]]["name"] == "sha256:abc"
        and "driver 575.1" in action["description"]
    )


@pytest.mark.parametrize(
    "absent", ["output/reports/licences.json", "output/train.sh", "output/reports/CITATION.cff"]
)
def test_a_missing_file_is_one_sentence(tree, capsys, absent):
    Path(absent).unlink()
    assert main(WRITE) == 1
    assert f"{absent} does not exist: build it first" in capsys.readouterr().err


def test_licences_name_every_asset_of_the_configuration(tree):
    listed = json.loads(Path("output/reports/licences.json").read_text())
    roles = {"seed", "instruction", "evaluation", "llm", "clip", "convnext"}
    # of recipes
    roles |= {
        "captioner",
        "itm",
        "grounding",
        "aesthetics",
        "watermark",
        "nsfw",
        "perplexity",
        "sentences",
        "ocr",
        "concreteness",
        "mgm",
    }
    assert {row["part"] for row in listed} == roles
    assert all(row["licence"] and row["from"] for row in listed)


def test_a_wrong_configuration_is_one_sentence(tree, capsys):
    assert main(["bundle", "sources", "--config", '{"scal": "tiny"}', "--output", "output/reports"]) == 1
    assert "scal: unknown key; did you mean scale" in capsys.readouterr().err
