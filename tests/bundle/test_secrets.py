"""Nothing secret is packed and nothing is quoted; honest texts pass. All keys here are made up and put
together at run time."""

import io
import re
import subprocess
import time
import zipfile
from collections import Counter
from pathlib import Path
from re import _constants, _parser  # the only parser of expressions in the standard library

import numpy
import pytest
from entry_tree import ENTRY, EntryTree
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import save

from toolkit.__main__ import main
from toolkit.bundle.checks import secrets, texts
from toolkit.bundle.entry import Entry
from toolkit.bundle.pack import VALIDATION
from toolkit.contest import ruleset

REPOSITORY = Path(__file__).parents[2]
MIXED = "aB3dE6gH9jK2mN5pQ8sT1vW4yZ7cF0xLrUq9"  # 36 characters
HEX = "3f9a1c7e5b2d8046af13c9e7b5d20864"
BEGIN = "-----" + "BEGIN "

KEYS = {
    "a private key": [
        BEGIN + "OPENSSH PRIVATE KEY-----",
        BEGIN + "PRIVATE KEY-----",
        BEGIN + "PGP PRIVATE KEY BLOCK-----",
    ],
    "a key of AWS": ["AKIA" + "Q7ZT5WKX3NVB2MRE"],
    "a key of Alibaba Cloud": ["LTAI" + MIXED[:20]],
    "a key of Tencent Cloud": ["AKID" + MIXED[:32]],
    "a key of Google": ["AIza" + MIXED[:35]],
    "a token of GitHub": ["ghp_" + MIXED, "github_pat_" + MIXED],
    "a token of GitLab": ["glpat-" + MIXED[:20]],
    "a token of Hugging Face": ["hf_" + MIXED[:34]],
    "a key of a model provider": ["sk-" + HEX, "sk-ant-api03-" + MIXED, "sk-proj-" + MIXED],
    "a token of Slack": ["xoxb-" + "1234567890-" + MIXED],
    "a token of npm": ["npm_" + MIXED],
    "a JSON web token": ["eyJ" + MIXED[:20] + ".eyJ" + MIXED[:20] + "." + MIXED],
    "a bearer token": ["Authorization: Bearer " + MIXED],
    "a password in an address": ["pip install git+https://alice:" + "hunter22@git.firm.com/x"],
    "a secret given to a name": [
        "WANDB_API_KEY=" + HEX + "deadbeef",
        '"api_key": "' + MIXED + '"',
        "export DASHSCOPE_SECRET='" + MIXED[:20] + "'",
        "password := " + MIXED[:18],
        "my_token = '" + MIXED[:12] + "/" + MIXED[12:30] + "=='",
    ],
}
TRACES = {
    "a home directory": [
        "see /home/alice/data",
        '"/Users/bob/x"',
        "PATH=/a:/home/carol/bin",
        r'"C:\\Users\\dave\\x"',
        "cd /root/entry",
        "file:///home/eve/x",
    ],
    "an absolute path": [
        "data: /mnt/disk1/seed",
        '"/tmp/x.jsonl"',
        "--output=/workspace/run",
        r"D:\work\entry",
    ],
    "an e-mail address": ["ask alice.b+c@uni-example.edu", "mailto:bob@firm.co.uk"],
    "a host name": [
        "ran on node-01.cluster.internal",
        "gpu7.lan",
        "alice@box:~/entry$ ls",
        "192.168.1.20:8080",
        "http://10.0.3.7/x",
        "http://me@10.0.3.7/x",
        "ssh me@10.0.3.7",
    ],
}
HONEST = [
    "import secrets; token = tokenizer.encode(text)",
    'self.embed_tokens = SeamlessM4Tv2ScaledWordEmbedding(x)',
    "password = getpass.getpass()",
    "token_sha256: " + HEX + HEX,
    f'"tokenizer.json": {{"sha256": "{HEX}{HEX}"}}',
    "HF_TOKEN=hf_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    "AKIA" + "IOSFODNN7EXAMPLE",
    "api_key: ${API_KEY}",
    "max_new_tokens: 1024",
    "https://user:password@host/x",  # pragma: allowlist secret
    "git clone git@github.com:owner/name.git",
    "ours @ https://example.com/x, mail me@example.com or noreply@firm.com",
    "images/icon@2x.png",
    "nvidia-curand-cu12==10.3.9.90",
    "pkg:pypi/nvidia-curand@10.4.0.35",
    "#!/usr/bin/env bash",
    "docker run -v $PWD/data/x:/entry, ${HOME}/runs/x, ~/data/x, ./tmp/x",
    "https://server.org/home/alice, https://server.org/data/x",
    "either/or, and/data/or",
    "/home/user/entry and /Users/you/entry",
    "threading.local() and self.internal",
    "a desk-lamp, task-specific-heads-of-the-first-kind",
    '"merged/tokenizer_config.json": "' + HEX + HEX + '"',
]  # fmt: skip


def found(text: str, name: str = "solution/run.py") -> set[str]:
    quoted = bool(secrets.QUOTED.search(name))
    hits = {
        hit
        for _, number, block in texts.lines(io.BytesIO(text.encode()))
        for hit in secrets.search(secrets.KEYS + secrets.TRACES, number, block, quoted)
    }
    return {kind for _, kind in hits}


@pytest.mark.parametrize(
    ("kind", "text"), [(kind, text) for kind, texts in (KEYS | TRACES).items() for text in texts]
)
def test_found(kind, text):
    assert kind in found(f"a line\n{text}\nanother")


@pytest.mark.parametrize("text", HONEST)
def test_honest(text):
    assert found(text) == set()


EXPRESSIONS = [
    regex for pattern in secrets.KEYS + secrets.TRACES for regex in (pattern.regex, pattern.quoted) if regex
]
EXPRESSIONS += [secrets.NO_ADDRESS, secrets.QUOTED, secrets.LICENCE]
PIECES = [
    b"token",
    b"secret:",
    b"a-",
    b"a.",
    b"a@",
    b"a",
    b"1.",
    b"://a",
    b"://a:",
    b"a@a:/",
    b"/home/",
    b'"/',
    b"C:\\a",
    b"sk-",
    b"eyJ",
]
PIECES += [
    b"-----BEGIN ",
    b"bearer ",
    b"Bearer a",
    b" ",
    b"\n",
    b"#",
    b"$",
    b"10.",
    b"a.local",
    b"ghp_",
    b"ya29.",
    b"=",
    b"_",
]


def unbounded(parsed) -> bool:
    """Whether an expression repeats anything without an upper bound."""
    for operator, argument in parsed:
        if (
            str(operator) in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT")
            and argument[1] == _constants.MAXREPEAT
        ):
            return True
        for part in argument if isinstance(argument, tuple | list) else [argument]:
            branches = part if isinstance(part, list) else [part]
            if any(unbounded(branch) for branch in branches if isinstance(branch, _parser.SubPattern)):
                return True
    return False


@pytest.mark.parametrize("regex", EXPRESSIONS, ids=lambda regex: str(regex.pattern)[:40])
def test_every_repetition_has_a_bound(regex):
    """So the steps at one place are bounded, and their sum grows with the text."""
    assert not unbounded(_parser.parse(regex.pattern, regex.flags & ~re.UNICODE))


def test_what_was_unbounded_is_seen_to_be():
    assert unbounded(_parser.parse(rb"(?i)(?:a|(?=b[\w.-]*c))d"))


@pytest.mark.parametrize("kind", sorted({pattern.kind for pattern in secrets.KEYS + secrets.TRACES}))
def test_no_text_is_dear_to_search(kind):
    """Pieces of what is looked for, again and again: a quadratic expression would take hours for a block of
    it."""
    pieces = [
        *PIECES,
        *(
            hint
            for pattern in secrets.KEYS + secrets.TRACES
            if pattern.kind == kind
            for hint in pattern.hints
        ),
    ]
    begin = time.process_time()
    for piece in pieces:
        block = (piece * (texts.BLOCK // len(piece)))[: texts.BLOCK // 4]
        for pattern in secrets.KEYS + secrets.TRACES:
            if pattern.kind == kind:
                list(secrets.search([pattern], 1, block, quoted=False))
    assert time.process_time() - begin < 120  # some 2 s here


def test_hits_of_one_kind_are_counted_to_a_limit(tree):
    """A file of a million tokens does not make a million findings, and what is behind them of another kind is
    still found."""
    Path("solution/a.txt").write_text(
        f"{TOKEN}\n" * 5000 + "see /home/alice/x\n" + "AKIA" + "Q7ZT5WKX3NVB2MRE" + "\n"
    )
    entry = Entry(Path(), "synth", ruleset.load("embedded"))
    kinds = Counter(finding.message for finding in secrets.keys(entry))
    assert kinds == {"holds a token of GitHub": secrets.HITS, "holds a key of AWS": 1}
    assert [(finding.message, finding.line) for finding in secrets.traces(entry)] == [
        ("names a home directory", 5001)
    ]


def test_quoted_texts_of_the_world_are_not_ours():
    """Captions and texts read off photos hold addresses; a path that begins a string is still a stage's."""
    row = '{"text": "mail bob@firm.co.uk, see /home/alice, 192.168.1.20", "images": ["images/a.jpg"]}\n'
    assert found(row, "output/processed_data/x/processed_data.jsonl") == set()
    assert found(row, "solution/notes.json") == {"an e-mail address", "a host name", "a home directory"}
    assert found('{"images": ["/home/alice/a.jpg"]}', "output/processed_data/x/processed_data.jsonl") == {
        "a home directory"
    }
    assert found("hf_" + MIXED[:34], "output/eval_results/x/bm1.jsonl") == {"a token of Hugging Face"}


def test_lines_and_long_lines(monkeypatch):
    """Line numbers across blocks; a secret on the border of two pieces of one long line."""
    monkeypatch.setattr(texts, "BLOCK", 4096)
    token = "ghp_" + MIXED

    def lines(text: bytes) -> set[int]:
        blocks = texts.lines(io.BytesIO(text))
        return {
            line
            for _, number, block in blocks
            for line, _ in secrets.search(secrets.KEYS, number, block, quoted=False)
        }

    filler = b"some text\n" * 2000
    assert lines(filler + token.encode() + b"\n" + filler) == {2001}
    for start in range(8150, 8200, 7):
        assert lines(b"first\n" + b"x " * (start // 2) + token.encode() + b" x" * 9000 + b"\nlast\n") == {2}


TOKEN = "ghp_" + MIXED


def picture(kind: str, **options) -> bytes:
    """A small image; options: how Pillow saves it."""
    memory = io.BytesIO()
    Image.fromarray(numpy.arange(3072, dtype=numpy.uint8).reshape(32, 32, 3)).save(memory, kind, **options)
    return memory.getvalue()


def artist(text: str) -> bytes:
    """EXIF with a comment."""
    exif = Image.Exif()
    exif[0x013B] = text
    return exif.tobytes()


def remarks(text: str, compressed: bool, international: bool = False) -> PngInfo:
    """A text chunk of PNG."""
    info = PngInfo()
    (info.add_itxt if international else info.add_text)("parameters", text, zip=compressed)
    return info


def zipped(comment: bytes = b"", **members: bytes) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = comment
        for name, content in members.items():
            archive.writestr(name.replace("__", "/"), content)
    return memory.getvalue()


LONG = " ".join(f"word {number}" for number in range(3000))  # a text chunk that is worth compressing
BINARY = {
    "header of safetensors": ("model.safetensors", save({"a": numpy.zeros(4)}, {"made with": TOKEN})),
    "EXIF of a JPEG": ("a.jpg", picture("JPEG", exif=artist(TOKEN))),
    "comment of a JPEG": ("a.jpg", picture("JPEG", comment=TOKEN.encode())),
    "XMP of a JPEG": ("a.jpg", picture("JPEG", xmp=f"<x>{TOKEN}</x>".encode())),
    "EXIF of a PNG": ("a.png", picture("PNG", exif=artist(TOKEN))),
    "text of a PNG": ("a.png", picture("PNG", pnginfo=remarks(TOKEN, compressed=False))),
    "compressed text of a PNG": (
        "a.png",
        picture("PNG", pnginfo=remarks(f"{LONG} {TOKEN}", compressed=True)),
    ),
    "compressed iTXt of a PNG": (
        "a.png",
        picture("PNG", pnginfo=remarks(f"{LONG} {TOKEN}", compressed=True, international=True)),
    ),
    "EXIF of a WebP": ("a.webp", picture("WEBP", exif=artist(TOKEN))),
    "XMP of a WebP": ("a.webp", picture("WEBP", xmp=f"<x>{TOKEN}</x>".encode())),
    "comment of a GIF": ("a.gif", picture("GIF", comment=TOKEN.encode())),
    "EXIF of a TIFF": ("a.tiff", picture("TIFF", tiffinfo={315: TOKEN})),
    "UTF-16": ("notes.txt", f"the key is {TOKEN}".encode("utf-16")),
    "array": ("a.npy", b"\x93NUMPY\1\0v\0{'descr': '<U40'}" + TOKEN.encode("utf-32-le")),
    "properties of a table": ("a.xlsx", zipped(docProps__core=f"<creator>{TOKEN}</creator>".encode())),
    "sheet of a table": ("a.xlsx", zipped(xl__sheet=f"<c>{LONG} {TOKEN}</c>".encode())),
    "comment of a table": ("a.xlsx", zipped(comment=TOKEN.encode(), xl__sheet=b"<c/>")),
    "list of tensors": (
        "a.bin",
        zipped(
            archive__data__pkl=b"", **{"archive__data.pkl": b"\x80\2X\x28\0\0\0" + TOKEN.encode() + b"q\0."}
        ),
    ),
}


@pytest.mark.parametrize("place", BINARY)
def test_places_in_files_that_are_no_text(tree, place):
    """A token is found wherever a format can hold words; an honest file of the kind passes; noise is not
    searched."""
    name, content = BINARY[place]
    entry = Entry(Path(), "synth", ruleset.load("embedded"))
    path = Path("solution", name)
    path.write_bytes(content)
    assert [(finding.file, finding.line, finding.severity) for finding in secrets.keys(entry)] == [
        (str(path), None, "error")
    ]
    clean = content
    for written in (TOKEN.encode(), TOKEN.encode("utf-16-le"), TOKEN.encode("utf-32-le")):
        clean = clean.replace(written, written.replace(b"ghp_", b"ghp-").replace(b"g\0", b"-\0"))
    path.write_bytes(clean)
    assert clean == content or not list(secrets.keys(entry))


def test_noise_is_not_searched(tree):
    """Pixels and tensors may spell anything."""
    entry = Entry(Path(), "synth", ruleset.load("embedded"))
    noise = numpy.frombuffer((TOKEN + " /home/alice/x ").encode() * 3, dtype=numpy.uint8)
    Path("solution/model.safetensors").write_bytes(save({"a": noise}))
    pixels = picture("JPEG") + (TOKEN + " /home/alice/x ").encode()
    Path("solution/a.jpg").write_bytes(pixels)
    assert not [*secrets.keys(entry), *secrets.traces(entry)]


def test_a_text_chunk_that_is_a_bomb(tree, monkeypatch):
    """Is read to a few times its length."""
    entry = Entry(Path(), "synth", ruleset.load("embedded"))
    Path("solution/a.png").write_bytes(picture("PNG", pnginfo=remarks("a" * 900_000, compressed=True)))
    assert sum(len(block) for _, _, block in texts.texts(entry, "solution/a.png")) < 1 << 20
    monkeypatch.setattr(texts, "BLOCK", 4096)
    assert sum(len(block) for _, _, block in texts.texts(entry, "solution/a.png")) < 1 << 16


@pytest.mark.parametrize("kind", [*KEYS, *TRACES])
def test_the_packer_refuses_and_does_not_quote(tree, capsys, kind):
    """Whatever was found, neither the table nor validation.json holds it, and there is no archive."""
    text = (KEYS | TRACES)[kind][0]
    Path("solution/requirements.txt").write_text(f"{text}\n")
    strict = ["--strict"] if kind == "an absolute path" else []  # in the solution only a warning
    assert main(["bundle", "validate", *ENTRY, *strict, "--output", VALIDATION]) == 1
    assert main(["bundle", "submit", *ENTRY, *strict, "--output", "submit.zip"]) == 1
    assert not Path("submit.zip").exists()
    captured, document = capsys.readouterr(), Path(VALIDATION).read_text()
    assert kind in document and '"line": 1' in document and "solution/requirements.txt" in document
    secret = text.split()[-1].strip("\"'")[-12:]
    assert secret not in captured.out + captured.err and secret not in document


def test_licences_keep_their_authors(tree):
    Path("solution/LICENSE").write_text("Copyright Bob <bob@firm.co.uk>\n")
    EntryTree().documents()
    assert main(["bundle", "validate", *ENTRY, "--output", VALIDATION]) == 0
    Path("solution/notes.md").write_text("Bob <bob@firm.co.uk>\n")
    assert main(["bundle", "validate", *ENTRY, "--output", VALIDATION]) == 1


def test_this_machine(tree, monkeypatch):
    monkeypatch.setattr(secrets.socket, "gethostname", lambda: "quaint-otter")
    Path("solution/notes.md").write_text("made on quaint-otter\n")
    EntryTree().documents()
    assert main(["bundle", "validate", *ENTRY, "--output", VALIDATION]) == 1
    monkeypatch.setattr(secrets.socket, "gethostname", lambda: "otter")  # an ordinary word
    assert main(["bundle", "validate", *ENTRY, "--output", VALIDATION]) == 0


def test_no_false_alarm_in_this_repository():
    """Every text of the project itself, but for tests of such texts and paths of the container."""
    names = subprocess.run(
        ["git", "ls-files", "toolkit", "workflow", "solution", "README.md"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    files = [name for name in names.stdout.splitlines() if (REPOSITORY / name).is_file()]
    assert len(files) > 50
    entry = Entry(REPOSITORY, "none", ruleset.load("embedded"))
    for name in files:
        for part, number, block in texts.texts(entry, name):
            quoted = bool(secrets.QUOTED.search(part or name))
            assert not list(secrets.search(secrets.KEYS + secrets.TRACES, number, block, quoted)), name


LONG = "q7" * 32  # 64 characters
FAR = [
    ("a secret given to a name", f"{'a' * 48}api_key = " + "Ab3dE5gH7jK9mN1p" * 25),
    ("a password in an address", f"https://{LONG}:{'p4' * 64}@host"),
    ("an e-mail address", f"{LONG}@" + f"{'b' * 63}." * 8 + "organisations"),
    ("a host name", f"{'n1' * 31}." * 8 + f"{'m' * 63}.internal"),
    ("a host name", f"ssh://{LONG}@10." + "20.30.40"),
    ("a JSON web token", "eyJ" + "Ab3" * 130 + ".eyJ" + "Cd4" * 130),
]


@pytest.mark.parametrize(("kind", "text"), FAR)
def test_the_longest_of_a_kind_are_found_whole(kind, text):
    """The search looks around hints, as far as a match may reach."""
    block = b" " * 5000 + text.encode() + b" " * 5000
    patterns = [pattern for pattern in secrets.KEYS + secrets.TRACES if pattern.kind == kind]
    wholes = {match[0] for pattern in patterns for match in pattern.regex.finditer(block)}
    pieces = {
        match[0]
        for pattern in patterns
        for place in pattern.places(block.lower())
        for match in pattern.regex.finditer(block, *place)
    }
    assert wholes and pieces == wholes
