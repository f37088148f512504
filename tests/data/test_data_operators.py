"""The project's own operators against the Hugging Face models and Data-Juicer's stock operator."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_data import ROOT, run_python, seed_set

from toolkit.data import juicer


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As in Data-Juicer's workers."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with juicer.offline():
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("rows")
    return [{**row, "images": [str(folder / row["images"][0])]} for row in seed_set(folder, 21)]


def batches(rows: list[dict], size: int) -> Iterator[dict[str, list]]:
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        yield {"text": [row["text"] for row in part], "images": [row["images"] for row in part], "__dj__stats__": [{} for _ in part]}


def captions(rows: list[dict], model: Path, size: int) -> list[str]:
    from toolkit.data.operators.greedy_captioning_mapper import GreedyCaptioningMapper

    operator = GreedyCaptioningMapper(hf_img2seq=str(model), max_new_tokens=12, batch_size=size)
    return [text for batch in batches(rows, size) for text in operator.process_batched(batch)["text"]]


def test_captions_are_those_of_greedy_generation_one_by_one(rows: list[dict], captioner: Path) -> None:
    import torch
    from PIL import Image
    from transformers import AutoProcessor, Blip2ForConditionalGeneration

    model = Blip2ForConditionalGeneration.from_pretrained(captioner, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(captioner)
    expected = []
    for row in rows:
        inputs = processor(images=Image.open(row["images"][0]).convert("RGB"), return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)
        expected.append(f"<__dj__image>\n{processor.decode(tokens[0], skip_special_tokens=True).strip()} <|__dj__eoc|>")
    assert captions(rows, captioner, 8) == expected
    assert len(set(expected)) > 3  # the model does look at the image


def test_batch_size_and_order_do_not_change_a_caption(rows: list[dict], captioner: Path) -> None:
    expected = captions(rows, captioner, 1)
    for size in (2, 8, 64):
        assert captions(rows, captioner, size) == expected
    assert captions(rows[::-1], captioner, 8) == expected[::-1]


def test_similarity_is_that_of_the_stock_operator(rows: list[dict], clip: Path) -> None:
    from data_juicer.ops.filter.image_text_similarity_filter import ImageTextSimilarityFilter

    from toolkit.data.operators.batched_similarity_filter import BatchedSimilarityFilter

    stock = ImageTextSimilarityFilter(hf_clip=str(clip))
    expected = [stock.compute_stats_single({**row, "__dj__stats__": {}})["__dj__stats__"]["image_text_similarity"] for row in rows]
    by_size = {}
    for size in (1, 8):
        operator = BatchedSimilarityFilter(hf_clip=str(clip), min_score=expected[3][0] - 1e-6, batch_size=size)
        found = [stats for batch in batches(rows, size) for stats in operator.compute_stats_batched(batch)["__dj__stats__"]]
        by_size[size] = [value["image_text_similarity"] for value in found]
        assert [len(value) for value in by_size[size]] == [1] * len(rows)
        for value, other in zip(by_size[size], expected, strict=True):
            assert value == pytest.approx(other, abs=1e-6)
        kept = [operator.process_single({"__dj__stats__": stats}) for stats in found]
        assert kept == [value[0] >= expected[3][0] - 1e-6 for value in expected] and 0 < sum(kept) < len(kept)


def test_a_row_without_its_image_is_refused(rows: list[dict], clip: Path, captioner: Path) -> None:
    from toolkit.data.operators.batched_similarity_filter import BatchedSimilarityFilter

    batch = {"text": ["<__dj__image> a"], "images": [[]], "__dj__stats__": [{}]}
    with pytest.raises(ValueError, match="exactly one image"):
        BatchedSimilarityFilter(hf_clip=str(clip)).compute_stats_batched(batch)
    with pytest.raises(ValueError, match="exactly one image"):
        captions([{**rows[0], "images": rows[0]["images"] * 2}], captioner, 2)


def test_the_folder_is_a_custom_operator_path_of_stock_data_juicer() -> None:
    code = (
        "import toolkit\n"  # makes torchvision importable
        "from data_juicer.config.config import load_custom_operators\n"
        "from data_juicer.ops import OPERATORS\n"
        "load_custom_operators(['toolkit/data/operators'])\n"
        "print(*sorted({'greedy_captioning_mapper', 'batched_similarity_filter'} & OPERATORS.modules.keys()))\n"
    )
    assert run_python("-c", code).stdout.split() == ["batched_similarity_filter", "greedy_captioning_mapper"]
    assert (ROOT / "toolkit/data/operators/__init__.py").is_file()
