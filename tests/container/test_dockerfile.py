"""What hadolint does not know about the Dockerfile: digests, locks, users, and the same settings for both
targets."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
STAGES = {
    re.search(r" AS (\S+)", stage.splitlines()[0]).group(1): stage
    for stage in re.split(r"^FROM ", TEXT, flags=re.MULTILINE)[1:]
}


def settings(stage: str) -> list[str]:
    """Instructions of a stage, with the names of the two targets made alike."""
    lines = re.sub("cpu|cuda", "KIND", STAGES[stage], flags=re.IGNORECASE).strip().splitlines()
    return [" ".join(line.split()) for line in lines[1:]]


def test_every_base_is_a_stage_or_pinned_by_digest():
    pinned = dict(re.findall(r"^ARG (\w+)=(\S+@sha256:[0-9a-f]{64})$", TEXT, re.MULTILINE))
    assert set(pinned) == {"CPU_BASE", "CUDA_BASE", "CUDA12_BASE"}
    bases = re.findall(r"^FROM (\S+)", TEXT, re.MULTILINE)
    assert set(bases) <= {f"${{{name}}}" for name in pinned} | set(STAGES) | {"${TORCH}-system"}


def test_the_argument_chooses_base_and_lock_together():
    assert re.search(r"^ARG TORCH=cuda$", TEXT, re.MULTILINE)
    for torch, stage in {"cpu": "cpu-base", "cuda": "cuda-system", "cuda12": "cuda12-system"}.items():
        base = f"{torch.upper()}_BASE"
        assert STAGES[stage].startswith(f"${{{base}}} AS ")
        assert f"ENV TORCH={torch} TOOLKIT_IMAGE=${{{base}}}\n" in STAGES[stage]
        assert (ROOT / f"requirements/torch-{torch}.lock").is_file()


def test_both_targets_run_alike_as_a_user_without_rights():
    assert list(STAGES)[-2:] == ["cpu", "cuda"]  # a build without --target makes the last one
    assert settings("cpu") == settings("cuda")
    assert settings("cpu-packages") == settings("cuda-packages")
    assert "USER 10001:10001" in settings("cpu")
    profile = re.search(r"SNAKEMAKE_PROFILE=/app/(\S+)", STAGES["cpu"]).group(1)
    assert (ROOT / profile / "profile.yaml").is_file()


def test_packages_come_from_the_locks_and_nothing_is_fetched_otherwise():
    for kind in ("cpu", "cuda"):
        packages = STAGES[f"{kind}-packages"]
        assert "--require-hashes --requirement /requirements/uv.lock" in packages
        assert '/requirements/common.lock "/requirements/torch-${TORCH}.lock"' in packages
    assert not re.search(r"\b(curl|wget|git clone|ADD|conda)\b|https?:", TEXT)
    assert "--require-hashes" in (ROOT / "requirements/install.py").read_text()


def test_the_image_holds_the_workflow_and_what_it_reads():
    patterns = (ROOT / ".dockerignore").read_text().splitlines()
    assert patterns[1] == "*"
    kept = {pattern[1:] for pattern in patterns if pattern.startswith("!")}
    assert {
        "Snakefile",
        "workflow",
        "toolkit",
        "solution",
        "requirements",
        "pyproject.toml",
        "LICENSE",
        "CITATION.cff",
    } <= kept
    assert all((ROOT / name).exists() for name in kept)
    assert not kept & {".git", "tests", "input", "output", ".venv", ".cache"}


def test_the_entry_point_is_executable():
    entry = re.search(r'ENTRYPOINT \["/app/(\S+)"\]', STAGES["cpu"]).group(1)
    assert (ROOT / entry).stat().st_mode & 0o111 == 0o111
