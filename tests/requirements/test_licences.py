"""Every locked package has a licence that is allowed, and the page lists it."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LICENCES = runpy.run_path(str(ROOT / "requirements/licences.py"))


def test_the_page_lists_every_locked_package_and_none_is_refused():
    try:
        page = LICENCES["page"]()
    except SystemExit as stop:
        if "torch is installed in version" in str(stop):  # of a lock for CUDA
            pytest.skip(str(stop))
        raise
    assert page == (ROOT / "docs/licences.md").read_text(encoding="utf-8")
    listed = {
        name.removesuffix(" (1)")
        for row in page.splitlines()
        if row.startswith("| ")
        for name in row.split("|")[2].strip().split(", ")
    }
    assert listed >= LICENCES["locked"]().keys()


@pytest.mark.parametrize(
    ("expression", "verdict"),
    [
        ("MIT", True),
        ("MIT AND (Apache-2.0)", True),
        ("GPL-3.0 OR MIT", True),
        ("MIT AND GPL-3.0", False),
        ("GPL-3.0-only", False),
        ("unknown", False),
        ("", False),
    ],
)
def test_a_licence_is_allowed_where_all_of_its_parts_are(expression, verdict):
    assert LICENCES["allowed"](expression) is verdict


def test_a_licence_that_nobody_allowed_is_refused(monkeypatch):
    monkeypatch.setitem(LICENCES["page"].__globals__, "licence", lambda package, version: "SSPL-1.0")
    with pytest.raises(
        SystemExit, match=r"has the licence SSPL-1\.0, which requirements/licences\.py does not"
    ):
        LICENCES["page"]()
