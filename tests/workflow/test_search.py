"""The search's rules: rounds follow each other, a trial runs once, the ordinary rules confirm the winner."""

CONFIG = "workflow/config/search.yaml"
SMALL = "search: {rounds: 2, trials: 2}\n"


def searched(project) -> tuple[str, ...]:
    """The options of a small search."""
    (project.path / "small.yaml").write_text(SMALL)
    return "--configfile", CONFIG, "small.yaml"


def test_each_trial_runs_once_and_a_search_goes_on_where_it_was(project):
    options, winner = searched(project), "output/search/winner.yaml"
    (project.path / "fail").write_text("select")  # as good as a kill before the end
    status, printed = project.snakemake(winner, *options)
    assert status == 1 and "the disk is on fire" in printed
    trials = {path: path.stat().st_mtime_ns for path in (project.path / "output/search/trials").iterdir()}
    assert len(trials) == 6  # two a round, two finals
    (project.path / "fail").unlink()
    status, printed = project.snakemake(winner, *options)
    assert status == 0, printed
    assert trials == {path: path.stat().st_mtime_ns for path in trials}
    assert "round-1.json output/search/round-finals.json" in (project.path / winner).read_text()
    jobs = project.jobs(*options, target="search")
    assert {"score winner", "synthesize winner", "pretrain winner-seed12", "search_report"} <= jobs
    assert not jobs & {"trial", "select", "propose", "search_scores"}


def test_without_a_search_in_the_configuration_it_says_which_has_one(project):
    status, printed = project.snakemake("search", "--dry-run")
    assert status == 1 and "add --configfile workflow/config/search.yaml" in printed
