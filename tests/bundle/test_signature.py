"""Signatures: of these bytes, by a key that the reviewer lists, for this purpose."""

import shutil
import subprocess
from pathlib import Path

import pytest

from toolkit.__main__ import main
from toolkit.bundle import signature
from toolkit.bundle.findings import Finding
from toolkit.bundle.verify import verify
from toolkit.errors import UserError

pytestmark = pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="OpenSSH is not installed")


@pytest.fixture
def archive(tmp_path) -> Path:
    (tmp_path / "submit.zip").write_bytes(b"PK")
    for name in ("own", "other"):
        key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", tmp_path / name]
        subprocess.run(key, check=True)
    (tmp_path / "allowed").write_text(f"team@example.org {(tmp_path / 'own.pub').read_text()}")
    return tmp_path / "submit.zip"


def test_the_signer_is_named(archive, capsys):
    assert main(["bundle", "sign", str(archive), "--key", str(archive.with_name("own"))]) == 0
    assert signature.signer(archive, archive.with_name("allowed")) == "team@example.org"
    report = verify(archive, signers=archive.with_name("allowed"))
    assert report.signer == "team@example.org" and "signed by team@example.org" in report.remarks()
    assert {finding.id for finding in report.findings} == {"Z1"}  # who signed it does not make it an entry


def unsigned(archive: Path) -> None:
    signature.file(archive).unlink()


def changed(archive: Path) -> None:
    archive.write_bytes(b"PK1")


def by_another_key(archive: Path) -> None:
    signature.sign(archive, archive.with_name("other"))


def for_another_purpose(archive: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signature, "NAMESPACE", "git")
        signature.sign(archive, archive.with_name("own"))


def damaged(archive: Path) -> None:
    signature.file(archive).write_text("-----BEGIN SSH SIGNATURE-----\n")


@pytest.mark.parametrize("forgery", [unsigned, changed, by_another_key, for_another_purpose, damaged])
def test_a_signature_that_does_not_fit(archive, forgery):
    signature.sign(archive, archive.with_name("own"))
    forgery(archive)
    finding = signature.signer(archive, archive.with_name("allowed"))
    assert isinstance(finding, Finding) and finding.id == "V2"
    report = verify(archive, signers=archive.with_name("allowed"))
    assert report.signer is None and "V2" in {finding.id for finding in report.findings}


def test_what_cannot_sign_is_said(archive, monkeypatch):
    with pytest.raises(UserError, match=r"was not signed: .*allowed"):
        signature.sign(archive, archive.with_name("allowed"))
    with pytest.raises(UserError, match="absent is not a file"):
        signature.sign(archive, archive.with_name("absent"))
    with pytest.raises(UserError, match="lists a name and a public SSH key"):
        signature.signer(archive, archive.with_name("absent"))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="ssh-keygen is missing: install OpenSSH"):
        signature.sign(archive, archive.with_name("own"))
    assert not signature.file(archive).exists()
