"""Data-Juicer's own operators under their own names, repaired where they are wrong for short, empty or plain
rows (docs/operators.md).

- Filters of texts measure the two markers with the caption, in a short caption mostly them, so a limit on a
  ratio is one on the length. Here they measure the caption, and with `count_markers: true` the whole text,
  which published limits are meant for.
- Deduplicators give one hash to every text that is shorter than a window, to every text of which a pattern
  leaves nothing, and to every picture of one colour, and so call all of them repeats of the first. They also
  take a whole sentence without spaces for one word, and the tokens' characters for the caption's. Here what
  has no features repeats only its equal.
- Filters of an image's width and height decode it for them; its header says both.
- The mapper of broken Unicode looks for it in plain ASCII too, where there is none.
- The random selector repeats rows when it is asked for more than there are, and keeps all when a share of
  them is less than one.
"""

import hashlib
import re
from collections.abc import Iterator
from functools import lru_cache, wraps
from typing import Annotated, Any

import numpy as np
from data_juicer.ops.base_op import OPERATORS
from data_juicer.ops.deduplicator import document_deduplicator as exact
from data_juicer.ops.deduplicator import document_minhash_deduplicator as minhash
from data_juicer.ops.deduplicator import document_simhash_deduplicator as simhash
from data_juicer.ops.deduplicator import image_deduplicator as image
from data_juicer.ops.filter import image_aspect_ratio_filter as ratio
from data_juicer.ops.filter import image_shape_filter as shape
from data_juicer.ops.mapper import fix_unicode_mapper as unicode
from data_juicer.ops.selector import random_selector as random
from data_juicer.utils.constant import Fields, HashKeys, StatsKeys, StatsKeysConstant
from data_juicer.utils.mm_utils import load_data_with_context, load_image, remove_special_tokens
from data_juicer.utils.sample import random_sample
from pydantic import Field

from toolkit.data.duplicates import thumbnail
from toolkit.data.words import spaced
from toolkit.images import size_of

TEXT_FILTERS = (
    "alphanumeric_filter",
    "average_line_length_filter",
    "character_repetition_filter",
    "flagged_words_filter",
    "language_id_score_filter",
    "maximum_line_length_filter",
    "perplexity_filter",
    "special_characters_filter",
    "stopwords_filter",
    "text_length_filter",
    "token_num_filter",
    "word_repetition_filter",
    "words_num_filter",
)
# The column of captions while a filter measures them. Words that filters share are kept by their column, so
# those of captions and of whole texts are not taken for each other.
CAPTION = "caption"

# Data-Juicer looks up and notes the caller of each access, several a row, for a search that is not run here
for _name in vars(StatsKeysConstant):
    if not _name.startswith("_"):
        setattr(StatsKeys, _name, getattr(StatsKeysConstant, _name))
# printable ASCII and ends of lines, of which ftfy changes nothing; but & may begin a name of HTML's
PLAIN = re.compile(r"[\n\t -%'-~]*")

# one operator after another asks for the captions of the same rows
caption_of = lru_cache(maxsize=1024)(remove_special_tokens)


def _of_captions(stock: type) -> type:
    """A stock filter of texts that measures captions, or with `count_markers` whole texts."""
    batched = "compute_stats_batched" in vars(stock)
    method = "compute_stats_batched" if batched else "compute_stats_single"
    compute = vars(stock)[method]

    class OfCaptions(stock):
        __doc__, _reads = stock.__doc__, "text"

        def __init__(self, *args: Any, count_markers: bool = False, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.count_markers = count_markers

    @wraps(compute)
    def compute_of_captions(self: Any, samples: Any, *args: Any, **kwargs: Any) -> Any:
        if self.count_markers:
            return compute(self, samples, *args, **kwargs)
        column, texts = self.text_key, samples[self.text_key]
        captions = [caption_of(text) for text in texts] if batched else caption_of(texts)
        self.text_key = CAPTION
        try:
            compute(self, {**samples, CAPTION: captions}, *args, **kwargs)  # fills in the statistics
        finally:
            self.text_key = column
        return samples

    setattr(OfCaptions, method, compute_of_captions)
    OfCaptions.__name__ = OfCaptions.__qualname__ = stock.__name__
    return OfCaptions


for _name in TEXT_FILTERS:
    _filter = _of_captions(OPERATORS.modules[_name])
    OPERATORS.register_module(_name, _filter, force=True)
    globals()[_filter.__name__] = _filter  # Data-Juicer pickles operators, which looks for their classes here


def _size(path: str, kept: dict[str, Any]) -> tuple[int, int]:
    """Width and height of an image; `kept`, which the operators of a row share, has them for the next one."""
    name = f"size of {path}"
    if name not in kept:
        kept[name] = size_of(path)
    return kept[name]


def _sizes(
    samples: dict[str, Any], column: str, context: bool
) -> Iterator[tuple[dict[str, Any], list[tuple[int, int]]]]:
    """(statistics, sizes of its images) of each row; column: of the images' paths."""
    rows = samples[column]
    contexts = samples[Fields.context] if context else [{} for _ in rows]
    for statistics, images, kept in zip(samples[Fields.stats], rows, contexts, strict=True):
        yield statistics, [_size(path, kept) for path in images]


@OPERATORS.register_module("image_shape_filter", force=True)
class ImageShapeFilter(shape.ImageShapeFilter):
    """Keep rows by the width and height of their images, pixels, as their headers say them."""

    def compute_stats_batched(self, samples: dict[str, Any], context: bool = False) -> dict[str, Any]:
        """Add both statistics, a number an image."""
        for statistics, sizes in _sizes(samples, self.image_key, context):
            statistics[StatsKeys.image_width] = [width for width, _ in sizes]
            statistics[StatsKeys.image_height] = [height for _, height in sizes]
        return samples


@OPERATORS.register_module("image_aspect_ratio_filter", force=True)
class ImageAspectRatioFilter(ratio.ImageAspectRatioFilter):
    """Keep rows by width / height of their images, as their headers say them."""

    def compute_stats_batched(self, samples: dict[str, Any], context: bool = False) -> dict[str, Any]:
        """Add the statistic, a number an image."""
        for statistics, sizes in _sizes(samples, self.image_key, context):
            statistics[StatsKeys.aspect_ratios] = [width / height for width, height in sizes]
        return samples


def _digest64(text: str) -> int:
    """64 bits of a text's digest."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


class _Caption:
    """Hashes a row's caption cut into words, and by its digest if that hash is that of an empty text."""

    _reads = "text"
    hashed: str  # the name of the hash
    text_key: str
    lowercase: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.prepare()
        self.nothing = self._hash("")  # of a text without features; what cannot be hashed at all fails here

    def prepare(self) -> None:
        """Make what `_hash` needs beside the stock operator's own."""

    def compute_hash(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Add the hash."""
        text = sample[self.text_key]
        caption = caption_of(text)
        # Among words the two tokens are only the caption's ends; of characters or parts they would be most,
        # and the same in every text.
        caption_hash = self._hash(text if getattr(self, "tokenization", None) == "space" else caption)
        normalised, stripped = self._normalised(caption)
        sample[self.hashed] = (
            self.digest(stripped or normalised)
            if caption_hash == self.nothing or not stripped
            else caption_hash
        )
        return sample

    def digest(self, text: str) -> Any:
        """What tells texts without features apart."""
        return hashlib.md5(text.encode()).hexdigest()

    def _hash(self, text: str) -> Any:
        text = spaced(text) if getattr(self, "tokenization", None) == "space" else text
        # of the stock operator, the next among the bases
        return super().compute_hash({self.text_key: text})[self.hashed]  # type: ignore[misc]

    def _normalised(self, caption: str) -> tuple[str, str]:
        """The caption as the operator compares captions, and what its pattern leaves of it."""
        normalised = " ".join((caption.lower() if self.lowercase else caption).split())
        pattern = getattr(self, "ignore_pattern", None) or getattr(self, "remove_non_character_regex", None)
        return normalised, " ".join(pattern.sub("", normalised).split()) if pattern else normalised


@OPERATORS.register_module("document_deduplicator", force=True)
class DocumentDeduplicator(_Caption, exact.DocumentDeduplicator):
    """Keep the first row of each caption."""

    hashed = HashKeys.hash


@OPERATORS.register_module("document_minhash_deduplicator", force=True)
class DocumentMinhashDeduplicator(_Caption, minhash.DocumentMinhashDeduplicator):
    """Keep the first row of each group of captions with similar sets of shingles."""

    hashed = HashKeys.minhash

    def __init__(
        self, *args: Any, num_permutations: Annotated[int, Field(ge=1, le=2048)] = 256, **kwargs: Any
    ) -> None:
        # the search for the best bands takes half a second for 2,048 permutations, and minutes for millions
        super().__init__(*args, num_permutations=num_permutations, **kwargs)

    def prepare(self) -> None:
        """How the stock hash is cut into bands, and their factors. ValueError for bands that would be empty,
        and so the same in all rows."""
        size = self.num_bands * self.num_rows_per_band
        if size > self.num_permutation:
            raise ValueError(
                f"{self.num_bands} bands of {self.num_rows_per_band} rows need {size} permutations, "
                f"num_permutations is {self.num_permutation}"
            )
        self.hash_ranges = [(0, size)]  # of the stock hash: all bands in one
        # RandomState draws the same in every version of NumPy
        factors = np.random.RandomState(0).randint(1 << 63, size=self.num_rows_per_band, dtype=np.uint64)
        self.factors = 2 * factors + 1

    def digest(self, text: str) -> list[int]:
        """One value for all bands."""
        return [_digest64(text) >> 1] * self.num_bands

    def _hash(self, text: str) -> list[int]:
        """63 bits a band, which a table's column holds: the sum of its minima, 32 bits each, times random odd
        numbers. Other minima have the same sum with a chance of about 2^-63 (universal hashing)."""
        (minima,) = super()._hash(text)
        bands = np.frombuffer(minima, ">u8").astype(np.uint64).reshape(self.num_bands, -1)
        return (bands @ self.factors >> np.uint64(1)).tolist()


@OPERATORS.register_module("document_simhash_deduplicator", force=True)
class DocumentSimhashDeduplicator(_Caption, simhash.DocumentSimhashDeduplicator):
    """Keep the first row of each group of captions whose hashes of shingles differ in few bits."""

    hashed = HashKeys.simhash

    def digest(self, text: str) -> str:
        """64 bits as a decimal number."""
        return str(_digest64(text))


@OPERATORS.register_module("image_deduplicator", force=True)
class ImageDeduplicator(image.ImageDeduplicator):
    """Keep the first row of each picture by its perceptual hash; of a picture whose hash is that of one
    colour, by a thumbnail too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.nothing = self.hasher.encode_image(image_array=np.zeros((8, 8, 3), dtype=np.uint8))

    def compute_hash(self, sample: dict[str, Any], context: bool = False) -> dict[str, Any]:
        """Add the hash."""
        sample = super().compute_hash(sample, context)
        if sample[HashKeys.imagehash] == self.nothing:
            _, images = load_data_with_context(sample, context, sample[self.image_key], load_image)
            (picture,) = images.values()
            sample[HashKeys.imagehash] += thumbnail(picture).hex()
        return sample


@OPERATORS.register_module("fix_unicode_mapper", force=True)
class FixUnicodeMapper(unicode.FixUnicodeMapper):
    """Mend texts that were decoded wrongly, and bring them to one normal form."""

    def process_batched(self, samples: dict[str, Any]) -> dict[str, Any]:
        """Change the texts in which something can be changed."""
        texts = samples[self.text_key]
        places = [place for place, text in enumerate(texts) if not PLAIN.fullmatch(text)]
        changed = super().process_batched({self.text_key: [texts[place] for place in places]})
        for place, text in zip(places, changed[self.text_key], strict=True):
            texts[place] = text
        return samples


@OPERATORS.register_module("random_selector", force=True)
class RandomSelector(random.RandomSelector):
    """Keep `select_num` rows or a share of `select_ratio`, the fewer if both are given, at least one and at
    most all."""

    def process(self, dataset: Any) -> Any:
        """The selected rows, in the order in which they were drawn."""
        share = None if self.select_ratio is None else max(1, int(self.select_ratio * len(dataset)))
        sizes = [size for size in (self.select_num, share) if size is not None]
        return random_sample(dataset, sample_number=min([*sizes, len(dataset)]))
