"""Captions against the Hugging Face models one image at a time; what a caption may not depend on;
sampling."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_data import columns

from toolkit.data import batches
from toolkit.data.batches import compute

pytestmark = pytest.mark.usefixtures("offline")


def captions(rows: list[dict], model: Path, **arguments: object) -> list[str]:
    from toolkit.data.operators.batched_captioning_mapper import BatchedCaptioningMapper

    operator = BatchedCaptioningMapper(
        hf_img2seq=str(model), **{"max_new_tokens": 12, "rows_at_once": 8, **arguments}
    )
    return operator.process_batched(columns(rows))["text"]


def one_by_one(rows: list[dict], model: Path, text: str | None) -> list[str]:
    """Greedy captions as Hugging Face's own examples make them."""
    import torch
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    captioner = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).eval()
    processor, said = AutoProcessor.from_pretrained(model), []
    for row in rows:
        image = Image.open(row["images"][0]).convert("RGB")
        inputs = processor(images=image, return_tensors="pt", **({"text": text} if text else {}))
        tokens = captioner.generate(**inputs, max_new_tokens=12, do_sample=False)[
            0, inputs.input_ids.shape[1] if text else 0 :
        ]
        said.append(
            f"<__dj__image>\n{processor.decode(tokens, skip_special_tokens=True).strip()} <|__dj__eoc|>"
        )
    return said


def test_captions_are_those_of_greedy_generation_one_by_one(
    rows: list[dict], captioner: Path, chat: Path
) -> None:
    for model, prompt, text in (
        (captioner, None, None),
        (captioner, "a red", "a red"),
        (chat, "left of the tree", "<image> left of the tree the sign reads"),
    ):
        expected = one_by_one(rows, model, text)
        # on the CPU: beside a GPU the operator computes in bf16
        assert captions(rows, model, prompt=prompt, accelerator="cpu") == expected
        assert len(set(expected)) > 3  # the model does look at the image


@pytest.mark.numerics
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_caption_depends_on_its_image_alone(rows: list[dict], captioner: Path, temperature: float) -> None:
    expected = captions(rows, captioner, temperature=temperature)
    for size in (2, 32):
        assert captions(rows, captioner, temperature=temperature, rows_at_once=size) == expected
    assert captions(rows[::-1], captioner, temperature=temperature) == expected[::-1]
    one_at_a_time = [
        caption for row in rows[:4] for caption in captions([row], captioner, temperature=temperature)
    ]
    assert one_at_a_time == expected[:4]


def test_the_model_gets_batches_of_one_shape() -> None:
    import torch

    seen = []

    def model(inputs: dict) -> list[float]:
        seen.append(tuple(inputs["x"].shape))
        assert torch.get_num_threads() == 1 and torch.is_inference_mode_enabled()
        return (2 * inputs["x"][:, 0]).tolist()

    def prepare(items: list[int]) -> dict:
        return {"x": torch.tensor(items)[:, None].expand(-1, 3 if items[0] % 2 else 5)}

    items = [4, 1, 8, 3, 5, 7, 6]
    found = compute(items, prepare, model, 3, torch.device("cpu"), group=lambda item: item % 2)
    assert found == [2 * item for item in items]
    assert sorted(seen) == [(3, 3), (3, 3), (3, 5)]
    assert compute([], prepare, model, 3, torch.device("cpu")) == []


def test_the_next_batch_is_received_while_the_model_has_one() -> None:
    received, second = [], threading.Event()

    def inputs() -> Iterator[int]:
        for batch in (1, 2, 3):
            received.append((batch, threading.current_thread() is threading.main_thread()))
            if batch == 2:
                second.set()
            yield batch
        raise OSError("a worker died")

    coming = batches._ahead(inputs())
    assert next(coming) == 1 and second.wait(10)  # nobody has asked for it
    assert [next(coming), next(coming)] == [2, 3]
    assert received == [(1, True), (2, False), (3, False)]  # the first starts processes
    with pytest.raises(OSError, match="a worker died"):
        next(coming)
    assert list(batches._ahead(iter(()))) == []


def test_samples_follow_the_models_probabilities(rows: list[dict]) -> None:
    import torch

    from toolkit.data.operators.batched_captioning_mapper import SeededNoise

    seeds = torch.randint(-(2**62), 2**62, (40_000,), generator=torch.Generator().manual_seed(1))
    logits = torch.tensor([0.0, 1.0, 2.0, -float("inf"), -1.0])
    for position in (1, 2):
        noisy = SeededNoise(seeds)(torch.zeros(len(seeds), position), logits.expand(len(seeds), -1))
        drawn = noisy.argmax(1)
        share = torch.bincount(drawn, minlength=5) / len(seeds)
        assert share.tolist() == pytest.approx(logits.softmax(0).tolist(), abs=0.01)  # 4 standard deviations
    other = SeededNoise(seeds)(torch.zeros(len(seeds), 3), logits.expand(len(seeds), -1)).argmax(1)
    agreement = (logits.softmax(0) ** 2).sum().item()  # of independent draws
    assert (other == drawn).float().mean().item() == pytest.approx(agreement, abs=0.015)


def test_sampling_is_seeded_and_varied(rows: list[dict], captioner: Path) -> None:
    settings = {"temperature": 1.5, "caption_num": 3}
    drawn = captions(rows, captioner, **settings)
    assert drawn == captions(rows, captioner, **settings) and len(drawn) == 3 * len(rows)
    assert all(len(set(drawn[start : start + 3])) > 1 for start in range(0, len(drawn), 3))
    assert drawn[::3] == captions(rows, captioner, temperature=1.5)
    assert drawn[::3] != captions(rows, captioner, temperature=1.5, seed=1)
    greedy = captions(rows, captioner)
    # only the most likely token is left
    assert captions(rows, captioner, temperature=1.5, top_p=1e-6) == greedy != drawn[::3]


def test_rows_are_multiplied_in_order(rows: list[dict], captioner: Path) -> None:
    from toolkit.data.operators.batched_captioning_mapper import BatchedCaptioningMapper

    operator = BatchedCaptioningMapper(
        hf_img2seq=str(captioner), max_new_tokens=4, caption_num=2, temperature=1.0, keep_original_sample=True
    )
    assert operator._reads == "both" and BatchedCaptioningMapper(hf_img2seq=str(captioner))._reads == "image"
    made = operator.process_batched({**columns(rows[:3]), "id": [row["id"] for row in rows[:3]]})
    assert made["id"] == [row["id"] for row in rows[:3] for _ in range(3)]
    assert made["text"][::3] == [row["text"] for row in rows[:3]]
    assert made["images"][::3] == made["images"][1::3] == made["images"][2::3]
    assert len({id(statistics) for statistics in made["__dj__stats__"]}) == 9


def test_what_cannot_be_captioned_is_refused(rows: list[dict], captioner: Path, chat: Path) -> None:
    with pytest.raises(ValueError, match="exactly one image"):
        captions([{**rows[0], "images": rows[0]["images"] * 2}], captioner)
    with pytest.raises(ValueError, match="at temperature 0 all captions"):
        captions(rows, captioner, caption_num=2)
    with pytest.raises(ValueError, match="give a prompt"):
        captions(rows, chat)
