"""Configurations: every problem is listed in one go, and the generated files are in step with the models."""

import difflib
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from toolkit import assets, config, scales
from toolkit.__main__ import main
from toolkit.assets.fetch import fetch
from toolkit.config.write import files
from toolkit.contest.records import write_record
from toolkit.errors import UserError
from toolkit.files import read_json, read_yaml

ROOT = Path(__file__).parents[2]
TAUGHT = {
    "baseline": {"recipe": "baseline"},
    "synth": {"recipe": "recaption", "strategy": "distillation", "teacher": "baseline"},
}
SEARCHED = {"baseline": {"recipe": "baseline"}, "synth": {"recipe": "winner"}}
FILES = sorted((ROOT / "workflow/config").glob("*.yaml"))


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """A folder with two recipes and one ruleset, whatever the project has."""
    for path in (
        "solution/recipes/baseline.yaml",
        "solution/recipes/recaption.yaml",
        "solution/search/space.yaml",
        "toolkit/contest/rules/embedded.yaml",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    monkeypatch.chdir(tmp_path)


def problems(values):
    with pytest.raises(UserError) as caught:
        config.load(values, "mine.yaml")
    head, *lines = str(caught.value).splitlines()
    assert head == "mine.yaml cannot be used:"
    return [line.removeprefix("  - ") for line in lines]


def test_an_empty_file_is_the_tiny_scale():
    assert config.load({}, "mine.yaml").scale == "tiny"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"finetune": {"lora_rnak": 8}},
            "finetune.lora_rnak: unknown key; did you mean lora_rank or lora_alpha?",
        ),
        (
            {"experiments": {"synth": {"recipe": "recaption", "recipes": "x"}}},
            "experiments.synth.recipes: unknown key; did you mean recipe?",
        ),
        (
            {"zzz": 1},
            "zzz: unknown key; known: scale, seeds, assets, experiments, synthesize, pretrain, finetune, "
            "benchmarks, compare, report, submit, search",
        ),
        ({"finetune": {"lora_rank": "16"}}, "finetune.lora_rank: expected a valid integer, not '16'"),
        ({"finetune": {"lora_rank": 0}}, "finetune.lora_rank: expected greater than or equal to 1, not 0"),
        ({"finetune": {"division": "half"}}, "finetune.division: expected 'open' or 'closed', not 'half'"),
        ({"seeds": [True]}, "seeds.0: expected a valid integer, not True"),
        ({"seeds": [2**63]}, f"seeds.0: expected an integer from 0 to below 2^63, not {2**63}"),
        ({"seeds": [2**64]}, f"seeds.0: expected an integer from 0 to below 2^63, not {2**64}"),
        ({"seeds": ["9" * 5000]}, f"seeds.0: expected a valid integer, not '{'9' * 99}"),
        ({"seeds": [-1]}, "seeds.0: expected an integer from 0 to below 2^63, not -1"),
        (
            {"compare": {"seed": 2**63}},
            f"compare.seed: expected an integer from 0 to below 2^63, not {2**63}",
        ),
        (
            {"search": {"development": "world-development", "seed": 2**63 - 2}},
            f"search.seed: {2**63 - 2} leaves no seeds below 2^63 for the repeats that follow it",
        ),
        ({"experiments": {3: {"recipe": "baseline"}}}, "experiments.3: a name is a text, put it in quotes"),
        ({"seeds": []}, "seeds: expected at least one, not []"),
        ({"seeds": [1, 1]}, "seeds: [1, 1] has a seed twice"),
        ({"seed": 7}, "seed: unknown key; did you mean seeds?"),
        (
            {"benchmarks": {"textvqa": {}}},
            "benchmarks: mmbench must be among them, the rules 'embedded' ask for answers",
        ),
        (
            {"benchmarks": {"textvqa": {"prompt": "Why?"}, "mmbench": {}}},
            "benchmarks.textvqa.prompt: its question file has the whole prompt, it cannot be changed",
        ),
        (
            {"benchmarks": {"textvqa": {}, "mmbench": {}, "popes": {}}},
            "benchmarks.popes: 'popes' is not a benchmark of toolkit/benchmarks; did you mean pope?",
        ),
        (
            {"benchmarks": {"textvqa": {"batchsize": 1}, "mmbench": {}}},
            "benchmarks.textvqa.batchsize: unknown key; did you mean batch_size?",
        ),
        (
            {
                "experiments": {
                    "baseline": {"recipe": "baseline"},
                    "synth": {"recipe": "recaption"},
                    "a-seed7": {"recipe": "baseline"},
                }
            },
            "experiments.a-seed7: a name that ends like -seed7 is that of another training seed; choose "
            "another",
        ),
        ({"scale": None}, "scale: expected a valid string, not None"),
        ({"finetune": 3}, "finetune: expected keys and values, not 3"),
        ({"experiments": {}}, "experiments: expected at least one, not {}"),
        ({"scale": "tinny"}, "scale: 'tinny' is not a scale; did you mean tiny?"),
        (
            {"assets": {"llm": "gemma-2b"}},
            "assets.llm: 'gemma-2b' is not an asset of toolkit/assets/registry.yaml that serves as llm; did "
            "you mean gemma-2b-it?",
        ),
        (
            {"assets": {"seed": "world-gemma"}},
            "assets.seed: 'world-gemma' is not an asset of toolkit/assets/registry.yaml that serves as "
            "seed; did you mean world-seed?",
        ),
        (
            {"scale": "baseline_10k"},
            "submit.rules: 'embedded' takes entries of tiny, not of the scale 'baseline_10k'",
        ),
        (
            {"finetune": {"division": "closed", "base": "nf4"}},
            "finetune.base: 'nf4' is for LoRA (division: open); closed is the kit's training",
        ),
        (
            {"finetune": {"division": "closed"}, "pretrain": {"base": "fp8"}},
            "pretrain.base: 'fp8' is for LoRA (division: open); closed is the kit's training",
        ),
        ({"pretrain": {"base": "nf4"}}, "pretrain.base: expected 'full' or 'fp8', not 'nf4'"),
        (
            {"finetune": {"division": "closed"}, "experiments": TAUGHT},
            "experiments.synth.strategy: 'distillation' is for LoRA (division: open); closed is the kit's "
            "training",
        ),
        (
            {"experiments": TAUGHT | {"synth": TAUGHT["synth"] | {"strategy": "neftun"}}},
            "experiments.synth.strategy: 'neftun' is not a learning strategy; did you mean neftune?",
        ),
        (
            {"experiments": TAUGHT | {"synth": TAUGHT["synth"] | {"strategy": None}}},
            "experiments.synth: strategy: distillation and a teacher go together",
        ),
        (
            {"experiments": TAUGHT | {"synth": TAUGHT["synth"] | {"teacher": "synth"}}},
            "experiments.synth.teacher: 'synth' is the experiment itself, name another",
        ),
        (
            {"experiments": {"other": TAUGHT["synth"] | {"teacher": "synth"}} | TAUGHT},
            "experiments.other.teacher: 'synth' has a teacher itself",
        ),
        (
            {"experiments": TAUGHT | {"synth": TAUGHT["synth"] | {"teacher": "other"}}},
            "experiments.synth.teacher: 'other' is not one of the experiments; known: baseline, synth",
        ),
        (
            {"submit": {"experiment": "sinth"}},
            "submit.experiment: 'sinth' is not one of the experiments; did you mean synth?",
        ),
        (
            {"submit": {"rules": "x"}},
            "submit.rules: 'x' is not a ruleset in toolkit/contest/rules; known: embedded, "
            "embedded_llama, family_13b, family_13b_hd, family_7b, family_7b_hd, family_8b, family_8b_hd, "
            "offline_2024, online_2024, rehearsal",
        ),
        (
            {"experiments": {"baseline": {"recipe": "baseline"}, "synth": {"recipe": "recapton"}}},
            "experiments.synth.recipe: 'recapton' is not a recipe in solution/recipes; did you mean "
            "recaption?",
        ),
        (
            {"experiments": {"baseline": {"recipe": "baseline"}, "synth": {"recipe": "winner"}}},
            "experiments.synth.recipe: 'winner' is not a recipe in solution/recipes; known: baseline, "
            "recaption",
        ),
        (
            {"experiments": {"synth": {"recipe": "recaption"}}, "compare": {"baseline": "synth"}},
            "experiments: synth is alone: a comparison needs the baseline and another",
        ),
        ({"search": {}}, "search.development: this key is missing"),
        (
            {"search": {"development": "world-development", "round": 3}},
            "search.round: unknown key; did you mean rounds?",
        ),
        (
            {"search": {"development": "world-evaluation"}},
            "search.development: 'world-evaluation' is not an asset that serves as development; did you mean "
            "world-development?",
        ),
        (
            {"search": {"development": "world-development", "seed": 1024}},
            "search.seed: 1024 is one of seeds: a winner is confirmed with seeds that the search has not "
            "used",
        ),
        (
            {"search": {"development": "world-development", "seed": 1023}},
            "search.seed: 1024 is one of seeds: a winner is confirmed with seeds that the search has not "
            "used",
        ),
        (
            {"search": {"development": "world-development", "space": "absent.yaml"}},
            "search.space: absent.yaml does not exist: name a file of the project",
        ),
        (
            {"search": {"development": "world-development"}, "experiments": SEARCHED},
            "submit.experiment: an entry holds the recipes of solution/recipes alone: copy what the search "
            "wrote to output/search there",
        ),
    ],
)
def test_a_problem_is_one_sentence(values, expected):
    assert problems(values) == [expected]


@pytest.mark.parametrize("name", ["Synth", "a b", "../x", "", "a.b", "x" * 65])
def test_experiment_names_fit_into_file_names(name):
    names = {
        "baseline": {"recipe": "baseline"},
        "synth": {"recipe": "recaption"},
        name: {"recipe": "baseline"},
    }
    assert problems({"experiments": names}) == [
        f"experiments.{name}: a name has lower-case letters, digits, _ and - only, at most 64 of them"
    ]


def test_all_problems_are_listed():
    actual = problems(
        {"sede": 1, "finetune": {"lora_rank": "x", "lora_alfa": 1}, "compare": {"resamples": 1}}
    )
    assert sorted(line.partition(":")[0] for line in actual) == [
        "compare.resamples",
        "finetune.lora_alfa",
        "finetune.lora_rank",
        "sede",
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "finetune: {lora_rank: 4}\nfinetune: {lora_alpha: 8}\n",
            "is not valid YAML: line 2: the key finetune is there twice",
        ),
        (
            "seed: 010\n",
            "is not valid YAML: line 1: 010 would be read as 8: write 8, or put it in quotes if it is a text",
        ),
        ("", "is empty: write {} for all defaults"),
        ("# nothing\n", "is empty: write {} for all defaults"),
        ("[1]\n", "must hold keys and values, not [1]"),
    ],
)
def test_a_value_that_yaml_would_lose_is_named_by_check_and_workflow(tmp_path, capsys, text, sentence):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    assert main(["config", "check", str(file)]) == 1
    assert capsys.readouterr().err == f"error: {file} {sentence}\n"
    snakemake = [
        sys.executable,
        "-m",
        "snakemake",
        "submit.zip",
        "-n",
        "--cores",
        "1",
        "--configfile",
        str(file),
    ]
    done = subprocess.run(snakemake, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    # Snakemake's words for what has none
    own = "Config file must be given as JSON or YAML with keys at top level"
    assert (sentence if "is not valid" in sentence else own) in done.stdout + done.stderr


def test_check_names_file_and_status(tmp_path, capsys):
    for text, expected in [
        ("a: [", "is not valid YAML"),
        ("- 1", "must hold keys and values"),
        ("sede: 1", "sede: unknown key"),
    ]:
        (tmp_path / "mine.yaml").write_text(text)
        assert main(["config", "check", "mine.yaml"]) == 1
        printed = capsys.readouterr().err
        assert printed.startswith("error: mine.yaml") and expected in printed
    assert main(["config", "check", "absent.yaml"]) == 1
    (tmp_path / "mine.yaml").write_text("seeds: [5]")
    assert main(["config", "check", "mine.yaml"]) == 0
    assert capsys.readouterr().out == "mine.yaml is in order\n"
    (tmp_path / "mine.yaml").write_text("scale: tiny_llama\nsubmit: {rules: embedded_llama}")
    assert main(["config", "check", "mine.yaml"]) == 0
    refused = "submit.zip will be refused (P3), all else can be made: assets.llm is world-gemma, the rules"
    assert refused in capsys.readouterr().out


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_shipped_file_is_in_order(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config.read(path)
    jsonschema.validate(
        yaml.safe_load(path.read_text()),
        json.loads((ROOT / "workflow/schemas/config.schema.json").read_text()),
    )


@pytest.mark.parametrize("values", [{"seeds": [2**63]}, {"seeds": [-1]}, {"compare": {"seed": 2**63}}])
def test_the_schema_refuses_a_seed_that_the_check_refuses(values):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, json.loads((ROOT / "workflow/schemas/config.schema.json").read_text()))


def test_the_default_file_states_every_default():
    assert yaml.safe_load((ROOT / "workflow/config/tiny.yaml").read_text()) == config.Config().model_dump()


@pytest.mark.parametrize("path", files())
def test_generated_files_are_in_step(path):
    expected, actual = files()[path], (ROOT / path).read_text()
    difference = "".join(
        difflib.unified_diff(actual.splitlines(True), expected.splitlines(True), path, "from the models")
    )
    assert not difference, f"run `python -m toolkit config write`:\n{difference}"


def test_write_makes_the_same_files(tmp_path):
    assert main(["config", "write"]) == 0
    for path, text in files().items():
        assert (tmp_path / path).read_text() == text


def test_every_key_is_described():
    def undescribed(model, parents=()):
        for name, field in model.model_fields.items():
            if hasattr(field.annotation, "model_fields"):
                yield from undescribed(field.annotation, (*parents, name))
            elif not field.description:
                yield ".".join((*parents, name))

    assert not list(undescribed(config.Config))


def test_own_captions_asks_the_model_that_its_configuration_trains_on_raw_captions(monkeypatch):
    monkeypatch.chdir(ROOT)
    settings = config.read(ROOT / "workflow/config/own_captions.yaml")
    recipe = read_yaml(ROOT / "solution/recipes/own_captions.yaml")
    (asked,) = (step[name] for step in recipe["process"] for name in step if name.startswith("endpoint_"))
    assert settings.experiments[settings.compare.baseline].recipe == "baseline"
    size = scales.load(settings.scale).size
    assert asked["model"] == f"MGM-{size}-Finetune-{settings.compare.baseline}"


def test_records_and_manifests_fit_their_schemas(tmp_path):
    schemas = {
        name: json.loads((ROOT / f"workflow/schemas/{name}.schema.json").read_text())
        for name in ("record", "manifest")
    }
    (tmp_path / "rows.jsonl").write_text("{}")
    files = {"rows": tmp_path / "rows.jsonl"}
    write_record(
        "run.json",
        "test",
        inputs=files,
        outputs=files,
        settings={"seed": 1},
        results={},
        packages=("pyyaml",),
    )
    jsonschema.validate(read_json("run.json"), schemas["record"])
    fetch("world-clip", assets.entry("world-clip"), tmp_path / "clip")
    jsonschema.validate(read_json("clip/manifest.json"), schemas["manifest"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(read_json("run.json") | {"host": "here"}, schemas["record"])
