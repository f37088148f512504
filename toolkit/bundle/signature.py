"""Who handed an archive in: signatures by SSH keys (`ssh-keygen -Y`, OpenSSH 8.2), checked offline.

    python -m toolkit bundle sign submit.zip --key ~/.ssh/id_ed25519
    python -m toolkit bundle verify submit.zip --signer allowed_signers

A signature says whose key signed these bytes, and nothing of how they came about.
"""

import subprocess
from pathlib import Path

from toolkit.bundle.findings import Finding
from toolkit.errors import UserError
from toolkit.files import atomic

NAMESPACE = "better-synth-submission"  # a signature of something else is none of an entry
SECONDS = 3600  # a passphrase may be typed, 20 GB are hashed


def file(archive: Path) -> Path:
    """Where an archive's signature lies."""
    return archive.with_name(f"{archive.name}.sig")


def sign(archive: Path, key: Path) -> Path:
    """Write the signature beside the archive. key: a private SSH key, or the public half of one that an agent
    holds. UserError where OpenSSH cannot sign."""
    for path in (archive, key):
        if not path.is_file():
            raise UserError(f"{path} is not a file")
    done = _keygen(["sign", "-f", str(key)], archive)
    if done.returncode:
        raise UserError(f"{archive} was not signed: {_reason(done)}")
    with atomic(file(archive)) as temporary:
        temporary.write_bytes(done.stdout)
    return file(archive)


def signer(archive: Path, allowed: Path) -> str | Finding:
    """The name in `allowed` (ssh-keygen's ALLOWED SIGNERS: a name and a public key a line) whose key signed
    the archive; V2 where nobody there did. UserError where the file or OpenSSH is missing."""
    if not allowed.is_file():
        raise UserError(f"{allowed} is not a file: it lists a name and a public SSH key a line")
    signature, remedy = file(archive), "ask the sender for the archive and its .sig once more"
    if not signature.is_file():
        return Finding("V2", signature.name, "the signature is missing", remedy)
    given = ["-f", str(allowed), "-s", str(signature)]
    known = _keygen(["find-principals", *given], archive)
    name = known.stdout.decode(errors="replace").partition("\n")[0].strip()
    if known.returncode or not name:
        return Finding("V2", signature.name, f"the key is none of {allowed.name}: {_reason(known)}", remedy)
    done = _keygen(["verify", *given, "-I", name], archive)
    if done.returncode:
        return Finding("V2", signature.name, f"does not sign this archive: {_reason(done)}", remedy)
    return name


def _keygen(arguments: list[str], archive: Path) -> subprocess.CompletedProcess[bytes]:
    """`ssh-keygen -Y` with the archive as its input."""
    with archive.open("rb") as handle:
        try:
            return subprocess.run(
                ["ssh-keygen", "-Y", arguments[0], "-n", NAMESPACE, *arguments[1:]],
                stdin=handle,
                capture_output=True,
                timeout=SECONDS,
                check=False,
            )
        except FileNotFoundError:
            raise UserError("ssh-keygen is missing: install OpenSSH 8.2 or newer") from None
        except subprocess.TimeoutExpired:
            raise UserError(f"ssh-keygen did not end within {SECONDS} s") from None


def _reason(done: subprocess.CompletedProcess[bytes]) -> str:
    """The last line that ssh-keygen printed."""
    lines = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"ssh-keygen ended with status {done.returncode}"
