"""Synonym replacement without a model: another row with the same image whose caption says the same in other
words.

The words are few and safe: everyday words of short captions whose meaning does not hang on the context.
Colours, numbers and what can be read in the image are never touched, since questions ask for them.

    - synonym_replacement_mapper:
        share: 0.5
"""

import re
from typing import Any

from data_juicer.ops.base_op import OPERATORS, Mapper

from toolkit.data.augment import generator, with_generated
from toolkit.data.phrases import readings
from toolkit.data.samples import caption_of, text_of

NAME = "synonym_replacement_mapper"
SYNONYMS = {
    word: alternatives.split("|")
    for word, alternatives in {
        "picture": "photo|image", "photo": "picture|image", "image": "picture|photo", "photograph": "photo",
        "large": "big", "big": "large", "huge": "very large", "small": "little", "little": "small",
        "tiny": "very small", "beautiful": "lovely", "lovely": "beautiful", "elegant": "stylish",
        "stylish": "elegant", "ancient": "very old", "vintage": "old-fashioned", "modern": "contemporary",
        "simple": "plain", "plain": "simple", "colorful": "brightly colored",
        "colourful": "brightly coloured", "wooden": "wood", "near": "close to", "beside": "next to",
        "above": "over", "below": "beneath", "beneath": "below", "underneath": "below", "sofa": "couch",
        "couch": "sofa", "car": "automobile", "automobile": "car", "bike": "bicycle", "bicycle": "bike",
        "motorcycle": "motorbike", "motorbike": "motorcycle", "airplane": "plane", "woman": "lady",
        "lady": "woman", "kid": "child", "kids": "children", "child": "kid", "children": "kids",
        "infant": "baby", "purse": "handbag", "handbag": "purse", "trousers": "pants", "pants": "trousers",
        "rug": "carpet", "tv": "television", "television": "tv", "laptop": "notebook computer",
        "sitting": "seated", "seated": "sitting", "containing": "with", "featuring": "with", "mug": "cup",
        "mugs": "cups", "lamp": "light", "lamps": "lights", "forest": "woods", "ocean": "sea", "sea": "ocean",
        "sunglasses": "shades", "sneakers": "trainers", "jewelry": "jewellery", "garbage": "trash",
        "trash": "garbage", "lots of": "many", "several": "a few", "an illustration of": "a drawing of",
        "a drawing of": "an illustration of",
    }.items()
}  # fmt: skip
_WORDS = re.compile(
    r"\b(?:(an?) )?("
    + "|".join(sorted(map(re.escape, SYNONYMS), key=len, reverse=True))
    + r")\b(?![-'\u2019])",
    re.I,
)


@OPERATORS.register_module(NAME)
class SynonymReplacementMapper(Mapper):
    """Replace each word that has a synonym with the probability `share`, and at least one; a caption without
    such a word makes no row.

    Which words and by what follows from the caption and `seed`. `keep_original_sample`: keep the row as it
    was beside the new row.
    """

    _batched_op = True
    _reads = "text"

    def __init__(
        self, share: float = 0.5, seed: int = 0, keep_original_sample: bool = True, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        if not 0 <= share <= 1:
            raise ValueError(f"share is {share}, a number from 0 to 1 is expected")
        self.share, self.seed, self.keep_original_sample = share, seed, keep_original_sample

    def process_batched(self, samples: dict[str, list]) -> dict[str, list]:
        """Add a row after each row whose caption has a synonym."""
        generated = []
        for text in samples[self.text_key]:
            caption = caption_of(text)
            other = self.replace(caption)
            generated.append([] if other == caption else [{self.text_key: text_of(other)}])
        return with_generated(samples, generated, self.keep_original_sample)

    def replace(self, caption: str) -> str:
        """The caption in other words; the caption itself where none has a synonym."""
        protected = {word for reading in readings(caption) for word in reading.words.lower().split()}
        matches = [
            match for match in _WORDS.finditer(caption) if not protected & set(match.group(2).lower().split())
        ]
        if not matches:
            return caption
        random = generator(self.seed, NAME, caption)
        changes = random.random(len(matches)) < self.share
        changes[random.integers(len(matches))] = True
        # from the end: positions before stay valid
        for match, change in reversed(list(zip(matches, changes, strict=True))):
            synonyms = SYNONYMS[match.group(2).lower()]
            synonym = synonyms[random.integers(len(synonyms))]
            if change:
                start, end = match.span()
                caption = caption[:start] + _with_article(match.group(1), synonym) + caption[end:]
        return caption


def _with_article(article: str | None, other: str) -> str:
    if article is None or other.split()[0] in ("a", "an", "many"):
        return other
    return f"{'an' if other[0] in 'aeiou' else 'a'} {other}"
