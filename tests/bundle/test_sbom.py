"""The bill of materials: valid CycloneDX, complete, and the same bytes from the same locks."""

import json
import re
import shutil
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from toolkit.__main__ import main
from toolkit.bundle.papers import sbom
from toolkit.contest import records
from toolkit.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def repository(tmp_path):
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_file_follows_the_schema_and_is_the_same_every_time(tmp_path):
    for name in ("a", "b"):
        assert main(["bundle", "sbom", "--output", str(tmp_path / name)]) == 0
    text = (tmp_path / "a").read_text()
    assert text == (tmp_path / "b").read_text()
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    assert error is None, str(error)[:400]
    assert (
        JsonStrictValidator(SchemaVersion.V1_6).validate_str(text.replace('"SHA-256"', '"sha256"', 1))
        is not None
    )


def test_every_locked_package_is_there_with_all_its_hashes():
    document = sbom.sbom()
    text = "".join(path.read_text() for path in records.locks(ROOT / "requirements"))
    names = [part["name"] for part in document["components"]]
    assert names == sorted(re.findall(r"^([\w.-]+)==", text, re.MULTILINE))
    listed = {
        digest["content"]
        for part in document["components"]
        for digest in part["externalReferences"][0]["hashes"]
    }
    assert listed == set(re.findall(r"sha256:([0-9a-f]{64})", text))
    for part in document["components"]:
        purl = PackageURL.from_string(part["purl"])
        assert (purl.type, purl.name, purl.version) == ("pypi", part["name"].lower(), part["version"])
    assert {f"pkg:pypi/{name}" for name in ("snakemake", "torch", "peft")} <= {
        ref.partition("@")[0] for ref in document["dependencies"][0]["dependsOn"]
    }


def test_it_names_the_locks_as_the_records_do():
    digest = records.lock()
    if digest is None:
        pytest.skip("this environment is not the locked one")
    assert sbom.sbom()["metadata"]["properties"][0]["value"] == digest


def test_another_lock_gives_another_serial_number(repository):
    before = sbom.sbom(repository)
    lock = repository / "requirements/common.lock"
    lock.write_text(re.sub(r"^tqdm==\S+", "tqdm==4.0", lock.read_text(), flags=re.MULTILINE))
    after = sbom.sbom(repository)
    assert before == sbom.sbom() and before["serialNumber"] != after["serialNumber"]
    assert [part["version"] for part in after["components"] if part["name"] == "tqdm"] == ["4.0"]


@pytest.mark.parametrize("line", ["tqdm>=4", "tqdm==4.1"])
def test_a_package_without_version_or_hash_is_refused(repository, line):
    with (repository / "requirements/common.lock").open("a") as lock:
        lock.write(f"{line}\n")
    with pytest.raises(UserError, match=re.escape(line)):
        sbom.sbom(repository)


def test_a_missing_lock_is_named(repository):
    (repository / "requirements/common.lock").unlink()
    with pytest.raises(UserError, match=r"common\.lock does not exist"):
        sbom.sbom(repository)


def test_json_keeps_the_order_that_people_read(tmp_path):
    main(["bundle", "sbom", "--output", str(tmp_path / "f")])
    assert next(iter(json.loads((tmp_path / "f").read_text()))) == "$schema"
