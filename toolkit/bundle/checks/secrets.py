"""S4, S5: no key leaves this machine in an entry, and nothing that says whose machine it was.

A finding names file, line and kind, never the text itself: tables, validation.json and logs are passed on.
What is searched of weights, tables, images and other files that hold more than text: `texts`.

Rows and answers quote the world (captions, texts read off photos), so an address in them is the data's own:
there, only keys of known forms and paths at the start of a JSON string count. Licence texts keep their
authors' addresses.

The texts are a stranger's. Every expression has an upper bound to each repetition and begins only where a run
of its characters does, so that the time grows with the text's length alone, whatever stands in it
(tests/bundle/test_secrets.py).
"""

import math
import re
import socket
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Protocol

from toolkit.bundle.checks.texts import Files, texts
from toolkit.bundle.findings import ERROR, WARNING, Finding
from toolkit.errors import UserError

VALIDATION = "output/reports/validation.json"  # written after this check, from findings that quote nothing

# Texts of others; xl/: the sheets in an .xlsx file.
QUOTED = re.compile(
    r"\.jsonl$|\.tsv$|/llava\.json$|/tokenizer[^/]{0,240}\.json$|/vocab[^/]{0,240}$|/merges\.txt$|^xl/"
)
HITS = 100  # of one kind that are looked for in a file
LICENCE = re.compile(r"^(licen[cs]e|notice|copying|authors)", re.IGNORECASE)


class Searched(Files, Protocol):
    """An entry, or another folder: its files, and how many bytes of text are searched (`Entry.searched`)."""

    @property
    def root(self) -> Path: ...

    def members(self) -> list[str]: ...

    def searched(self) -> dict[bool, float]: ...


@dataclass(frozen=True)
class Pattern:
    """What gives a kind of secret away. Every match holds one of the `hints` (lower case), and looking for
    those is far cheaper.

    The secret is the last group where there is one, else all that matched. quoted: what is searched for in
    rows and answers instead. reach: bytes before and after the start of a hint within which a match lies.
    """

    kind: str
    hints: tuple[bytes, ...]
    regex: re.Pattern[bytes]
    quoted: re.Pattern[bytes] | None = None
    reach: tuple[int, int] = (64, 1024)

    def places(self, lower: bytes) -> Iterator[tuple[int, int]]:
        """Where matches may be in a block of lower case: spans around the hints, in order, none touching."""
        before, after = self.reach
        hints = sorted(place for hint in self.hints for place in occurrences(hint, lower))
        first = last = -1
        for hint in hints:
            if hint - before > last:
                if last >= 0:
                    yield first, last
                first = max(0, hint - before)
            last = hint + after
        if last >= 0:
            yield first, last


def occurrences(word: bytes, text: bytes) -> Iterator[int]:
    """Where `word` begins in `text`."""
    place = text.find(word)
    while place >= 0:
        yield place
        place = text.find(word, place + 1)


def _keys(kind: str, prefixes: bytes, tail: bytes, before: bytes = rb"\b") -> list[Pattern]:
    """Keys of a known form: one of `prefixes`, then `tail`. before: what may stand in front, looked at
    last."""
    patterns = []
    for prefix in prefixes.split():
        literal = re.escape(prefix)
        regex = re.compile(literal + rb"(?<=" + before + literal + rb")" + tail)
        patterns.append(Pattern(kind, (prefix.lower(),), regex, regex))
    return patterns


def _path(kind: str, hints: bytes, posix: bytes, windows: bytes) -> Pattern:
    """A path at the start of a word; in rows and answers, at the start of a string."""
    words = rb"(?:(?<![\w.~/$)}*-])|(?<=file://))(?:" + posix + rb")|\b" + windows
    return Pattern(
        kind,
        tuple(hints.lower().split()),
        re.compile(words),
        re.compile(rb'"(?:' + posix + rb"|" + windows + rb")"),
    )


def _pattern(
    kind: str, hints: bytes, regex: bytes, flags: int = 0, reach: tuple[int, int] = Pattern.reach
) -> Pattern:
    """Anything else, which in rows and answers is the world's own."""
    return Pattern(kind, tuple(hints.lower().split()), re.compile(regex, flags), reach=reach)


# Prefixes as their providers document them; the lengths are the shortest in use.
KEYS = (
    *_keys(
        "a private key", b"-----BEGIN", rb" (?:[A-Z0-9]{1,16} ){0,4}PRIVATE KEY(?: BLOCK)?-----", before=b""
    ),
    *_keys("a private key", b"PuTTY-User-Key-File-", rb"\d"),
    *_keys("a key of AWS", b"AKIA ASIA", rb"[A-Z0-9]{16}\b"),
    *_keys("a key of Alibaba Cloud", b"LTAI", rb"[A-Za-z0-9]{12,26}\b"),
    *_keys("a key of Tencent Cloud", b"AKID", rb"[A-Za-z0-9]{32}\b"),
    *_keys("a key of Google", b"AIza", rb"[\w-]{35}"),
    *_keys("a key of Google", b"ya29.", rb"[\w-]{20,200}+"),
    *_keys("a token of GitHub", b"ghp_ gho_ ghu_ ghs_ ghr_", rb"[A-Za-z0-9]{36,200}+"),
    *_keys("a token of GitHub", b"github_pat_", rb"\w{22,200}+"),
    *_keys("a token of GitLab", b"glpat-", rb"[\w-]{20,200}+"),
    *_keys("a token of Hugging Face", b"hf_ api_org_", rb"[A-Za-z0-9]{30,200}+"),
    *_keys(
        "a key of a model provider",
        b"sk-",
        rb"(?:[a-z]{1,16}-){0,3}+(?=[\w-]{0,40}\d)[\w-]{20,200}+",
        before=rb"(?<![\w-])",
    ),
    *_keys("a token of Slack", b"xox", rb"[a-z]-[A-Za-z0-9-]{10,200}+"),
    *_keys("a token of Slack", b"hooks.slack.com/services/T", rb"\w{1,20}/[\w/]{1,80}+"),
    *_keys("a key of Stripe", b"sk_live_ rk_live_", rb"[A-Za-z0-9]{16,200}+"),
    *_keys("a token of PyPI", b"pypi-", rb"[\w-]{50,250}+"),
    *_keys("a token of npm", b"npm_", rb"[A-Za-z0-9]{36}"),
    *_keys("a JSON web token", b"eyJ", rb"[\w-]{10,400}+\.eyJ[\w-]{10,400}+", before=rb"(?<![\w-])"),
    _pattern("a bearer token", b"bearer", rb"\b[Bb]earer\s{1,8}([\w.~+/-]{20,400}+={0,2})"),
    _pattern(
        "a password in an address",
        b"://",
        rb"://(?<=[a-z0-9]://)[^\s/:@\"'<>$]{1,64}+:([^\s/@\"'<>${}]{3,128}+)@",
    ),
    # A name that promises a secret, then a value that looks drawn (see `random`).
    _pattern(
        "a secret given to a name",
        b"key secret token passw passphrase credential",
        rb"(?<![\w.-])(?![\w.-]{0,48}?(?:sha\d|md5|digest|hash|checksum))"
        rb"[\w.-]{0,48}?(?:api[_-]?key|access[_-]?key|secret|token(?!i[sz])|passw(?:or)?d|passphrase|credential)[\w.-]{0,48}+"
        rb"[\"']?\s{0,8}(?::=|=>|[:=])\s{0,8}[\"']?([A-Za-z0-9+/_.~-]{16,400}+={0,2})",
        re.IGNORECASE,
    ),
)
PLACES = (
    b"mnt media data workspace work scratch nfs gpfs lustre srv tmp var/folders volumes content kaggle "
    b"autodl-tmp autodl-fs cpfs oss"
)
TRACES = (
    _path(
        "a home directory",
        b"/home/ users /root/",
        rb"/(?:home|Users)/([\w.-]{1,64})|/root/[\w.-]",
        rb"[A-Za-z]:\\{1,4}Users\\{1,4}([\w.-]{1,64})",
    ),
    _path(
        "an absolute path",
        b" ".join([*(b"/" + place + b"/" for place in PLACES.split()), b":\\"]),
        rb"/(?i:" + b"|".join(PLACES.split()) + rb")/[\w.-]",
        rb"[A-Za-z]:\\{1,4}\w{1,64}+\\{1,4}\w",
    ),
    _pattern(
        "an e-mail address",
        b"@",
        rb"(?<![\w.+-])([\w.+-]{1,64}+@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24})\b",
    ),
    # of a cluster's node
    _pattern(
        "a host name",
        b".internal .local .lan .corp .intranet",
        rb"(?<![\w.@/-])(?=[a-z-]{0,62}+\d)[a-z0-9-]{1,63}+(?:\.[a-z0-9-]{1,63}+){0,8}\.(?:internal|local|lan|corp|intranet|localdomain)\b"
        rb"(?!\s{0,8}\()",
        reach=(640, 32),
    ),
    # the prompt of a copied command; addresses of private networks, 10. only in a URL or behind a user: bare,
    # or behind the name of a package, it is a version
    _pattern(
        "a host name",
        b"@ 192.168. 172. ://10.",
        rb"(?<![\w-])[a-z_][\w-]{0,31}+@(?=[\w-]{0,62}[a-z])[\w-]{1,63}+:[~/][^\s\"'#$]{0,100}+[#$]\s"
        rb"|(?<![\d.=:])(?:192\.168|172\.(?:1[6-9]|2\d|3[01]))\.\d{1,3}\.\d{1,3}(?![\d./])"
        rb"|(?:://(?:[^\s/@\"']{1,64}+@)?|(?<![\w/.-])[\w.-]{1,64}+@)10\.\d{1,3}\.\d{1,3}\.\d{1,3}(?![\d.])",
        reach=(72, 192),
    ),
)

# Placeholders of manuals are nobody's.
NOBODY = {b"user", b"users", b"username", b"you", b"me", b"name", b"example", b"shared", b"public"}
NO_PASSWORD = {b"password", b"passwd", b"pass", b"pwd", b"secret", b"token"}
NO_ADDRESS = re.compile(  # public robots, reserved domains, img@2x.png
    rb"(?i)^(?:git|no-?reply)@|@(?:.{1,600}\.)?(?:example(?:\.[a-z]{1,24})?|invalid|test)$|@users\.noreply\.github\.com$"
    rb"|\.(?:png|jpe?g|gif|svg|webp|py|js|sh|json|md|txt)$"
)


def search(patterns: Iterable[Pattern], number: int, block: bytes, quoted: bool) -> Iterator[tuple[int, str]]:
    """(line, kind) of what `patterns` find in a block whose first line is `number`; 0 is the line in a block
    without lines.

    After HITS of a pattern the rest of the block is left.
    """
    lower = block.lower()
    for pattern in patterns:
        if regex := pattern.quoted if quoted else pattern.regex:
            matches = (match for place in pattern.places(lower) for match in regex.finditer(block, *place))
            hits = (match for match in matches if real(pattern, match[match.lastindex or 0]))
            for match in islice(hits, HITS):
                yield number and number + block.count(b"\n", 0, match.start()), pattern.kind


def real(pattern: Pattern, value: bytes) -> bool:
    """Whether a match is more than a manual's placeholder or an ordinary word."""
    if pattern.kind == "a home directory":
        return value.lower() not in NOBODY
    if pattern.kind == "an e-mail address":
        return not NO_ADDRESS.search(value)
    if pattern.kind == "a password in an address":
        return value.lower() not in NO_PASSWORD
    if pattern.kind == "a secret given to a name" and not random(value):
        return False
    # hf_xxxxxxxx; the key in Amazon's manuals ends with EXAMPLE
    return (
        pattern in TRACES
        or pattern.kind == "a private key"
        or not (b"EXAMPLE" in value.upper() or len(set(value[-12:])) <= 3)
    )


def random(value: bytes) -> bool:
    """Whether a value looks drawn: a run of 16 and more letters and digits, mixed, no CamelCase, of 3 bits
    and more a character."""
    for run in re.split(rb"[^A-Za-z0-9]+", value):
        digits = sum(character in b"0123456789" for character in run)
        words = run != run.lower() and len(re.sub(rb"[A-Z]?[a-z]{3,}", b"", run)) < len(run) / 2
        bits = -sum(count / len(run) * math.log2(count / len(run)) for count in Counter(run).values())
        if len(run) >= 16 and 2 <= digits <= len(run) - 2 and not words and bits >= 3:
            return True
    return False


def machine(entry: Searched) -> tuple[Pattern, ...]:
    """What this machine alone is called, as far as ordinary words let one tell."""
    traits = {f"{entry.root.resolve().as_posix()}/": "the absolute folder of this work tree"}
    home, host = Path.home().as_posix(), socket.gethostname()
    if home.count("/") > 1:
        traits[home] = "a home directory"
    if len(host) >= 6 and re.search(r"[\d-]", host):
        traits[host] = "a host name"
    literal = {text.encode(): kind for text, kind in traits.items()}
    patterns = []
    for text, kind in literal.items():
        regex = re.compile(re.escape(text))
        patterns.append(Pattern(kind, (text.lower(),), regex, regex, reach=(0, len(text))))
    return tuple(patterns)


def keys(entry: Searched) -> Iterator[Finding]:
    """S4: no key, token or password in anything that is packed."""
    for name, hits in _hits(entry, KEYS):
        for line, kind in sorted(hits):
            remedy = "delete it here and revoke it where it came from: logs and backups may have it already"
            yield Finding("S4", name, f"holds {kind}", remedy, line=line or None)


def traces(entry: Searched) -> Iterator[Finding]:
    """S5: no home directory, absolute path, e-mail address or host name. One finding a kind and file, at the
    first line."""
    for name, hits in _hits(entry, TRACES):
        for kind in sorted({kind for _, kind in hits}):
            line = min(line for line, other in hits if other == kind)
            # A manual may mount a folder; what a stage wrote may name none.
            severity = WARNING if kind == "an absolute path" and name.startswith("solution/") else ERROR
            remedy = (
                "take it out; in a stage's output: run the stage from the repository's root with relative "
                "paths"
            )
            yield Finding("S5", name, f"names {kind}", remedy, line=line or None, severity=severity)


def _hits(entry: Searched, patterns: tuple[Pattern, ...]) -> Iterator[tuple[str, set[tuple[int, str]]]]:
    """(file, its lines and kinds) of each packed file in which something was found."""
    machine_patterns = machine(entry) if patterns is TRACES else ()
    remaining = entry.searched()
    for name in entry.members():
        if name == VALIDATION:
            continue
        active = [*patterns, *machine_patterns]
        if LICENCE.match(PurePosixPath(name).name):
            active = [pattern for pattern in active if pattern.kind != "an e-mail address"]
        hits: set[tuple[int, str]] = set()
        for part, number, block in texts(entry, name):
            quoted = bool(QUOTED.search(part or name))
            remaining[quoted] -= len(block)
            if remaining[quoted] < 0:
                text_kind = f"{'quoted ' * quoted}text"
                raise UserError(
                    f"{name}: with it there is more {text_kind} than an archive of this size may have, no "
                    "more is searched"
                )
            hits.update(search(active, number, block, quoted))
            hits_by_kind = Counter(kind for _, kind in hits)
            active = [pattern for pattern in active if hits_by_kind[pattern.kind] < HITS]
        if hits:
            yield name, hits
