"""The profile for Slurm: what the shipped one says, and what each rule asks for."""

from pathlib import Path

import pytest
import yaml

from toolkit import config
from toolkit.__main__ import main
from toolkit.plan import cards, predict, profile, work

ROOT = Path(__file__).parents[2]
BIG = "workflow/config/baseline_10k.yaml"


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """A project's folder without assets and results."""
    for folder in ("solution", "workflow"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)


def outlook(path: str, card: str, gpus: int = 1) -> predict.Outlook:
    settings = config.read(path)
    return predict.predict(settings, work.of(settings), cards.card(card), gpus)


def test_the_shipped_profile_is_what_the_plan_writes(tmp_path):
    """Its first lines name the command."""
    assert main(["plan", "--config", BIG, "--card", "h100", "--profile", "written"]) == 0
    written, shipped = (
        (tmp_path / folder / "config.yaml").read_text() for folder in ("written", "workflow/profiles/slurm")
    )
    assert written == shipped.replace("workflow/profiles/slurm", "written")


def test_a_rule_asks_for_twice_its_largest_time_and_its_memory_and_a_quarter():
    planned = outlook(BIG, "rtx-4090")
    (first, second) = (each for each in planned.predictions if each.job.rule == "pretrain")
    asked = profile.resources(planned)["pretrain"]
    longest = max(first.seconds * (1 + first.error), second.seconds * (1 + second.error))
    assert 2 * longest / 60 <= asked["runtime"] < 2 * longest / 60 + 1
    assert 1000 + first.host * 1.25 / 1e6 <= asked["mem_mb"] < 1001 + first.host * 1.25 / 1e6
    assert "gpu" not in asked  # the rule's own one
    assert profile.resources(planned)["download"]["runtime"] == 24 * 60


def test_further_gpus_are_the_trainings():
    asked = profile.resources(outlook(BIG, "h100", gpus=4))
    assert {rule for rule, resources in asked.items() if "gpu" in resources} == {"pretrain", "finetune"}
    assert asked["finetune"]["gpu"] == 4


def test_trainings_on_several_nodes_have_all_their_gpus_and_leave_srun_to_the_rule(capsys):
    several = ["--card", "h100", "--gpus", "4", "--nodes", "2", "--profile", "written"]
    assert main(["plan", "--config", BIG, *several]) == 0
    text = Path("written/config.yaml").read_text()
    assert "--card h100 --gpus 4 --nodes 2 --profile written`" in text
    asked = yaml.safe_load(text)["set-resources"]
    assert {rule for rule, resources in asked.items() if "nodes" in resources} == {"pretrain", "finetune"}
    assert asked["finetune"] == profile.resources(outlook(BIG, "h100", gpus=8))["finetune"] | {
        "nodes": 2,
        "mpi": "srun",
        "tasks_per_node": 4,
        "slurm_extra": "--gpus-per-node=4",
    }
    assert "8 x H100" in capsys.readouterr().out


def test_each_gpu_has_processors_that_prepare_its_images():
    one, four = (profile.threads(outlook(BIG, "h100", gpus=gpus)) for gpus in (1, 4))
    assert one == dict.fromkeys(("pretrain", "finetune", "eval_textvqa", "eval_mmbench"), 8)
    assert four == one | {"pretrain": 32, "finetune": 32}
    # a task a GPU, each with its own
    assert profile.threads(outlook(BIG, "h100", gpus=8), nodes=2) == one
    assert profile.threads(outlook("workflow/config/tiny.yaml", "cpu")) == {}


def test_nodes_of_the_embedded_world_have_no_gpus():
    asked = profile.resources(outlook("workflow/config/tiny.yaml", "cpu", gpus=2), nodes=2)["finetune"]
    assert {"nodes": 2, "mpi": "srun", "tasks_per_node": 2}.items() <= asked.items()
    assert not {"gpu", "slurm_extra"} & asked.keys()


def test_the_profile_names_every_rule():
    values = yaml.safe_load((ROOT / "workflow/profiles/slurm/config.yaml").read_text())
    assert values["executor"] == "slurm" and values["retries"] == 3
    rules = {each.job.rule for each in outlook(BIG, "h100").predictions}
    assert set(values["set-resources"]) == rules
