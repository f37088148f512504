"""The numbers of one data set: `describe` fills in toolkit/data/analysis/shape.py."""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy

from toolkit.data.analysis import diversity
from toolkit.data.analysis.diversity import Corpus
from toolkit.data.analysis.rows import Header, Rows
from toolkit.data.analysis.shape import (
    LISTED,
    Distribution,
    Diversity,
    Duplicates,
    Estimate,
    Group,
    Images,
    Markers,
    Problem,
    Sample,
    Statistics,
    Text,
)
from toolkit.data.samples import END_TOKEN, IMAGE_TOKEN, inspect_images

SMALLEST = 1_000  # words of the smallest sample in the table of sample sizes


def describe(rows: Rows, sha256: str, headers: Mapping[Path, Header], processes: int) -> Statistics:
    """All numbers of `rows`; decodes every image on `processes` processes."""
    files = list(dict.fromkeys(rows.files))
    inspected = dict(zip(files, inspect_images(files, processes), strict=True))
    digests = [inspected[file][1] for file in rows.files]
    with_bytes = [(digest, row) for row, digest in enumerate(digests) if digest]
    captions = list(zip(rows.captions, range(len(rows.ids)), strict=True))
    return Statistics(
        sha256=sha256,
        lines=rows.lines,
        rows=len(rows.ids),
        ids=len(set(rows.ids)),
        problem_lines=len(rows.problems),
        problems=[Problem(line=line, reason=reason) for line, reason in rows.problems[:LISTED]],
        same_caption=duplicates(captions, rows.captions, rows.ids),
        same_image=duplicates(with_bytes, rows.images, rows.ids),
        same_row=duplicates(
            [((rows.captions[row], digest), row) for digest, row in with_bytes], rows.captions, rows.ids
        ),
        images=images_of(rows, inspected, headers),
        markers=markers_of(rows.texts),
        text=text_of(rows),
        diversity=diversity_of(Corpus(rows.captions), rows.ids),
    )


def distribution(values: Sequence[float]) -> Distribution | None:
    """None for no values."""
    if not len(values):
        return None
    array = numpy.asarray(values, dtype=float)
    low, q05, q25, median, q75, q95, high = (
        float(value) for value in numpy.quantile(array, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1])
    )
    sd = float(array.std(ddof=1)) if len(array) > 1 else 0.0
    return Distribution(
        count=len(array),
        mean=float(array.mean()),
        sd=sd,
        minimum=low,
        q05=q05,
        q25=q25,
        median=median,
        q75=q75,
        q95=q95,
        maximum=high,
    )


def duplicates(keyed: Iterable[tuple[object, int]], values: Sequence[str], ids: Sequence[str]) -> Duplicates:
    """Groups of rows with one key. keyed: (key, row); values: by row, what a group is shown as."""
    by_key = defaultdict(list)
    for key, row in keyed:
        by_key[key].append(row)
    # stable: then by the first row
    groups = sorted((group for group in by_key.values() if len(group) > 1), key=len, reverse=True)
    largest = [
        Group(value=values[group[0]], rows=len(group), ids=[ids[row] for row in group[:LISTED]])
        for group in groups[:LISTED]
    ]
    return Duplicates(distinct=len(by_key), groups=len(groups), rows=sum(map(len, groups)), largest=largest)


def images_of(
    rows: Rows, inspected: Mapping[Path, tuple[str | None, str]], headers: Mapping[Path, Header]
) -> Images:
    """Integrity and sizes of the distinct files."""
    first: dict[Path, int] = {}  # row that a file comes with first
    for row, file in enumerate(rows.files):
        first.setdefault(file, row)
    unreadable = [(first[file], problem) for file, (problem, _) in inspected.items() if problem]
    problems = [Problem(line=row + 1, reason=f"{problem}: {rows.images[row]}") for row, problem in unreadable]
    sizes = list(headers.values())
    short = Counter(min(size.width, size.height) for size in sizes)
    commonest = max(short, key=lambda side: (short[side], -side), default=None)
    return Images(
        files=len(inspected),
        readable=len(inspected) - len(problems),
        problems=problems[:LISTED],
        formats=_ordered(Counter(size.format for size in sizes)),
        modes=_ordered(Counter(size.mode for size in sizes)),
        width=distribution([size.width for size in sizes]),
        height=distribution([size.height for size in sizes]),
        short_side=distribution([min(size.width, size.height) for size in sizes]),
        aspect_ratio=distribution([size.width / size.height for size in sizes]),
        bytes=distribution([size.bytes for size in sizes]),
        commonest_short_side=commonest,
        of_commonest_short_side=short[commonest] if commonest is not None else 0,
    )


def markers_of(texts: Sequence[str]) -> Markers:
    """How the special tokens stand in valid texts, which have one image token and at most one end token."""
    image_first = sum(text.startswith(f"{IMAGE_TOKEN}\n") for text in texts)
    end_last = sum(text.endswith(f" {END_TOKEN}") for text in texts)
    end_missing = sum(END_TOKEN not in text for text in texts)
    return Markers(
        image_first=image_first,
        image_elsewhere=len(texts) - image_first,
        end_last=end_last,
        end_elsewhere=len(texts) - end_last - end_missing,
        end_missing=end_missing,
    )


@cache
def _script_of(letter: str) -> str:
    return unicodedata.name(letter, "UNNAMED").split()[0].title().replace("Cjk", "Han")


def script(caption: str) -> str:
    """Script of most letters, the first met of several; "none" without letters."""
    letters = Counter(_script_of(character) for character in caption if character.isalpha())
    return letters.most_common(1)[0][0] if letters else "none"


def text_of(rows: Rows) -> Text:
    """Lengths and scripts of the captions."""
    scripts = [script(caption) for caption in rows.captions]
    script_counts = _ordered(Counter(scripts))
    other_scripts = {
        name: [row_id for row_id, row_script in zip(rows.ids, scripts, strict=True) if row_script == name]
        for name in list(script_counts)[1:]
    }
    return Text(
        characters=distribution([len(caption) for caption in rows.captions]),
        characters_with_markers=distribution([len(text) for text in rows.texts]),
        words=distribution([len(caption.split()) for caption in rows.captions]),
        scripts=script_counts,
        other_scripts={name: ids[:LISTED] for name, ids in other_scripts.items()},
    )


def diversity_of(corpus: Corpus, ids: Sequence[str]) -> Diversity | None:
    """Measures with intervals, and what becomes of them in smaller samples; None without a word."""
    counts = corpus.counts("words", corpus.everything)
    if not len(counts):
        return None
    return Diversity(
        words=int(counts.sum()),
        vocabulary=len(counts),
        once=int((counts == 1).sum()),
        type_token_ratio=diversity.type_token_ratio(counts),
        entropy=diversity.entropy(counts),
        entropy_miller_madow=diversity.miller_madow(counts),
        measures=estimates(corpus, ids),
        by_sample_size=by_sample_size(corpus, len(ids)),
        commonest=corpus.commonest(LISTED),
    )


def estimates(corpus: Corpus, ids: Sequence[str]) -> dict[str, Estimate]:
    """Every measure of all rows, with its interval."""
    masks = list(diversity.halves(ids))
    by_name = {}
    for name, measure in diversity.measures(corpus).items():
        value = measure.of(corpus, corpus.everything)
        reach = diversity.spread([measure.of(corpus, mask) for mask in masks])
        by_name[name] = Estimate(
            value=null_if_undefined(value),
            low=null_if_undefined(value - reach),
            high=null_if_undefined(min(value + reach, measure.maximum)),
        )
    return by_name


def by_sample_size(corpus: Corpus, rows: int) -> list[Sample]:
    """All rows, a random half of them, a random half of that, and so on; the smallest first."""
    order = numpy.random.default_rng(diversity.SEED).permutation(rows)
    samples = []
    size = rows
    while size:
        mask = numpy.zeros(rows, dtype=bool)
        mask[order[:size]] = True
        counts = corpus.counts("words", mask)
        if counts.sum() < SMALLEST:
            break
        samples.append(
            Sample(
                rows=size,
                words=int(counts.sum()),
                type_token_ratio=diversity.type_token_ratio(counts),
                entropy=diversity.entropy(counts),
                entropy_miller_madow=diversity.miller_madow(counts),
                hdd=diversity.rarefied(counts, diversity.HDD) / diversity.HDD,
                mtld=null_if_undefined(corpus.mtld(mask)),
                distinct_words_of_1000=diversity.rarefied(counts, SMALLEST),
            )
        )
        size //= 2
    return samples[::-1]


def null_if_undefined(value: float) -> float | None:
    """JSON has no NaN: a number that is not defined is null."""
    return value if numpy.isfinite(value) else None


def _ordered(counts: Counter) -> dict[str, int]:
    """The commonest first, then by name."""
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))
