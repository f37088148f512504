"""Short English captions taken apart by rules: noun phrases, colours, counts, places, and words that can be
read in the image.

The rules know a few hundred words and no grammar: a noun phrase is a run of words between words such as `of`,
`with` and `is`. They are meant for captions of one line, as the seed's; in other languages they find nothing.
"""

import re
from dataclasses import dataclass


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


COLOURS = _words(
    "red orange yellow green blue purple pink black white brown grey gray beige golden silver navy"
)
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DETERMINERS = _words("a an the one his her their its this some").union(NUMBERS)
# Where one noun phrase ends and the next may begin.
BREAKS = DETERMINERS | _words(
    "and or of with in on at for by from to near over under above below behind beside between into onto "
    "off up down out through against around across along inside outside beneath underneath without after "
    "before during as than while is are was were be has have that which who where what this these those it "
    "they he she you we there here not no all both each it's i left right next front top colored coloured "
    "shows showing shown says say saying reads read reading written holding holds wearing wears sitting "
    "sits standing stands hanging hangs laying lying lays lies playing plays walking walks running runs "
    "looking looks featuring features containing contains made surrounded covered filled displayed "
    "isolated stacked placed parked posing carrying driving riding using"
)
HOLLOW = _words(
    "image picture photo photograph view shot set pair front side group lot type kind piece stack bunch word "
    "words"
)
IRREGULAR = _words("fish sheep people men women children")  # plurals
PLACES = (
    *("to the left of", "left of", "to the right of", "right of", "on top of", "in front of", "next to"),
    *("beside", "behind", "above", "below", "underneath", "beneath", "under"),
)
OPPOSITE = {"left of": "right of", "above": "below", "in front of": "behind"}
OPPOSITE |= {back: place for place, back in OPPOSITE.items()}

_TOKEN = re.compile(r"[\w]+(?:['\u2019\-][\w]+)*|[^\w\s]")
_QUOTED = re.compile(r"(?:^|(?<=[\s(,]))(?:\"([^\"]+)\"|“([^”]+)”|'([^']+)')(?=$|[\s).,;!?])")
_WORD = r"[\w][\w'\u2019&\-]*"
_END = r"(?=$|[,.;]| (?:and|on|in|near|above|below|under|next|with|at|behind|beside)\b)"
CARRIER = "sign|label|banner|poster|logo|plate|card|shirt|screen|cover"
_READS = (
    re.compile(
        rf"\b({CARRIER})s? (?:that )?(?:reads?|reading|says?|saying) [\"'“]?({_WORD}(?: "
        rf"{_WORD}){{0,3}}?)[\"'”]?{_END}",
        re.I,
    ),
    re.compile(rf"()\bthe (?:words?|letters) [\"'“]?({_WORD}(?: {_WORD}){{0,3}}?)[\"'”]?{_END}", re.I),
    re.compile(rf"^()({_WORD}) sign and\b", re.I),
)
# `street sign and …`: a kind of sign, not what it reads.
_SIGNS = COLOURS | _words(
    "a an the this that large big small little wooden metal neon street road traffic shop store old"
)


FORMS = ("statement", "question")  # in which answers are put into a caption


@dataclass(frozen=True)
class Reading:
    """Words that can be read in the image, on what (`sign`; `text` where the caption does not say)."""

    words: str
    on: str


@dataclass(frozen=True)
class Answer:
    """A question about the image, its short answer, and the same as a statement: `the mug is red`."""

    question: str
    answer: str
    statement: str


def joined(caption: str, pairs: list[Answer], form: str) -> str:
    """The caption with answers, as statements (what it says already is not repeated) or as questions and
    answers."""
    parts = [
        answer.statement if form == "statement" else f"{answer.question} {answer.answer}" for answer in pairs
    ]
    return "; ".join(
        [caption.rstrip(" .;"), *(part for part in parts if part.removeprefix("the ") not in caption)]
    )


def readings(caption: str) -> list[Reading]:
    """What a caption says can be read in the image: `sign reads nova`, `the word nova near …`, `nova sign and
    …`, anything in quotes."""
    by_words: dict[str, str] = {}
    for pattern in _READS:
        for match in pattern.finditer(caption):
            words = match.group(2).strip()
            if words.lower() not in _SIGNS:
                by_words.setdefault(
                    words, match.group(1).lower() or ("sign" if pattern is _READS[-1] else "text")
                )
    for match in _QUOTED.finditer(caption):
        words = next(group for group in match.groups() if group).strip(" ,.")
        if words:
            by_words.setdefault(words, "text")
    return [Reading(words, on) for words, on in by_words.items()]


def noun_phrases(caption: str) -> list[list[str]]:
    """Runs of words between breaks, each with the determiner before it, if it has one: `[[a, red, mug], [a,
    blue, box]]`."""
    phrases, phrase = [], []
    for token in [*_TOKEN.findall(caption.lower()), "."]:
        if token[0].isalnum() and token[0].isascii() and token not in BREAKS:
            phrase.append(token)
            continue
        if phrase and phrase[-1] not in DETERMINERS:
            phrases.append(phrase)
        phrase = [token] if token in DETERMINERS else []
    return phrases


def keywords(caption: str) -> list[str]:
    """The last word of every noun phrase, most frequent first, then in the caption's order; then what can be
    read in the image.

    Colours, numbers, single letters and words without content (`photo`, `set`) are left out.
    """
    read = [reading.words.lower() for reading in readings(caption)]
    heads = [phrase[-1] for phrase in noun_phrases(caption)]
    heads = [
        word
        for word in heads
        if word not in HOLLOW | COLOURS and len(word) > 1 and not word[0].isdigit() and word not in read
    ]
    by_count = sorted(dict.fromkeys(heads), key=lambda word: -heads.count(word))  # stable
    return by_count + [words for words in read if words not in by_count]


def answers(caption: str) -> list[Answer]:
    """Questions that the caption answers: what can be read, colours, counts, and where things stand, in this
    order."""
    pairs = []
    for reading in readings(caption):
        pairs.append(
            Answer(
                f"what does the {reading.on} read?", reading.words, f"the {reading.on} reads {reading.words}"
            )
        )
    read = {word for reading in readings(caption) for word in reading.words.lower().split()}
    phrases = [phrase for phrase in noun_phrases(caption) if _sound(phrase) and not read & set(phrase)]
    for determiner, *words in phrases:
        if len(words) > 1 and words[0] in COLOURS and not set(words[1:]) & COLOURS:
            thing, be = " ".join(words[1:]), "are" if _plural(words[-1], determiner) else "is"
            pairs.append(Answer(f"what colour {be} the {thing}?", words[0], f"the {thing} {be} {words[0]}"))
    for determiner, *words in phrases:
        if determiner in NUMBERS and words[-1] not in HOLLOW:
            thing = " ".join(words[words[0] in COLOURS and len(words) > 1 :])
            pairs.append(
                Answer(f"how many {thing} are there?", determiner, f"there are {determiner} {thing}")
            )
    return pairs + _places(caption, phrases)


def _plural(noun: str, determiner: str = "") -> bool:
    many = (noun.endswith("s") and not noun.endswith(("ss", "us"))) or noun in IRREGULAR
    return many and (noun not in ("fish", "sheep") or determiner in NUMBERS)


def _sound(phrase: list[str]) -> bool:
    """Whether a noun phrase is short, begins with a determiner, and agrees with it in number: web captions
    have `a white dots`."""
    determiner, noun = phrase[0], phrase[-1]
    if determiner not in DETERMINERS or len(phrase) > 5 or noun in COLOURS or noun[0].isdigit():
        return False
    has_number = determiner in (*NUMBERS, "a", "an", "one")
    return not has_number or _plural(noun, determiner) == (determiner in NUMBERS)


def _places(caption: str, phrases: list[list[str]]) -> list[Answer]:
    """`a red mug left of a blue box`: where the first is and, where the relation has an opposite, where the
    second is."""
    pairs = []
    text = " ".join(_TOKEN.findall(caption.lower()))
    for first in phrases:
        for second in phrases:
            place = next(
                (place for place in PLACES if f"{' '.join(first)} {place} {' '.join(second)}" in text), None
            )
            if place is None or first is second:
                continue
            subject, other = (" ".join(["the", *phrase[1:]]) for phrase in (first, second))
            be = "are" if _plural(first[-1], first[0]) else "is"
            pairs.append(
                Answer(f"where {be} {subject}?", f"{place} {other}", f"{subject} {be} {place} {other}")
            )
            back = OPPOSITE.get(place.removeprefix("to the "))
            if back:
                be = "are" if _plural(second[-1], second[0]) else "is"
                pairs.append(
                    Answer(f"where {be} {other}?", f"{back} {subject}", f"{other} {be} {back} {subject}")
                )
    return pairs
