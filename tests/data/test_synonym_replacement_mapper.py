"""Synonyms: what changes, what must not, and that a row's result is its own."""

import pytest

from toolkit.data.operators.synonym_replacement_mapper import SYNONYMS, SynonymReplacementMapper
from toolkit.data.phrases import COLOURS, NUMBERS
from toolkit.data.samples import caption_of, text_of


def run(captions: list[str], **arguments) -> list[str]:
    batch = {"text": [text_of(caption) for caption in captions], "images": [["/x.jpg"] for _ in captions]}
    made = SynonymReplacementMapper(**arguments).process_batched(batch)
    assert len(made["text"]) == len(made["images"])
    assert all(text == text_of(caption_of(text)) for text in made["text"])
    return [caption_of(text) for text in made["text"]]


def test_the_row_stays_and_another_follows() -> None:
    assert run(["a sofa", "nothing here", "red mug"], share=1.0) == [
        "a sofa",
        "a couch",
        "nothing here",
        "red mug",
        "red cup",
    ]
    assert run(["a sofa", "nothing here"], keep_original_sample=False) == ["a couch", "nothing here"]


def test_articles_agree_and_words_that_can_be_read_stay() -> None:
    assert run(["a car on an airplane"], share=1.0)[1] == "an automobile on a plane"
    assert run(["a sofa, sign reads picture"], share=1.0)[1] == "a couch, sign reads picture"
    assert run(['a big poster with "big sea" on it', "the word mug on a star"], share=1.0) == [
        'a big poster with "big sea" on it',
        "the word mug on a star",
    ]
    assert not SYNONYMS.keys() & (COLOURS | set(NUMBERS) | {"left", "right"})


def test_the_result_depends_on_caption_and_seed_alone() -> None:
    captions = [f"a large picture of a small tv near a bike {number}" for number in range(20)]
    alone = [caption for one in captions for caption in run([one])]
    assert run(captions) == alone == run(captions)
    # at least one word each
    assert all(first != second for first, second in zip(alone[::2], alone[1::2], strict=True))
    assert run(captions, seed=1) != alone
    few, many = run(captions, share=0.0), run(captions, share=1.0)
    assert all("large" not in caption and "bike" not in caption for caption in many[1::2])
    assert sum(("large" not in caption) + ("bike" not in caption) for caption in few[1::2]) < 20


def test_a_share_beyond_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"share is 1\.5"):
        SynonymReplacementMapper(share=1.5)
