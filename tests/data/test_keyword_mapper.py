"""Keywords as a caption of their own, or woven into it."""

import pytest

from toolkit.data.operators.keyword_mapper import KeywordMapper
from toolkit.data.samples import caption_of, text_of


def run(captions: list[str], **arguments) -> list[str]:
    batch = {"text": [text_of(caption) for caption in captions], "images": [["x.jpg"] for _ in captions]}
    return [caption_of(text) for text in KeywordMapper(**arguments).process_batched(batch)["text"]]


def test_keywords_make_another_row() -> None:
    captions = ["a red mug left of a blue box, sign reads nova", "a mug"]
    assert run(captions) == [captions[0], "mug, box, sign, nova", captions[1]]
    assert run(captions, top_k=2, keep_original_sample=False) == ["mug, box", "a mug"]
    assert run(captions[:1], template="{caption}; {keywords}", top_k=2)[1] == f"{captions[0]}; mug, box"


@pytest.mark.parametrize("template", ["{caption}", "{words}", "{keywords", "{0}"])
def test_a_template_must_name_the_keywords(template: str) -> None:
    with pytest.raises(ValueError, match="template is"):
        KeywordMapper(template=template)
    with pytest.raises(ValueError, match="top_k"):
        KeywordMapper(top_k=1)
