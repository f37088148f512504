"""The members' HD variants: a first stage that reads less of an image than the second, whose model is merged,
proved and asked."""

import json

import pytest
from PIL import Image
from tiny_training import SHORT, finetune, merge, pretrain

from toolkit.ask import MGM
from toolkit.mgm.checkpoint import build, load_checkpoint
from toolkit.scales import Sight

pytestmark = pytest.mark.numerics
LESS = Sight(**{name: getattr(SHORT, name) for name in Sight.model_fields})
MORE = {"model_max_length": 512, "image_size_aux": 256, "image_grid": 2, "image_global": True}
HD = SHORT.model_copy(update=MORE | {"image_tokens": 5 * SHORT.image_tokens, "first_stage": LESS})


def settings(folder):
    value = json.loads((folder / "config.json").read_text())
    names = ("tokenizer_model_max_length", "image_size_aux", "image_grid", "image_global")
    return [value[name] for name in names]


@pytest.mark.parametrize("division", ["open", "closed"])
def test_a_model_that_reads_more_in_its_second_stage(parts, conversations, tmp_path, monkeypatch, division):
    monkeypatch.setattr("toolkit.train.merge.load", lambda name: HD)
    first, second = tmp_path / "pretrain", tmp_path / "MGM-Tiny-Finetune-hd"
    pretrain(parts, conversations, first, scale=HD)
    assert settings(first) == [256, 128, 1, False]
    finetune(parts, conversations, first / "mm_projector.bin", second, division, scale=HD)
    assert settings(second) == [512, 256, 2, True]
    # the first stage is that of the model without HD, to the byte
    pretrain(parts, conversations, tmp_path / "plain", scale=SHORT)
    projector = "mm_projector.bin"
    assert (first / projector).read_bytes() == (tmp_path / "plain" / projector).read_bytes()
    assert merge(parts, second) == 0
    assert json.loads((second / "merge.json").read_text())["results"]["tensors_changed"] > 0
    folder = second / "merged" if division == "open" else second
    model = load_checkpoint(folder)
    plain = build(parts.llm, parts.clip, parts.convnext, image_size_aux=128)
    assert model.tokens_per_image == 5 * plain.tokens_per_image
    asked = MGM.load(second, device="cpu", batch_size=4)
    images = [Image.new("RGB", (90, 60), colour) for colour in ("red", "blue", "green")]
    alone = [asked.answer(image, "what is this?", 8) for image in images]
    assert list(asked.answers([(image, "what is this?") for image in images], 8)) == alone
