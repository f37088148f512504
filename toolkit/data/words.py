"""Words of captions in any script: those written without spaces are cut into characters."""

import regex

# Chinese, Japanese, Thai and their like; Korean has spaces. LB=SA: scripts whose words only a dictionary finds.
_UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Yi}\p{Tibetan}\p{LB=SA}]\p{M}*")


def spaced(text: str) -> str:
    """The text with spaces around each character of a script that has none between its words."""
    return _UNSPACED.sub(r" \g<0> ", text)
