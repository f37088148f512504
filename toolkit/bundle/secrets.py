"""S4, S5: no key leaves this machine in an entry, and nothing that says whose machine it was.

A finding names file, line and kind, never the text itself: tables, validation.json and logs are passed on. What is searched of weights,
tables, images and other files that are no text: `texts`.

Rows and answers quote the world (captions, texts read off photos), so an address in them is the data's own: there, only keys of known
forms and paths at the start of a JSON string count. Licence texts keep their authors' addresses.
"""

import math
import re
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from toolkit.bundle.entry import Entry
from toolkit.bundle.findings import ERROR, WARNING, Finding
from toolkit.bundle.texts import texts

VALIDATION = "output/reports/validation.json"  # written after this check, from findings that quote nothing

# Texts of others; xl/: the sheets in an .xlsx file.
QUOTED = re.compile(r"\.jsonl$|\.tsv$|/llava\.json$|/tokenizer[^/]*\.json$|/vocab[^/]*$|/merges\.txt$|^xl/")
LICENCE = re.compile(r"^(licen[cs]e|notice|copying|authors)", re.IGNORECASE)


@dataclass(frozen=True)
class Pattern:
    """What gives a kind of secret away. Most texts hold none of the `hints` (lower case), and looking for those is far cheaper.

    The secret is the last group where there is one, else all that matched. quoted: searched in rows and answers too.
    """

    kind: str
    hints: tuple[bytes, ...]
    regex: re.Pattern[bytes]
    quoted: bool = True


def _pattern(kind: str, hints: bytes, regex: bytes, quoted: bool = True) -> Pattern:
    return Pattern(kind, tuple(hints.lower().split()), re.compile(regex), quoted)


# Prefixes as their providers document them; the lengths are the shortest in use.
KEYS = (
    _pattern("a private key", b"-----BEGIN PuTTY-", rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----|PuTTY-User-Key-File-\d"),
    _pattern("a key of AWS", b"AKIA ASIA", rb"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    _pattern("a key of Alibaba Cloud", b"LTAI", rb"\bLTAI[A-Za-z0-9]{12,26}\b"),
    _pattern("a key of Tencent Cloud", b"AKID", rb"\bAKID[A-Za-z0-9]{32}\b"),
    _pattern("a key of Google", b"AIza ya29", rb"\bAIza[\w-]{35}|\bya29\.[\w-]{20,}"),
    _pattern("a token of GitHub", b"ghp_ gho_ ghu_ ghs_ ghr_ github_pat", rb"\bgh[pousr]_[A-Za-z0-9]{36,}|\bgithub_pat_\w{22,}"),
    _pattern("a token of GitLab", b"glpat-", rb"\bglpat-[\w-]{20,}"),
    _pattern("a token of Hugging Face", b"hf_ api_org_", rb"\b(?:hf|api_org)_[A-Za-z0-9]{30,}"),
    _pattern("a key of a model provider", b"sk-", rb"\bsk-(?:[a-z]+-)*(?=[\w-]*\d)[\w-]{20,}"),
    _pattern("a token of Slack", b"xox hooks.slack", rb"\bxox[a-z]-[A-Za-z0-9-]{10,}|hooks\.slack\.com/services/T\w+/[\w/]+"),
    _pattern("a key of Stripe", b"k_live_", rb"\b[rs]k_live_[A-Za-z0-9]{16,}"),
    _pattern("a token of PyPI", b"pypi-", rb"\bpypi-[\w-]{50,}"),
    _pattern("a token of npm", b"npm_", rb"\bnpm_[A-Za-z0-9]{36}"),
    _pattern("a JSON web token", b"eyJ", rb"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"),
    _pattern("a bearer token", b"bearer", rb"\b[Bb]earer\s+([\w.~+/-]{20,}=*)", quoted=False),
    _pattern("a password in an address", b"://", rb"\b[a-z][a-z0-9+.-]*://[^\s/:@\"'<>$]+:([^\s/@\"'<>${}]{3,})@", quoted=False),
    # A name that promises a secret, then a value that looks drawn (see `random`).
    _pattern(
        "a secret given to a name",
        b"key secret token passw passphrase credential",
        rb"(?i)(?<![\w.-])(?![\w.-]*(?:sha\d|md5|digest|hash|checksum))"
        rb"[\w.-]*(?:api[_-]?key|access[_-]?key|secret|token|passw(?:or)?d|passphrase|credential)[\w.-]*"
        rb"[\"']?\s*(?::=|=>|[:=])\s*[\"']?([A-Za-z0-9+/_.~-]{16,}={0,2})",
        quoted=False,
    ),
)
PLACES = b"mnt media data workspace work scratch nfs gpfs lustre srv tmp var/folders volumes content kaggle autodl-tmp autodl-fs cpfs oss"
TRACES = (
    _pattern(
        "a home directory",
        b"/home/ users /root/",
        rb"(?:(?<![\w.~/$)}-])|(?<=file://))/(?:home|Users)/([\w.-]+)|(?<![\w.~/$)}-])/(?:root)/[\w.-]|\b[A-Za-z]:\\+Users\\+([\w.-]+)",
    ),
    _pattern(
        "an absolute path",
        b" ".join([*(b"/" + place + b"/" for place in PLACES.split()), b":\\"]),
        rb"(?i)(?:(?<![\w.~/$)}*-])|(?<=file://))/(?:" + b"|".join(PLACES.split()) + rb")/[\w.-]+|(?<!\w)[a-z]:\\+\w+\\+\w+",
    ),
    _pattern("an e-mail address", b"@", rb"(?<![\w.+-])([\w.+-]+@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,})\b", quoted=False),
    _pattern(
        "a host name",
        # a node of a cluster; the prompt of a copied command; addresses of private networks, 10. only in a URL or behind a
        # user: bare, or behind the name of a package, it is a version
        b".internal .local .lan .corp .intranet @ 192.168. 172. ://10.",
        rb"(?<![\w.@/-])(?=[a-z-]*\d)[a-z0-9-]+(?:\.[a-z0-9-]+)*\.(?:internal|local|lan|corp|intranet|localdomain)\b(?!\s*\()"
        rb"|\b[a-z_][\w-]*@[\w-]*[a-z][\w-]*:[~/][^\s\"']*[#$]\s"
        rb"|(?<![\d.=:])(?:192\.168|172\.(?:1[6-9]|2\d|3[01]))\.\d{1,3}\.\d{1,3}(?![\d./])"
        rb"|(?:://(?:[^\s/@\"']+@)?|(?<![\w/.-])[\w.-]+@)10\.\d{1,3}\.\d{1,3}\.\d{1,3}(?![\d.])",
        quoted=False,
    ),
)

# Placeholders of manuals are nobody's.
NOBODY = {b"user", b"users", b"username", b"you", b"me", b"name", b"example", b"shared", b"public"}
NO_PASSWORD = {b"password", b"passwd", b"pass", b"pwd", b"secret", b"token"}
NO_ADDRESS = re.compile(  # public robots, reserved domains, img@2x.png
    rb"(?i)^(?:git|no-?reply)@|@(?:.+\.)?(?:example(?:\.[a-z]+)?|invalid|test)$|@users\.noreply\.github\.com$"
    rb"|\.(?:png|jpe?g|gif|svg|webp|py|js|sh|json|md|txt)$"
)


def search(patterns: tuple[Pattern, ...], number: int, block: bytes, quoted: bool) -> Iterator[tuple[int, str]]:
    """(line, kind) of what `patterns` find in a block whose first line is `number`; 0 is the line in a block without lines."""
    lower = block.lower()
    for pattern in patterns:
        if (pattern.quoted or not quoted) and any(hint in lower for hint in pattern.hints):
            for match in pattern.regex.finditer(block):
                value = match[match.lastindex or 0]
                begins = block[match.start() - 1 : match.start()] == b'"'
                if real(pattern, value) and (begins or not quoted or pattern not in TRACES):
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
    # hf_xxxxxxxx, AKIAIOSFODNN7EXAMPLE
    return pattern in TRACES or pattern.kind == "a private key" or not (b"EXAMPLE" in value.upper() or len(set(value[-12:])) <= 3)


def random(value: bytes) -> bool:
    """Whether a value looks drawn: a run of 16 and more letters and digits, mixed, no CamelCase, of 3 bits and more a character."""
    for run in re.split(rb"[^A-Za-z0-9]+", value):
        digits = sum(character in b"0123456789" for character in run)
        words = run != run.lower() and len(re.sub(rb"[A-Z]?[a-z]{3,}", b"", run)) < len(run) / 2
        bits = -sum(count / len(run) * math.log2(count / len(run)) for count in Counter(run).values())
        if len(run) >= 16 and 2 <= digits <= len(run) - 2 and not words and bits >= 3:
            return True
    return False


def machine(entry: Entry) -> tuple[Pattern, ...]:
    """What this machine alone is called, as far as ordinary words let one tell."""
    own = {f"{entry.root.resolve().as_posix()}/": "the absolute folder of this work tree"}
    home, host = Path.home().as_posix(), socket.gethostname()
    if home.count("/") > 1:
        own[home] = "a home directory"
    if len(host) >= 6 and re.search(r"[\d-]", host):
        own[host] = "a host name"
    return tuple(Pattern(kind, (text.lower().encode(),), re.compile(re.escape(text.encode()))) for text, kind in own.items())


def keys(entry: Entry) -> Iterator[Finding]:
    """S4: no key, token or password in anything that is packed."""
    for name, found in _found(entry, KEYS):
        for line, kind in sorted(found):
            remedy = "delete it here and revoke it where it came from: logs and backups may have it already"
            yield Finding("S4", name, f"holds {kind}", remedy, line=line or None)


def traces(entry: Entry) -> Iterator[Finding]:
    """S5: no home directory, absolute path, e-mail address or host name. One finding a kind and file, at the first line."""
    for name, found in _found(entry, TRACES):
        for kind in sorted({kind for _, kind in found}):
            line = min(line for line, other in found if other == kind)
            # A manual may mount a folder; what a stage wrote may name none.
            severity = WARNING if kind == "an absolute path" and name.startswith("solution/") else ERROR
            remedy = "take it out; in a stage's output: run the stage from the repository's root with relative paths"
            yield Finding("S5", name, f"names {kind}", remedy, line=line or None, severity=severity)


def _found(entry: Entry, patterns: tuple[Pattern, ...]) -> Iterator[tuple[str, set[tuple[int, str]]]]:
    """(file, its lines and kinds) of each packed file in which something was found."""
    own = machine(entry) if patterns is TRACES else ()
    for name in entry.members():
        if name == VALIDATION:
            continue
        wanted = [*patterns, *own]
        if LICENCE.match(PurePosixPath(name).name):
            wanted = [pattern for pattern in wanted if pattern.kind != "an e-mail address"]
        found = {
            hit
            for part, number, block in texts(entry, name)
            for hit in search(tuple(wanted), number, block, bool(QUOTED.search(part or name)))
        }
        if found:
            yield name, found
