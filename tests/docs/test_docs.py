"""The documentation says what is true: diagram, figures, links, settings, lists of packages."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from toolkit.benchmarks import CONTEST

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted((ROOT / "docs").rglob("*.md"))
PAGES_ON_GITHUB = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *PAGES]
REPORTED = r"\d+\.\d\d"  # as the report prints accuracies


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and mkdocs make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ +(.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def settings(values: dict, prefix: str = "") -> set[str]:
    """Keys of a configuration with the keys of their sections before them; what an experiment is called is
    free."""
    keys = set()
    for key, value in values.items():
        name = f"{prefix}{key}"
        keys |= (
            settings(value, f"{name}.")
            if isinstance(value, dict) and key not in ("experiments", "benchmarks")
            else {name}
        )
    return keys


def requirements() -> tuple[list[str], list[str]]:
    """Lines of project.in: what the toolkit needs, what its development needs."""
    needed, _, development = (
        (ROOT / "requirements/project.in").read_text(encoding="utf-8").partition("# development\n")
    )
    assert development
    return tuple(
        [line for line in part.splitlines() if line and not line.startswith("#")]
        for part in (needed, development)
    )


def test_the_diagram_has_every_rule_and_nothing_else():
    diagram = re.search(
        r"^```mermaid\nflowchart LR\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE
    ).group(1)
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "workflow/rules").glob("*.smk"))
    rules = set(re.findall(r"^(?:rule|checkpoint) (\w+):", text, flags=re.MULTILINE))
    rules |= {f"eval_{name}" for name in CONTEST}  # defined in a loop over the benchmarks
    assert len(rules) > 15
    assert set(re.findall(r"\w+", diagram)) == rules


def test_readme_fits_on_a_few_screens():
    assert len(README.split()) <= 1000
    assert len(re.findall(r"^\|[-|]+\|$", README, flags=re.MULTILINE)) <= 3


def test_figure_table_and_page_show_the_same_scores():
    drawn = re.findall(
        rf"<text[^>]*>({REPORTED}) %</text>", (ROOT / "docs/images/scores.svg").read_text(encoding="utf-8")
    )
    assert len(drawn) == 4
    for text in (README, (ROOT / "docs/results.md").read_text(encoding="utf-8")):
        rows = [
            re.findall(REPORTED, line)[:2]
            for line in text.splitlines()
            if line.startswith(("| TextVQA, %", "| MMBench, "))
        ]
        assert [score for row in rows for score in row] == drawn


@pytest.mark.parametrize("page", PAGES_ON_GITHUB, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        linked = page if not path else (page.parent / path).resolve()
        assert linked.exists(), target
        assert linked.is_relative_to(ROOT / "docs" if page in PAGES else ROOT), (
            f"{target}: the site has docs/ only"
        )
        assert not anchor or anchor in anchors(linked), target


def test_every_page_is_in_the_table_of_contents():
    listed = re.findall(
        r": ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert sorted(listed) == sorted(page.relative_to(ROOT / "docs").as_posix() for page in PAGES)


def test_every_setting_is_explained():
    values = yaml.safe_load((ROOT / "workflow/config/tiny.yaml").read_text(encoding="utf-8"))
    explained = re.findall(
        r"^\| `([\w.]+)` \|", (ROOT / "docs/configuration.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert sorted(explained) == sorted(settings(values))


def test_every_recipe_has_a_row():
    rows = re.findall(
        r"^\| `(\w+)` \|", (ROOT / "docs/data-study.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert sorted(rows) == sorted(path.stem for path in (ROOT / "solution/recipes").glob("*.yaml"))


def test_the_glossary_is_short():
    assert (
        0
        < len(
            re.findall(r"^### ", (ROOT / "docs/glossary.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
        )
        <= 25
    )


def test_the_package_needs_what_the_locks_are_compiled_from():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (project["dependencies"], project["optional-dependencies"]["dev"]) == requirements()


def test_the_console_command_is_a_function_without_arguments():
    script = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"][
        "better-synth"
    ]
    module, _, function = script.partition(":")
    code = f"import sys; sys.argv[1:] = ['--help']; from {module} import {function}; sys.exit({function}())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "NOUN" in done.stdout


def test_hooks_and_workflow_call_what_is_there():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0][
        "hooks"
    ]
    assert {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in hooks} <= set(requirements()[1])
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert ".ci/run" in commands
    targets = re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert {command.split()[1] for command in commands if command.startswith("make ")} <= set(targets)
    target = re.search(
        r'"target": "(\w+)"', (ROOT / ".devcontainer/devcontainer.json").read_text(encoding="utf-8")
    ).group(1)
    assert f" AS {target}\n" in (ROOT / "Dockerfile").read_text(encoding="utf-8")
