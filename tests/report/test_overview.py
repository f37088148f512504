"""The page over all experiments: what it says is what the records say, texts of others stay text, and in a
real browser filters, search, keys and thousands of questions work without a request."""

import base64
import io
import json
import os
import random
import re
import shutil
from pathlib import Path

import pandas
import pytest
from browser import Browser, needs_axe
from entry_tree import QUESTIONS, EntryTree, word
from PIL import Image

from toolkit.__main__ import main
from toolkit.benchmarks.mmbench import ROTATION
from toolkit.contest.experiment import Experiment
from toolkit.files import read_json, write_json, write_jsonl
from toolkit.report import answers, overview
from toolkit.report.page import reproduction, scores, stages

ROOT = Path(__file__).parents[2]
EVALUATION = Path("input/world-evaluation")
CHROMIUM = shutil.which("chromium")
HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> & "
    "{{ 7 * 7 }} end"
)
PAGE = "output/reports/index.html"
FUNNEL = [
    {"operator": "read", "in": 40, "out": 40},
    {"operator": "words_num_filter", "in": 40, "out": 31},
    {"operator": "repeat_mapper", "in": 31, "out": 62},
]


def build(monkeypatch, root: Path) -> Path:
    """A finished project at `root`, which becomes the working directory."""
    EntryTree().build(root)
    monkeypatch.chdir(root)
    for name in ("toolkit", "workflow"):
        Path(name).symlink_to(ROOT / name)
    record = read_json("output/processed_data/synth/run.json")
    record["results"]["funnel"] = FUNNEL
    write_json("output/processed_data/synth/run.json", record)
    return root


def pictures() -> None:
    """Images of the TextVQA-like questions; two show the same."""
    for number in range(QUESTIONS):
        image = Image.effect_noise((120, 90), 60 + 5 * max(1, number)).convert("RGB")
        path = EVALUATION / f"textvqa/train_images/q{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        image.save(path)
    shutil.copy(EVALUATION / "textvqa/train_images/q0.jpg", EVALUATION / "textvqa/train_images/q1.jpg")


def hostile() -> None:
    """Texts of others that would like to be more: an answer, a question's option and a reason."""
    path = Path(Experiment.find(Path(), "synth").answers["textvqa"])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[3]["text"] = HOSTILE
    write_jsonl(path, rows)
    EntryTree().score("synth")
    table = EVALUATION / "mmbench/mmbench_dev_20230712.tsv"
    frame = pandas.read_csv(table, sep="\t", dtype=str)
    frame.loc[frame["index"] == "5", "question"] = f"which {HOSTILE}?"
    frame["category"] = [HOSTILE if int(index) % ROTATION == 7 else "kind" for index in frame["index"]]
    frame.to_csv(table, sep="\t", index=False)
    reason = json.dumps([{"id": "R1", "file": "solution/readme", "reason": HOSTILE}])
    Path("solution/exceptions.yaml").write_text(reason)


def make() -> str:
    assert main(["report", "overview", "--config", "output/reports/config.yaml", "--output", PAGE]) == 0
    return Path(PAGE).read_text(encoding="utf-8")


def answered(page: str) -> dict:
    """What the script of a page reads."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page)[1])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A page of 20 TextVQA-like and 20 MMBench-like questions, hostile ones among them."""
    with pytest.MonkeyPatch.context() as patch:
        root = build(patch, tmp_path_factory.mktemp("project") / "tree")
        pictures()
        hostile()
        make()
    return root


@pytest.fixture
def page(finished, monkeypatch):
    monkeypatch.chdir(finished)
    return Path(PAGE).read_text(encoding="utf-8")


# --- what it says


def test_scores_are_those_of_the_comparison(page):
    compared = read_json("output/reports/compare.json")
    for benchmark in compared["benchmarks"].values():
        for result in benchmark["results"].values():
            assert f"<span>{result['accuracy']:.2f}</span>" in page
            if "difference" in result:
                low, high = result["difference_interval"]
                assert f"<b>{result['difference']:+.2f}</b> points, {low:.2f} to {high:.2f} over the" in page
    score = compared["score"]["MGM-Tiny-Finetune-synth"]
    assert f'<b class="score">{score["score"]:.2f}</b>' in page and score["verdict"] == "better"
    assert "Better than baseline: the 95 % interval lies wholly above." in page


@pytest.mark.parametrize(
    ("verdict", "seeds", "sentence"),
    [
        ("better", 1, "Better than raw: the 95 % interval lies wholly above."),
        ("worse", 3, "Worse than raw: both 95 % intervals lie wholly below."),
        ("undecided", 1, "Undecided: the 95 % interval does not exclude that it equals raw."),
        ("undecided", 3, "Undecided: one of the 95 % intervals does not exclude that it equals raw."),
    ],
)
def test_verdicts_in_words(verdict, seeds, sentence):
    row = {"verdict": verdict, "interval": [1.0, 2.0]}
    row |= {"over_seeds": {"interval": [0.5, None]}} if seeds > 1 else {}
    assert overview.words(row, "raw") == sentence
    over = [("questions", "1.0 to 2.0"), ("seeds", "0.5 to unbounded")]
    assert overview.intervals(row, "interval", 1) == over[: 1 + (seeds > 1)]


def test_the_funnel_has_every_operator_with_its_counts(page):
    text = re.sub(r"<[^>]+>", " ", page.replace("<wbr>", ""))
    assert re.search(r"words_num_filter\s+31\s+\u22129\s", text)
    assert re.search(r"repeat_mapper\s+62\s+\+31\s", text)


def test_a_stage_on_a_base_in_fewer_bits_says_so(tmp_path, monkeypatch):
    build(monkeypatch, tmp_path / "tree")
    for stage in ("Pretrain", "Finetune"):
        path = Path(f"output/training_dirs/MGM-Tiny-{stage}-synth/run.json")
        record = read_json(path)
        record["settings"].get("lora", record["settings"])["base"] = "fp8"
        write_json(path, record)
    _, rows = stages([Experiment.find(Path(), name) for name in ("baseline", "synth")])
    labels = ["pretrain", "finetune, open"]
    assert [row[1] for row in rows] == labels + [f"{label}, base fp8" for label in labels]


def test_an_evaluation_of_one_image_has_no_control_in_the_report(tmp_path, monkeypatch):
    build(monkeypatch, tmp_path / "tree")
    experiment = Experiment.find(Path(), "synth")
    path = Path(experiment.score("textvqa")).with_name("run.json")
    record = read_json(path)
    del record["results"]["control"]
    write_json(path, record)
    assert "| MMBench (circular) | synth |" in (text := scores([experiment]))
    assert "| TextVQA | synth |" not in text


def test_the_report_of_several_seeds_says_that_it_shows_means(tmp_path, monkeypatch):
    build(monkeypatch, tmp_path / "tree")
    found = read_json("output/reports/compare.json")
    spread = {"seeds": [1024, 7], "interval": [1.0, 2.0]}
    for content in found["benchmarks"].values():
        for row in content["results"].values():
            row["over_seeds"] = spread | {"accuracies": [40.0, 50.0], "difference_interval": [-42.56, 103.56]}
    for row in found["score"].values():
        row["over_seeds"] = spread | {"scores": [1.2, 1.4], "interval": [0.55, 1.75]}
    write_json("output/reports/compare.json", found)
    runs = [Experiment.find(Path(), name) for name in ("baseline", "synth")]
    text = scores(runs)
    assert text.count("; over seeds -42.56 to 103.56), ") == 2 and "; over seeds 0.55 to 1.75)" in text
    assert "means over the training seeds 1024, 7; the intervals over seeds are Student's" in text
    assert "of the first seed (the folders of the others end in `-seed7`):" in reproduction(runs)


def test_records_are_linked_from_where_the_page_lies(page):
    links = {link for link in re.findall(r'href="([^"#]+)"', page) if not link.startswith("data")}
    assert "../training_dirs/MGM-Tiny-Finetune-synth/merge.json" in links and "compare.json" in links
    assert all((Path(PAGE).parent / link).is_file() for link in links), links


def test_nothing_is_loaded(page):
    sources = re.findall(r'(?:src|href|action|poster|srcset)="([^"]*)"|url\(([^)]*)\)|@import', page)
    assert all(not re.match(r"(?:https?:)?//", "".join(pair)) for pair in sources)
    assert {pair[0][:5] for pair in sources if pair[0].startswith("data:")} == {"data:"}
    assert page.count("<script") == 2 and "default-src 'none'" in page


def test_texts_of_others_are_escaped(page):
    assert "document.title='owned'" not in page and "<img src=x" not in page
    assert answered(page)["questions"][3][6][1] == [HOSTILE]


def test_answers_of_both_experiments_stand_beside_references(page):
    data = answered(page)
    assert data["experiments"] == ["baseline", "synth"] and len(data["questions"]) == 2 * QUESTIONS
    benchmark, text, image, right, part, scores, said = data["questions"][0]
    assert (benchmark, text, part) == (0, "what is word 0?\nReference OCR token: a, b", "")
    assert (right, scores, said) == ([[word(0), 10]], [1.0, 1.0], [[word(0)], [word(0)]])
    assert data["benchmarks"][0]["ending"] == "Answer the question using a single word or phrase."
    later = QUESTIONS - 1  # neither knows it
    assert data["questions"][later][5] == [0.0, 0.0]
    assert data["images"][image][1] == os.path.relpath(
        EVALUATION / "textvqa/train_images/q0.jpg", "output/reports"
    )
    # the four rotations ask for another letter each, and for the same option
    benchmark, text, _, right, part, scores, said = data["questions"][QUESTIONS]
    assert (benchmark, part, scores, said[1]) == (1, "kind", [1, 1], [[right[0], 4]])
    assert text.startswith("which 0?\nA. option ")


def test_a_picture_is_stored_once(page):
    data = answered(page)
    places = [place for place, path in data["images"] if "train_images" in path]
    assert places[0] == places[1] and len(set(places)) == QUESTIONS - 1 == len(data["pictures"])
    with Image.open(io.BytesIO(base64.b64decode(data["pictures"][0]))) as picture:
        assert (picture.format, picture.size) == ("WEBP", (answers.SIDE, 72))
    assert "20 images of MMBench cannot be read." in page


def test_without_images_the_page_says_so(tmp_path, monkeypatch):
    build(monkeypatch, tmp_path / "tree")
    page = make()
    assert "No pictures of TextVQA: " in page and "q0.jpg does not exist" in page
    assert len(answered(page)["questions"]) == 2 * QUESTIONS and answered(page)["pictures"] == []


def test_a_page_that_cannot_be_made_is_explained(tmp_path, monkeypatch, capsys):
    build(monkeypatch, tmp_path / "tree")
    path = Path(Experiment.find(Path(), "synth").answers["textvqa"])
    kept = path.read_text()
    path.write_text("".join(kept.splitlines(keepends=True)[1:]))
    arguments = ["report", "overview", "--config", "output/reports/config.yaml", "--output", PAGE]
    assert main(arguments) == 1
    assert "bm1.jsonl is not the file that" in capsys.readouterr().err
    path.write_text(kept)
    Path("output/training_dirs/MGM-Tiny-Finetune-synth/merge.json").unlink()
    assert main(arguments) == 1
    assert "merge.json does not exist: build it first" in capsys.readouterr().err
    assert not Path(PAGE).exists()


# --- as large as the contest's evaluation


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """5,000 TextVQA and 4,329 MMBench questions and all the pictures that a page may hold."""
    generator = random.Random(1)
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = ["".join(generator.choices(letters, k=generator.randint(3, 9))) for _ in range(3000)]

    def some(count: int) -> str:
        return " ".join(generator.choices(vocabulary, k=count))

    def question(place: int) -> list:
        scores = [generator.choice([0, 0.3, 1]), generator.choice([0, 0.6, 1])]
        said = [[some(2)], [some(2)]]
        if place < 5000:
            text, right = f"{some(8)}\nReference OCR token: {some(10)}", [[some(2), 5], some(2), some(2)]
            return [0, text, place, right, "", scores, said]
        text = "\n".join([some(9), *(f"{letter}. {some(3)}" for letter in "ABCD")])
        return [1, text, place, [some(3)], f"part {place % 20}", scores, said]

    count = 9329
    pictures = [
        base64.b64encode(generator.randbytes(answers.PICTURES // count)).decode() for _ in range(count)
    ]
    data = {
        "experiments": ["baseline", "synth"],
        "benchmarks": [
            {"title": title, "ending": "Answer.", "notes": []} for title in ("TextVQA", "MMBench")
        ],
        "pictures": pictures,
        "images": [
            [place, f"../../input/evaluation/train_images/{place:016d}.jpg"] for place in range(count)
        ],
        "questions": list(map(question, range(count))),
    }
    with pytest.MonkeyPatch.context() as patch:
        build(patch, tmp_path_factory.mktemp("large") / "tree")
        patch.setattr(overview, "browsed", lambda *arguments: data)
        make()
        return Path(PAGE).resolve()


def test_a_page_of_the_contest_s_size_is_under_15_megabytes(large):
    assert 12_000_000 < large.stat().st_size < 15_000_000


def test_pictures_end_where_they_would_be_too_many(finished, monkeypatch, tmp_path):
    monkeypatch.chdir(finished)
    monkeypatch.setattr(answers, "PICTURES", 5000)
    target = tmp_path / "index.html"
    assert (
        main(["report", "overview", "--config", "output/reports/config.yaml", "--output", str(target)]) == 0
    )
    page = target.read_text(encoding="utf-8")
    kept = answered(page)["pictures"]
    assert 0 < sum(len(base64.b64decode(picture)) for picture in kept) <= 5000
    assert re.search(r"\d+ images of TextVQA are left out: this page holds 5,000 bytes", page)


# --- in a browser

browsing = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on the PATH (Debian: apt install chromium)"
)
SHOWN = "[...document.querySelectorAll('#list .row > .clamp')].map((cell) => cell.textContent)"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    browser = Browser(CHROMIUM, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def browser(chromium):
    """Whatever a test does: no message in the console, nothing asked for but the page."""
    chromium.messages.clear()
    chromium.requests.clear()
    yield chromium
    assert chromium.messages == []
    assert all(re.match(r"about:|data:|file:.*/index\.html", address) for address in chromium.requests)


def counted(browser: Browser) -> str:
    return browser.value("document.getElementById('count').textContent")


def outcomes(browser: Browser) -> dict[str, int]:
    buttons = browser.value(
        "[...document.querySelectorAll('#outcomes button')].map((button) => [button.value, "
        "button.firstChild.textContent])"
    )
    return {name: int(count.replace(",", "")) for name, count in buttons}


@browsing
def test_outcomes_and_filters(finished, browser):
    address = (finished / PAGE).as_uri()
    browser.open(f"{address}#benchmark=0")
    # the baseline answers 6 of 20 right and synth 14, of which one is the hostile one
    rows = answered((finished / PAGE).read_text(encoding="utf-8"))["questions"]
    pairs = [row[5] for row in rows if row[0] == 0]
    expected = {
        "fixed": sum(after > before for before, after in pairs),
        "broken": sum(after < before for before, after in pairs),
        "wrong": sum(before == after == 0 for before, after in pairs),
        "right": sum(before == after > 0 for before, after in pairs),
    }
    assert outcomes(browser) == expected and sum(expected.values()) == QUESTIONS
    assert counted(browser) == "20 of 40 questions"
    browser.value("document.querySelector('#outcomes [value=fixed]').click()")
    assert counted(browser) == f"{expected['fixed']} of 40 questions"
    assert browser.value("location.hash") == "#benchmark=0&outcome=fixed"
    assert browser.value("document.querySelector('#outcomes [value=fixed]').ariaPressed") == "true"
    browser.open(f"{address}#part=kind")
    assert counted(browser) == "19 of 40 questions"
    browser.open(f"{address}#kind=3")  # "option 2": several words
    assert counted(browser) == "20 of 40 questions"
    browser.value("document.querySelector('#filters [type=reset]').click()")
    assert counted(browser) == "40 of 40 questions"


@browsing
def test_search_wants_all_words_in_any_order(finished, browser):
    browser.open((finished / PAGE).as_uri())
    browser.press("/")
    assert browser.value("document.activeElement.id") == "text"
    browser.press(*"12", " ", *"word")
    browser.value(
        "document.getElementById('text').value = '12 WORD'; "
        "document.getElementById('text').dispatchEvent(new Event('input'))"
    )
    assert browser.value(SHOWN) == ["what is word 12?\nReference OCR token: a, b"]
    browser.open(f"{(finished / PAGE).as_uri()}#text=no+such+text")
    assert counted(browser) == "0 of 40 questions"
    assert browser.value("document.getElementById('nothing').hidden") is False


@browsing
def test_keys(finished, browser):
    browser.open((finished / PAGE).as_uri())
    active = "document.querySelector('[aria-selected=true]').getAttribute('aria-posinset')"
    browser.value("document.getElementById('list').focus()")
    browser.press("ArrowDown", "ArrowDown", "ArrowUp")
    assert browser.value(active) == "2"
    browser.press("End")
    assert browser.value(active) == "40"
    assert browser.value("document.getElementById('list').getAttribute('aria-activedescendant')") == "row-39"
    browser.press("Home", "Enter")
    title = "document.getElementById('row-title').textContent"
    assert browser.value(title) == "TextVQA, 1 of 40"
    browser.press("ArrowRight")
    assert browser.value(title) == "TextVQA, 2 of 40"
    browser.press("Escape")
    assert browser.value("document.getElementById('row').open") is False
    assert browser.value("document.activeElement.id") == "list" and browser.value(active) == "2"


@browsing
def test_a_hostile_text_stays_text(finished, browser):
    browser.open(f"{(finished / PAGE).as_uri()}#text=onerror&benchmark=0")
    assert counted(browser) == "1 of 40 questions"
    browser.value("document.querySelector('#list .row').click()")
    shown = browser.value("document.getElementById('details').textContent")
    assert HOSTILE in shown and browser.value("document.querySelectorAll('#details script').length") == 0
    assert browser.value("document.title") == browser.value("document.querySelector('h1').textContent")
    assert HOSTILE in browser.value("document.getElementById('records').textContent")  # the reason
    browser.open(f"{(finished / PAGE).as_uri()}#benchmark=1&text=owned")
    browser.value("document.querySelector('#list .row').click()")
    browser.value("document.getElementById('part').focus()")
    assert browser.value("document.title") != "owned"


@browsing
def test_the_policy_stops_a_script_that_got_in_all_the_same(finished, browser):
    browser.open((finished / PAGE).as_uri())
    browser.value(
        "{ const s = document.createElement('script'); s.textContent = \"document.title = 'owned'\"; "
        "document.body.append(s); }"
    )
    assert browser.value("document.title") != "owned"
    assert browser.messages and all("Content Security Policy" in message for message in browser.messages)
    browser.messages.clear()


@browsing
def test_thousands_of_questions_are_a_few_rows_at_a_time(large, browser):
    browser.open(large.as_uri())
    nodes, rows = (
        "document.getElementsByTagName('*').length",
        "document.querySelectorAll('#list .row').length",
    )
    assert counted(browser) == "9,329 of 9,329 questions"
    before = browser.value(nodes)
    assert before < 2000 and 0 < browser.value(rows) < 40
    browser.value("document.getElementById('list').focus()")
    browser.press("End")
    assert (
        browser.value("document.querySelector('[aria-selected=true]').getAttribute('aria-posinset')")
        == "9329"
    )
    browser.value("document.getElementById('list').scrollTop = 400000")
    wait = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
    browser.send("Runtime.evaluate", expression=wait, awaitPromise=True)
    assert 0 < browser.value(rows) < 40 and browser.value(nodes) < before + 200
    first = browser.value("Number(document.querySelector('#list .row').getAttribute('aria-posinset'))")
    assert 4000 < first < 5000
    browser.value("document.querySelector('#outcomes [value=broken]').click()")
    assert 0 < browser.value(rows) < 40 and counted(browser) != "9,329 of 9,329 questions"


@browsing
def test_dark_and_light(finished, browser):
    colours = []
    for scheme in ("light", "dark"):
        browser.send(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
        )
        browser.open((finished / PAGE).as_uri())
        colours.append(browser.value("getComputedStyle(document.body).backgroundColor"))
    assert colours == ["rgb(246, 247, 249)", "rgb(20, 23, 28)"]


@browsing
def test_a_narrow_window_needs_no_sideways_scrolling(finished, browser):
    browser.send(
        "Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=False
    )
    browser.open((finished / PAGE).as_uri())
    assert browser.value("document.documentElement.scrollWidth") <= 390
    assert browser.value("document.querySelectorAll('#list .row .who').length") > 0
    browser.send("Emulation.clearDeviceMetricsOverride")


@browsing
@needs_axe
def test_nothing_keeps_anybody_out(finished, browser):
    browser.open((finished / PAGE).as_uri())
    assert browser.barriers() == []
    browser.value("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    browser.value("document.querySelector('#outcomes [value=fixed]').click()")
    browser.value("document.querySelector('#list .row').click()")
    assert browser.value("document.getElementById('row').open") and browser.barriers() == []
    browser.press("Escape")
    assert browser.barriers() == []
    browser.open(f"{(finished / PAGE).as_uri()}#text=no+such+text")
    assert browser.barriers() == []
