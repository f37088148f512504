"""Whatever stands in a member, `verify` ends with findings and `explain` with a sentence: no traceback, no
"valid", no endless reading."""

import os
import zipfile
from contextlib import suppress
from pathlib import Path
from tempfile import gettempdir

import pytest
from entry_tree import pack
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import NASTY, rebuilt

from toolkit.bundle.explain import explain
from toolkit.bundle.rebuild import near
from toolkit.bundle.verify import verify
from toolkit.bundle.zip.archive import Archive
from toolkit.errors import UserError

FEW = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def members(valid_tree, tmp_path_factory) -> list[tuple[str, bytes]]:
    """Of the valid entry."""
    archive, before = tmp_path_factory.mktemp("packed") / "submit.zip", Path.cwd()
    os.chdir(valid_tree)
    try:
        pack(archive)
    finally:
        os.chdir(before)
        (valid_tree / "output/reports/validation.json").unlink()
    with zipfile.ZipFile(archive) as packed:
        return [(name, packed.read(name)) for name in packed.namelist()]


@st.composite
def damages(draw) -> tuple[float, float, float, bytes]:
    """(member, first byte, last byte as shares, what is put there)."""
    begin, end = draw(st.tuples(st.floats(0, 1), st.floats(0, 1)))
    piece = draw(st.one_of(st.sampled_from(NASTY), st.binary(max_size=40)))
    return (
        draw(st.floats(0, 1)),
        min(begin, end),
        draw(st.sampled_from([min(begin, end), max(begin, end)])),
        piece,
    )


def damaged(
    members: list[tuple[str, bytes]], damage: tuple[float, float, float, bytes]
) -> list[tuple[str, bytes]]:
    which, begin, end, piece = damage
    place = min(int(which * len(members)), len(members) - 1)
    name, content = members[place]
    other = content[: int(begin * len(content))] + piece + content[int(end * len(content)) :]
    return [*members[:place], (name, other), *members[place + 1 :]]


@FEW
@given(damages())
def test_verify(members, tmp_path, damage):
    path, other = tmp_path / "submit.zip", damaged(members, damage)
    path.write_bytes(rebuilt(other))
    report = verify(path, make=False)
    assert report.valid == (other == members)
    for finding in report.findings:
        assert finding.file.isprintable() and finding.message.isprintable()
        assert gettempdir() not in finding.file + finding.message.replace(str(tmp_path), "")


@FEW
@given(damages())
def test_explain(members, tmp_path, damage):
    path = tmp_path / "submit.zip"
    path.write_bytes(rebuilt(damaged(members, damage)))
    with suppress(UserError):
        assert all(line.isprintable() for line in explain(path, None))


@FEW
@given(damages())
def test_near(members, damage):
    """Two files are compared whatever they hold."""
    for (name, one), (_, two) in zip(members, damaged(members, damage), strict=True):
        if one != two:
            near(name, one, two)
            near(name, two, two)


@FEW
@given(st.floats(0, 1), st.one_of(st.sampled_from(NASTY), st.binary(max_size=60)), st.integers(0, 60))
def test_archive(members, tmp_path, at, piece, gone):
    """The zip's own bytes."""
    content, path = rebuilt(members), tmp_path / "submit.zip"
    place = int(at * len(content))
    path.write_bytes(content[:place] + piece + content[place + gone :])
    with Archive(path) as archive:
        archive.scan()
