"""A seed set of the contestant's own: a reviewer does not have it, and its files are no missing ones."""

import io
from types import SimpleNamespace

import pytest
import yaml

from toolkit import assets
from toolkit.bundle.zip.packed import Inputs, Packed
from toolkit.contest import ruleset
from toolkit.errors import UserError

OWN = {"kind": "own", "role": "mine", "serves": "seed", "licence": "none", "files": {"samples": "rows.jsonl"}}


def packed(tmp_path, content):
    """An archive whose solution/assets.yaml is this one."""
    body = yaml.safe_dump(content).encode()
    archive = SimpleNamespace(
        members={str(assets.OWN): SimpleNamespace(size=len(body))}, open=lambda name: io.BytesIO(body)
    )
    return Packed(archive, tmp_path / "copies", "synth", ruleset.load("embedded"), Inputs(None, tmp_path))


def test_an_asset_that_the_entry_names_is_elsewhere(tmp_path):
    entry = packed(tmp_path, {"mine": OWN})
    assert entry.outside("input/mine/rows.jsonl")
    assert not entry.outside("input/other/rows.jsonl")  # nobody knows it: it is missing
    assert "mine" not in assets.registry()


def test_an_entry_cannot_bring_an_address_or_take_a_name(tmp_path):
    address = {**OWN, "kind": "url", "downloads": [{"name": "x", "url": "http://a.org/x"}]}
    for content in ({"mine": address}, {"world-seed": OWN}, {"../x": OWN}):
        with pytest.raises(UserError, match=r"assets\.yaml "):
            packed(tmp_path, content)
        (tmp_path / "copies/solution/assets.yaml").unlink()
