"""The frozen table: a changed byte is a changed contest."""

import hashlib
from pathlib import Path

import pytest

from toolkit import scales
from toolkit.data.samples import QUESTION_TOKENS
from toolkit.errors import UserError

PINNED = {
    "rehearsal_2b": "82bfaa0ca1d7516f",
    "baseline_10k": "4ef7f2336abe6cdb",
    "finals_5k": "c657b0f50ff8ad51",
    "family_7b": "f240608c9283313d",
    "family_8b": "97f4ed411d02ac3e",
    "family_13b": "cfa6396db712a68b",
    "family_7b_hd": "1c459daf6d4a31ab",
    "family_8b_hd": "950789ccc7817cc5",
    "family_13b_hd": "a8cce135a75aaef8",
    "tiny_llama": "df2873ad4f0deab7",
    "tiny": "7cc9dadbd259779d",
    "track_200k": "78f419eb436fa7cc",
}


def test_the_files_are_the_pinned_ones():
    actual = {
        path.stem: hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for path in Path(scales.__file__).parent.glob("*.yaml")
    }
    assert actual == PINNED


@pytest.mark.parametrize("name", ["baseline_10k", "track_200k"])
def test_the_kits_numbers(name):
    scale = scales.load(name)
    closed = scale.finetune["closed"]
    assert (scale.cap, scale.model_max_length, scale.image_size_aux) == (200_000, 2048, 768)
    assert (scale.image_tokens, scale.question_tokens) == (576, QUESTION_TOKENS)
    assert (scale.pretrain.global_batch, scale.pretrain.learning_rate, scale.pretrain.image_aspect_ratio) == (
        256,
        1e-3,
        "square",
    )
    assert (closed.global_batch, closed.learning_rate, closed.image_aspect_ratio) == (128, 2e-5, "pad")
    assert closed.group_by_modality_length and not scale.pretrain.group_by_modality_length


@pytest.mark.parametrize(
    ("name", "templates", "micro"),
    [
        ("family_7b", ("plain", "v1"), (16, 8)),
        ("family_8b", ("llama_3", "llama_3"), (16, 8)),
        ("family_13b", ("plain", "v1"), (8, 4)),
    ],
)
def test_the_published_recipes_of_the_family(name, templates, micro):
    """Of the scripts stage_1_2_full_*_336_hr_768: global batches, rates and lengths are MGM-2B's."""
    scale, contest = scales.load(name), scales.load("baseline_10k")
    closed = scale.finetune["closed"]
    assert (scale.caption_template or scale.template, scale.template) == templates
    assert (scale.pretrain.micro_batch, closed.micro_batch) == micro
    same = {"micro_batch"}
    assert scale.pretrain.model_dump(exclude=same) == contest.pretrain.model_dump(exclude=same)
    assert closed.model_dump(exclude=same) == contest.finetune["closed"].model_dump(exclude=same)
    assert (scale.model_max_length, scale.image_size_aux, scale.image_tokens) == (2048, 768, 576)
    assert (scale.image_grid, scale.image_global, scale.first_stage) == (1, False, None)


@pytest.mark.parametrize("member", ["family_7b", "family_8b", "family_13b"])
def test_the_published_recipes_of_the_hd_variants(member):
    """Of the scripts *_672_hr_1536, which train the second stage after that of the member without HD."""
    scale, plain = scales.load(f"{member}_hd"), scales.load(member)
    first, second = scale.sight(scale.pretrain), scale.sight(scale.finetune["open"])
    assert first.settings() == plain.settings() and first.image_tokens == plain.image_tokens
    assert list(second.settings().values()) == [4096, 1536, 2, True] and second.image_tokens == 5 * 576
    assert scale.pretrain == plain.pretrain and scale.template == plain.template
    assert scale.caption_template == plain.caption_template
    for division, stage in scale.finetune.items():
        assert stage == plain.finetune[division].model_copy(update={"micro_batch": 4})


def test_an_unknown_scale_names_the_known_ones():
    known = (
        "baseline_10k, family_13b, family_13b_hd, family_7b, family_7b_hd, family_8b, family_8b_hd, "
        "finals_5k, rehearsal_2b, tiny, tiny_llama"
    )
    with pytest.raises(UserError, match=known):
        scales.load("huge")


def test_numbers_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        scales.load("tiny").cap = 10
