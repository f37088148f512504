"""How varied captions are, measured so that the number of rows does not decide it.

The type/token ratio (distinct words by all words) falls with every row that is added, for common words come
again: the same data set has a ratio of 0.4 at a hundred rows and of 0.1 at ten thousand. Ratios of samples of
different sizes say which sample is smaller, nothing else. The measures here ask how many kinds are expected
among a fixed number of drawn items, or how long a text runs until it repeats itself:

- distinct words, word pairs and captions among N drawn without replacement (rarefaction: Hurlbert 1971,
  doi:10.2307/1934145)
- HD-D, rarefaction to 42 words, by 42 (McCarthy and Jarvis 2010, doi:10.3758/BRM.42.2.381)
- MTLD, mean words until the running type/token ratio falls to 0.72, both ways through the rows in a seeded
  order (ibid.)

Entropy is given with Miller's correction (1955), which lessens its dependence on size and does not remove it.

Intervals come from random halves of the rows (the delete-d jackknife: Shao and Wu 1989,
doi:10.1214/aos/1176347263). A bootstrap would not do: it draws rows twice, a row drawn twice repeats its own
words, and every resample looks less varied than the data set it is drawn from.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy
from scipy.sparse import csr_array
from scipy.special import gammaln

SEED = 1024
HALVES = 200  # their standard deviation is known to 5 %
DRAWN = (100, 1_000, 10_000, 100_000)  # items drawn, as far as a data set reaches
REACH = 0.4  # a size is used while it is at most this share of the items, so that every half has as many
HDD = 42  # words, by definition
MTLD = 0.72  # ratio, by definition
NORMAL = 1.959964  # standard deviations to either side that hold 95 %


def words_of(caption: str) -> list[str]:
    """Runs of letters and digits, lower case; an apostrophe inside a word belongs to it."""
    return re.findall(r"[^\W_]+(?:['\u2019][^\W_]+)*", caption.lower())


class Corpus:
    """Captions as counts: matrices rows x kinds for words, pairs of neighbouring words, and whole
    captions."""

    def __init__(self, captions: Sequence[str]) -> None:
        words = [words_of(caption) for caption in captions]
        pairs = [list(pairwise(row)) for row in words]
        self.vocabulary = list(dict.fromkeys(word for row in words for word in row))
        self.kinds = {
            "words": _count(words),
            "word pairs": _count(pairs),
            "captions": _count([[caption] for caption in captions]),
        }
        self.everything = numpy.ones(len(captions), dtype=bool)
        # for MTLD: row and word of every token, rows in an order that has nothing to do with their content
        order = numpy.random.default_rng(SEED).permutation(len(captions))
        lengths = numpy.array([len(row) for row in words])
        numbers = {word: number for number, word in enumerate(self.vocabulary)}
        self.token_rows = numpy.repeat(order, lengths[order])
        self.token_words = numpy.array([numbers[word] for row in order for word in words[row]], dtype=int)

    def counts(self, kind: str, mask: numpy.ndarray) -> numpy.ndarray:
        """How often each kind occurs in the chosen rows (a mask), kinds that do not occur left out."""
        counts = mask.astype(numpy.int64) @ self.kinds[kind]
        return counts[counts > 0]

    def commonest(self, number: int) -> dict[str, int]:
        """The commonest words and how often they occur."""
        times = self.kinds["words"].sum(axis=0)
        places = numpy.argsort(-times, kind="stable")[:number]
        return {self.vocabulary[place]: int(times[place]) for place in places if times[place]}

    def mtld(self, mask: numpy.ndarray) -> float:
        """MTLD of the chosen rows (a mask)."""
        sequence = self.token_words[mask[self.token_rows]].tolist()
        return (factor_length(sequence) + factor_length(sequence[::-1])) / 2


def _count(rows: list[list]) -> csr_array:
    columns: dict = {}
    places = [columns.setdefault(item, len(columns)) for row in rows for item in row]
    starts = numpy.cumsum([0, *map(len, rows)])
    matrix = csr_array(
        (numpy.ones(len(places), dtype=numpy.int64), places, starts), shape=(len(rows), max(len(columns), 1))
    )
    matrix.sum_duplicates()
    return matrix


def rarefied(counts: numpy.ndarray, size: int) -> float:
    """Expected number of distinct kinds among `size` items drawn without replacement, of items counted by
    kind; NaN if there are fewer."""
    total = counts.sum()
    if size > total:
        return float("nan")
    values, times = numpy.unique(counts, return_counts=True)
    # items of other kinds; a kind is missed with probability C(remaining, size) / C(total, size)
    remaining = total - values
    possible = remaining >= size
    remaining = remaining[possible].astype(float)
    log_missed = (
        gammaln(remaining + 1)
        - gammaln(remaining - size + 1)
        - gammaln(total + 1.0)
        + gammaln(total - size + 1.0)
    )
    return float(times.sum() - times[possible] @ numpy.exp(log_missed))


def type_token_ratio(counts: numpy.ndarray) -> float:
    """Distinct words by words: it falls with the size of the sample, see above."""
    return len(counts) / counts.sum()


def entropy(counts: numpy.ndarray) -> float:
    """Bits a word, plug-in estimate: it grows with the size of the sample."""
    shares = counts / counts.sum()
    return float(-(shares * numpy.log2(shares)).sum())


def miller_madow(counts: numpy.ndarray) -> float:
    """Bits a word, corrected by (kinds - 1) / 2 words."""
    return entropy(counts) + (len(counts) - 1) / (2 * counts.sum() * numpy.log(2))


def factor_length(words: Sequence[int]) -> float:
    """Mean number of words until the type/token ratio falls to 0.72; NaN where it never begins to."""
    factors, start, seen = 0.0, 0, set()
    for place, word in enumerate(words, start=1):
        seen.add(word)
        if len(seen) <= MTLD * (place - start):
            factors, start, seen = factors + 1, place, set()
    if start < len(words):  # the rest counts as far as it came
        factors += (1 - len(seen) / (len(words) - start)) / (1 - MTLD)
    return len(words) / factors if factors else float("nan")


@dataclass(frozen=True)
class Measure:
    """A measure that does not depend on the number of rows. of: from a corpus and a mask of rows; maximum:
    the largest possible value."""

    of: Callable[[Corpus, numpy.ndarray], float]
    maximum: float = numpy.inf


def measures(*corpora: Corpus) -> dict[str, Measure]:
    """Measures by name, with the sizes that all of `corpora` reach."""
    by_name = {}
    for kind in ("words", "word pairs", "captions"):
        reach = REACH * min(corpus.kinds[kind].sum() for corpus in corpora)
        for size in DRAWN:
            if size <= reach:
                by_name[f"distinct {kind} of {size:,}"] = Measure(partial(_distinct, kind, size), size)
    by_name["HD-D"] = Measure(lambda corpus, mask: _distinct("words", HDD, corpus, mask) / HDD, 1)
    by_name["MTLD"] = Measure(Corpus.mtld)
    return by_name


def _distinct(kind: str, size: int, corpus: Corpus, mask: numpy.ndarray) -> float:
    return rarefied(corpus.counts(kind, mask), size)


def halves(ids: Sequence[str]) -> Iterator[numpy.ndarray]:
    """Yield HALVES masks of rows, each of a random half of the ids: rows of one id stay together, for they
    repeat each other."""
    names, places = numpy.unique(numpy.array(ids, dtype=object), return_inverse=True)
    generator = numpy.random.default_rng(SEED)
    for _ in range(HALVES):
        inside = numpy.zeros(len(names), dtype=bool)
        inside[generator.permutation(len(names))[: len(names) // 2]] = True
        yield inside[places]


def spread(of_halves: Sequence[float]) -> float:
    """Half the length of a 95 % interval: halves vary around their mean as much as the whole does. NaN where
    too few have a value."""
    finite = numpy.array(of_halves)[numpy.isfinite(of_halves)]
    return NORMAL * float(finite.std(ddof=1)) if len(finite) > HALVES // 2 else float("nan")
