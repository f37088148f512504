"""The search's rules: rounds follow each other, a trial runs once, and what a search wrote is confirmed by the ordinary rules."""

import re
from pathlib import Path

CONFIG = "workflow/config/search.yaml"
SMALL = "search: {rounds: 2, trials: 2}\nseeds: [11, 12]\n"


def test_a_search_runs_each_trial_once_and_goes_on_where_it_was(project):
    trials = project.path / "output/search/trials"
    (project.path / "small.yaml").write_text(SMALL)
    search = ("search", "--configfile", CONFIG, "small.yaml")
    (project.path / "fail").write_text("select")  # as good as a kill before the end
    status, printed = project.snakemake(*search)
    assert status == 1 and "the disk is on fire" in printed
    keys = re.findall(r"--key ([0-9a-f]{16})", printed)
    assert len(keys) == len(set(keys)) == 6  # two a round, two finals
    (project.path / "fail").unlink()
    assert {path.stem for path in trials.iterdir()} == set(keys)
    status, printed = project.snakemake(*search)
    assert status == 0 and "search trial" not in printed, printed
    winner = (project.path / "output/processed_data/winner/run.json").read_text()
    assert "--recipe output/search/winner.yaml" in winner and "--model clip=input/world-clip" in winner
    assert "round-finals.json" in (project.path / "output/search/winner.yaml").read_text()
    assert "Nothing to be done" in project.snakemake(*search)[1]


def test_another_winner_is_confirmed_anew(project):
    (project.path / "small.yaml").write_text(SMALL)
    search = ("--configfile", CONFIG, "small.yaml")
    status, printed = project.snakemake("search", *search)
    assert status == 0, printed
    project.append("output/search/winner.yaml", "# other\n")
    jobs = project.jobs(*search, target="search")
    assert {"score winner", "synthesize winner", "pretrain winner", "search_report"} <= jobs
    assert not {job for job in jobs if "control" in job or job in ("trial", "select", "propose")}


def test_without_a_search_in_the_configuration_it_says_which_has_one(project):
    status, printed = project.snakemake("search", "--dry-run")
    assert status == 1 and "add --configfile workflow/config/search.yaml" in printed
    assert Path(project.path / CONFIG).is_file()
