"""Words of captions in any script: those written without spaces are cut into characters."""

import regex

from toolkit.data.phrases import BREAKS

# Chinese, Japanese, Thai and their like; Korean has spaces. LB=SA: scripts whose words only a dictionary
# finds.
_SIGN = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Yi}\p{Tibetan}\p{LB=SA}]\p{M}*"
_UNSPACED, _PAIR, _WORD = regex.compile(_SIGN), regex.compile(_SIGN * 2), regex.compile(r"[^\W_]+")


def spaced(text: str) -> str:
    """The text with spaces around each character of a script that has none between its words."""
    return _UNSPACED.sub(r" \g<0> ", text)


def content(text: str) -> set[str]:
    """Stems of the words that say what a text is about, no articles and prepositions; pairs of characters in
    unspaced scripts.

    A stem is a word without the letters e and s at its end: singular and plural have the same one.
    """
    words = {
        word.rstrip("es") or word
        for word in _WORD.findall(_UNSPACED.sub(" ", text.lower()))
        if word not in BREAKS
    }
    return words | set(_PAIR.findall(text, overlapped=True))
