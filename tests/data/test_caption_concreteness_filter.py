"""The concreteness filter: the classifier's one logit, whatever stands beside a row."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, RobertaConfig, RobertaForSequenceClassification
from world_rows import ZOO, depends_on_its_row_alone, row, statistics

from toolkit import assets

pytestmark = pytest.mark.usefixtures("offline")
NAME = "caption_concreteness"
TEXTS = ["", "mug", "!?", "一个红色的杯子", "a red mug left of a blue box", "a red mug " * 300]


def classifier(folder: Path, labels: int = 1) -> Path:
    """A tiny random RoBERTa with a tokenizer of the zoo."""
    torch.manual_seed(1)
    words = AutoTokenizer.from_pretrained(ZOO / "sentences")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = RobertaConfig(
        vocab_size=len(words),
        max_position_embeddings=514,
        pad_token_id=words.pad_token_id,
        num_labels=labels,
        initializer_range=0.5,
        **sizes,
    )
    RobertaForSequenceClassification(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier(tmp_path_factory.mktemp("icc"))


def concreteness(folder: Path, **arguments: Any) -> Any:
    from toolkit.data.operators.caption_concreteness_filter import CaptionConcretenessFilter

    return CaptionConcretenessFilter(hf_concreteness=str(folder), rows_at_once=4, **arguments)


def test_the_statistic_is_the_logit_of_the_caption_alone(folder: Path) -> None:
    model = RobertaForSequenceClassification.from_pretrained(folder).eval()
    words = AutoTokenizer.from_pretrained(folder)
    rows = [row(text) for text in TEXTS]
    scores = statistics(concreteness(folder), rows, NAME)
    assert len(set(scores)) == len(TEXTS)
    for text, value in zip(TEXTS, scores, strict=True):
        inputs = words([text.strip()], truncation=True, max_length=512, return_tensors="pt")
        with torch.inference_mode():
            expected = model(inputs.input_ids, inputs.attention_mask).logits.item()
        assert value == pytest.approx(expected, abs=1e-3)
    depends_on_its_row_alone(concreteness(folder), rows, NAME)
    assert concreteness(folder)._reads == "text" and statistics(concreteness(folder), [], NAME) == []


def test_limits_keep_what_lies_between_and_scores_above_one(folder: Path) -> None:
    def kept(**limits: float) -> list[bool]:
        operator = concreteness(folder, **limits)
        return [operator.process_single({"__dj__stats__": {NAME: value}}) for value in (-0.1, 0.5, 1.2)]

    assert kept() == [False, True, True]
    assert kept(min_score=-1, max_score=1) == [True, True, False]


def test_a_classifier_of_several_classes_is_refused(tmp_path: Path) -> None:
    operator = concreteness(classifier(tmp_path, labels=3))
    with pytest.raises(ValueError, match="holds a classifier of 3 classes"):
        statistics(operator, [row("a red mug")], NAME)


def test_the_asset_has_the_files_that_the_operator_reads() -> None:
    entry = assets.entry("icc")
    assert isinstance(entry, assets.Hub) and entry.serves == "concreteness"
    assert {file.name for file in entry.downloads} >= {"config.json", "tokenizer.json", "model.safetensors"}
