"""Every id of a finding has a broken bundle in the tests that ends in it. The table of ids and bundles:

python tests/bundle/test_findings.py
"""

import re
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
sys.path[:0] = [str(REPOSITORY / folder) for folder in ("tests/bundle", "tests/evaluate", "tests/fuzz", "")]

from test_archive import HOSTILE  # noqa: E402
from test_validate import BROKEN  # noqa: E402
from test_verify import DISHONEST  # noqa: E402

SINGLE = {  # one test each, in test_verify or test_signature
    "V1": ["test_validation_is_not_trusted", "test_a_second_experiment"],
    "V2": ["test_a_signature_that_does_not_fit"],
    "S6": ["test_what_a_browser_would_run"],
    "T3": ["test_a_log_that_training_does_not_give", "test_tensors_that_the_logged_training_does_not_leave"],
    "D6": ["test_the_recipe_is_replayed", "test_rows_that_the_recipe_does_not_make"],
    "P3": ["test_false_papers"],
    "M2": ["test_deep_finds_another_merge", "test_deep_finds_an_adapter_that_changes_nothing"],
    "E4": ["test_deep_finds_one_forged_answer", "test_deep_finds_one_forged_answer_of_the_control"],
}


def stated() -> set[str]:
    """All ids that the code can give."""
    sources = "".join(path.read_text() for path in (REPOSITORY / "toolkit/bundle").rglob("*.py"))
    return set(re.findall(r'"([A-Z]\d)"', sources))


def table() -> dict[str, list[str]]:
    """Id: names of the broken bundles."""
    found: dict[str, list[str]] = {}
    cases = [(identifier, name) for name, (identifier, *_) in [*BROKEN.items(), *HOSTILE.items()]]
    cases += [(identifier, forgery.__name__) for forgery, (identifier, _) in DISHONEST.items()]
    for identifier, name in cases:
        found.setdefault(identifier, []).append(name)
    return dict(sorted((found | SINGLE).items()))


def test_every_id_has_a_broken_bundle():
    assert set(table()) == stated()
    files = ("test_verify.py", "test_signature.py")
    tests = "".join((REPOSITORY / "tests/bundle" / name).read_text() for name in files)
    assert all(f"def {name}(" in tests for names in SINGLE.values() for name in names)


if __name__ == "__main__":
    for identifier, names in table().items():
        print(f"{identifier}  {len(names):2}  {', '.join(names)}")
    print(f"{len(table())} ids, {sum(map(len, table().values()))} broken bundles")
