"""The bill of materials: valid CycloneDX, complete, and the same bytes from the same locks."""

import json
import re
import shutil
import subprocess
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


@pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="this machine has no dpkg")
def test_the_images_bill_lists_the_system_packages_too(tmp_path):
    assert main(["bundle", "sbom", "--system", "--output", str(tmp_path / "image")]) == 0
    text = (tmp_path / "image").read_text()
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    assert error is None, str(error)[:400]
    document, locked = json.loads(text), sbom.sbom()
    count = len(locked["components"])
    assert document["components"][:count] == locked["components"]
    assert document["serialNumber"] != locked["serialNumber"]
    packages = document["components"][count:]
    for part in packages:
        purl = PackageURL.from_string(part["purl"])
        assert (purl.type, purl.name, purl.version) == ("deb", part["name"], part["version"])
        assert purl.to_string() == part["purl"] and purl.qualifiers.keys() == {"arch", "distro"}
    format_line = ["dpkg-query", "-f", "${Version}\n", "-W", "dpkg"]
    version = subprocess.run(format_line, check=True, capture_output=True, text=True).stdout.strip()
    assert [part["version"] for part in packages if part["name"] == "dpkg"] == [version]


def test_removed_packages_are_left_out_and_a_machine_without_dpkg_is_named(tmp_path, monkeypatch, capsys):
    listing = "installed\tg++\t4:12.2.0-3\tamd64\nconfig-files\told\t1\tall\n"
    (tmp_path / "dpkg-query").write_text(f"#!/bin/sh\nprintf '{listing}'\n")
    (tmp_path / "dpkg-query").chmod(0o755)
    monkeypatch.setattr("platform.freedesktop_os_release", lambda: {"ID": "debian", "VERSION_ID": "12"})
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    (package,) = sbom.system_packages()
    assert package["purl"] == "pkg:deb/debian/g%2B%2B@4:12.2.0-3?arch=amd64&distro=debian-12"
    monkeypatch.setenv("PATH", "")
    assert main(["bundle", "sbom", "--system", "--output", str(tmp_path / "image")]) == 1
    assert "--system is for Debian and Ubuntu" in capsys.readouterr().err


def test_json_keeps_the_order_that_people_read(tmp_path):
    main(["bundle", "sbom", "--output", str(tmp_path / "f")])
    assert next(iter(json.loads((tmp_path / "f").read_text()))) == "$schema"
