"""S6: nothing in an entry acts when a browser or a viewer of Markdown opens it: no script, no handler, no
reference to another place that is loaded without a click.

What a browser would run whatever is in it (HTML, PDF, …) is refused by its name or its first bytes, as
browsers sniff them (https://mimesniff.spec.whatwg.org). SVG and Markdown are read, and what is not known to
be harmless is refused.
"""

import html
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from xml.parsers import expat

from markdown_it import MarkdownIt
from markdown_it.token import Token

from toolkit.bundle.entry import Entry
from toolkit.bundle.findings import Finding

RUN = re.compile(r"\.(?:s?html?|xht(?:ml)?|mhtml?|svgz|xml|xslt?|hta|swf|pdf)$", re.IGNORECASE)
SNIFFED = 512  # bytes
SNIFF = re.compile(
    rb"[\s\xef\xbb\xbf]*(?:%PDF-|<!--|<\?xml|<(?:!DOCTYPE HTML|HTML|HEAD|SCRIPT|IFRAME|H1|DIV|FONT|TABLE|A"
    rb"|STYLE|TITLE|B|BODY|BR|P)[\s>])",
    re.IGNORECASE,
)
MARKDOWN = re.compile(r"\.(?:md|markdown)$|/readme$", re.IGNORECASE)
PAGES, DRAWINGS = 1 << 19, 1 << 23  # bytes of all pages and of all drawings that are read
# what some viewers follow, however it is spelt
SCRIPT = re.compile(r"(?:javascript|vbscript):|data:(?:text/|image/svg|application/)", re.IGNORECASE)
LINKS = re.compile(
    r"https?://|mailto:|[^:]*$|[^:]*[/#?]", re.IGNORECASE
)  # addresses that only a click follows
# what matplotlib draws with
DRAWN = re.compile(
    "svg|metadata|RDF|Work|type|format|date|creator|title|Agent|defs|style|g|path|use|clipPath|rect|text|tspan|circle"
    "|ellipse|line|polyline|polygon|linearGradient|radialGradient|stop"
)
STYLE = re.compile(r"@|\\|expression|javascript|url\s*\(\s*(?![\"']?#)", re.IGNORECASE)
REMEDY = "write plain Markdown, or draw it as PNG"


def passive(entry: Entry) -> Iterator[Finding]:
    """S6."""
    remaining = {_page: PAGES, _drawing: DRAWINGS}
    for name in entry.members():
        suffix = PurePosixPath(name).suffix.lower()
        judge = _drawing if suffix == ".svg" else _page if MARKDOWN.search(name) else None
        problem = None
        if RUN.search(name):
            problem = f"a browser would run what a {suffix} file says"
        elif judge:
            remaining[judge] -= entry.length(name)
            if remaining[judge] < 0:
                problem = (
                    f"with it the pages have more than {PAGES} bytes or the drawings more than {DRAWINGS}"
                )
            else:
                with entry.open(name) as handle:
                    problem = judge(handle.read())
        else:
            with entry.open(name) as handle:
                if SNIFF.match(handle.read(SNIFFED)):
                    problem = "begins as a page that a browser would run"
        if problem:
            yield Finding("S6", name, problem, REMEDY)


def _drawing(content: bytes) -> str | None:
    """What is not a plain drawing in an SVG."""
    problems: list[str] = []  # the first counts
    styled = False

    def element(tag: str, attributes: dict[str, str]) -> None:
        nonlocal styled
        name = tag.rpartition(":")[2]
        styled = name == "style"
        if not DRAWN.fullmatch(name):
            problems.append(f"holds <{tag}>, which is more than a drawing needs")
        for key, value in attributes.items():
            short = key.rpartition(":")[2].lower()
            if short.startswith("on"):
                problems.append(f"<{tag}> has the handler {key}")
            elif short in ("href", "src") and not value.startswith("#"):
                problems.append(f"<{tag}> refers to {value!r}")
            elif (
                short not in ("xmlns", "resource", "d", "id")
                and not key.startswith("xmlns")
                and STYLE.search(value)
            ):
                problems.append(f"<{tag}> has {key}={value!r}")

    def text(words: str) -> None:
        if styled and STYLE.search(words):
            problems.append("has a style that refers to another place")

    def instruction(target: str, _: str) -> None:
        problems.append(f"holds the instruction {target}")

    def entity(*_: object) -> None:
        problems.append("defines entities")

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.CharacterDataHandler = element, text
    parser.ProcessingInstructionHandler, parser.EntityDeclHandler = instruction, entity
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        return f"is not an SVG that can be read: {error}"
    return problems[0] if problems else None


def _page(content: bytes) -> str | None:
    """What is more than text in a Markdown page."""
    text = content.decode("utf-8", errors="replace")
    if match := SCRIPT.search(re.sub(r"[\s\x00-\x20\\]", "", html.unescape(text))):
        return f"has an address that is a script: {match[0]!r}"
    for token in _tokens(MarkdownIt("commonmark").parse(text)):
        if token.type in ("html_block", "html_inline"):
            return f"holds HTML: {token.content.strip()[:80]!r}"
        source, target = str(token.attrs.get("src", "")), str(token.attrs.get("href", ""))
        if ":" in source or source.startswith(("/", "\\")):
            return f"shows an image from another place: {source!r}"
        if not LINKS.match(target):
            return f"has a link that is not an address: {target!r}"
    return None


def _tokens(tokens: list[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from _tokens(token.children or [])
