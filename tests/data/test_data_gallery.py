"""The gallery in a real browser: filters, keyboard, hostile captions, and not one request beyond its
folder."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest
from browser import PATIENCE, Browser, needs_axe
from tiny_data import record, seed_row, seed_set, write_rows

from toolkit.__main__ import main
from toolkit.data.analysis import gallery
from toolkit.data.samples import caption_of
from toolkit.files import read_jsonl

CHROMIUM = shutil.which("chromium")
HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> & "
    "{{data}} \u2028 end"
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on the PATH (Debian: apt install chromium)"
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """60 kept rows (ids 0 to 59, every third with a new caption), 4 removed, the last a repeat of row 5, and
    2 quarantined; .page, .folder (moved), .written, .arguments, .seed."""
    folder = tmp_path_factory.mktemp("analysed")
    seed = seed_set(folder, 64)
    seed[7] = seed_row(7, HOSTILE)
    seed[5]["images"] = ["images/00000/a picture #5, 100%.jpg"]
    shutil.copy(folder / seed_row(5, "")["images"][0], folder / seed[5]["images"][0])
    kept = [dict(row) for row in seed[:60]]
    for number in range(0, 60, 3):
        kept[number] = seed_row(number, "new caption of a zeppelin" + " again" * (number // 3))
    gone = [
        {
            "line": number + 1,
            "id": seed[number]["id"],
            "operator": "image_shape_filter" if number < 63 else "image_deduplicator",
            "step": 1 if number < 63 else 3,
            "reason": "image_width [20]; kept is min_width 64",
            "statistics": {"image_width": [20 + number]},
            "limits": {"min_width": 64},
            "text": seed[number]["text"],
            "row": seed[number],
            **({"of": seed[5]["id"]} if number == 63 else {}),
        }
        for number in range(60, 64)
    ]
    outside = {**seed_row(70, "a path out"), "images": ["../../secret.jpg"]}
    gone += [
        {
            "line": 65,
            "id": None,
            "operator": "read",
            "reason": "malformed line",
            "row": '{"id": "<b>broken</b>',
        },
        {
            "line": 66,
            "id": outside["id"],
            "operator": "read",
            "reason": "image path ../../secret.jpg leaves the folder",
            "row": outside,
        },
    ]
    steps = [
        ("read", 66, 64),
        ("image_shape_filter", 64, 61),
        ("mapper", 61, 61),
        ("image_deduplicator", 61, 60),
        ("result", 60, 60),
    ]
    funnel = [{"operator": name, "in": before, "out": after} for name, before, after in steps]
    rows, removed = write_rows(folder / "rows.jsonl", kept), write_rows(folder / "removed.jsonl", gone)
    outputs = {"processed_data": rows, "removed": removed}
    record(folder / "run.json", outputs, {"funnel": funnel})
    arguments = ["data", "analyze", str(rows), "--images", str(folder), "--removed", str(removed)]
    arguments += ["--record", str(folder / "run.json")]
    arguments += ["--seed-samples", str(write_rows(folder / "seed.jsonl", seed))]
    assert main([*arguments, "--output", str(folder / "out")]) == 0
    # the page stands alone: it is looked at where nothing else is
    moved = shutil.copytree(folder / "out", tmp_path_factory.mktemp("alone") / "gallery")
    return SimpleNamespace(
        folder=moved,
        page=(moved / "index.html").as_uri(),
        arguments=arguments,
        written=folder / "out",
        seed=seed,
    )


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(CHROMIUM, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(autouse=True)
def clean(browser: Browser) -> Iterator[None]:
    """Whatever a test does: no message in the console, nothing but files asked for."""
    browser.messages.clear()
    browser.requests.clear()
    yield
    assert browser.messages == []
    assert [
        address for address in browser.requests if not address.startswith(("file:", "about:", "data:"))
    ] == []


def ids(browser: Browser) -> list[str]:
    """Ids of the cards on the page, without their zeros."""
    found = browser.value("[...document.querySelectorAll('.card')].map((card) => card.dataset.id)")
    return [row_id.lstrip("0") or row_id[-1:] for row_id in found]


def count(browser: Browser) -> str:
    return browser.value("document.getElementById('count').textContent")


def wait_for(browser: Browser, expression: str) -> None:
    """Until JavaScript is true in the page."""
    end = time.monotonic() + PATIENCE
    while not browser.value(expression):
        assert time.monotonic() < end, f"{expression} does not come true"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ("state=removed", ["60", "61", "62", "63"]),
        ("operator=1", ["60", "61", "62"]),
        ("operator=3", ["63"]),
        ("operator=read", ["", "70"]),
        ("state=removed,quarantined&text=leaves", ["70"]),
        ("text=BROKEN", [""]),
        ("min.image_width=81&max.image_width=82", ["61", "62"]),
        ("changed=1&min.words=9&max.words=10", ["12", "15"]),
        ("changed=1&text=zeppelin&order=-words&page=1&max.words=6", ["3", "0"]),
        ("text=again+zeppelin&max.words=6", ["3"]),
        ("text=again+no-such-text", []),
        ("text=no-such-text", []),
    ],
)
def test_the_address_filters(built, browser, filters, expected):
    browser.open(f"{built.page}#{filters}")
    assert ids(browser) == expected
    assert count(browser) == f"{len(expected)} of 66 rows"
    assert ("No row passes" in browser.value("document.getElementById('cards').textContent")) == (
        expected == []
    )


def test_pages_hold_all_rows_once(built, browser):
    browser.open(built.page)
    first = ids(browser)
    browser.value("document.getElementById('forth').click()")
    second = ids(browser)
    assert len(first) == 48 and len(second) == 18 and not {*first} & {*second}
    assert browser.value("location.hash") == "#page=2"
    browser.open(f"{built.page}#page=99")
    assert browser.value("document.getElementById('page').textContent") == "2 / 2"


def test_a_hostile_caption_is_text(built, browser):
    browser.open(f"{built.page}#text=onerror")
    assert ids(browser) == ["7"]
    shown = browser.value("document.querySelector('.card .caption').textContent")
    assert shown == HOSTILE
    browser.value("document.querySelector('.card').click()")
    assert HOSTILE in browser.value("document.getElementById('details').textContent")
    assert browser.value("document.title") == browser.value("data.title")
    assert browser.value("document.querySelectorAll('script').length") == 2


def test_the_policy_stops_a_script_that_got_in_all_the_same(built, browser):
    browser.open(built.page)
    browser.value(
        "{ const s = document.createElement('script'); s.textContent = \"document.title = 'owned'\"; "
        "document.body.append(s); }"
    )
    assert browser.value("document.title") != "owned"
    assert len(browser.messages) >= 1 and all(
        "Content Security Policy" in message for message in browser.messages
    )
    browser.messages.clear()


def test_keys(built, browser):
    browser.open(f"{built.page}#state=removed")
    browser.press("/", *"shape")
    assert browser.value("document.activeElement.id") == "text"
    wait_for(browser, "new URLSearchParams(location.hash.slice(1)).get('text') === 'shape'")
    assert ids(browser) == []  # the operator's name is not part of a row's text
    browser.value("document.getElementById('filters').reset()")
    assert count(browser) == "66 of 66 rows" and browser.value("location.hash") in ("", "#")
    browser.value("document.activeElement.blur()")
    browser.press("ArrowRight")
    assert browser.value("document.getElementById('page').textContent") == "2 / 2"
    browser.value("document.querySelector('.card').focus()")
    browser.press("Enter")
    title = "document.getElementById('row-title').textContent"
    first = browser.value(title)
    assert browser.value("document.getElementById('row').open") is True
    browser.press("ArrowRight")
    assert browser.value(title) != first
    browser.press("ArrowLeft")
    assert browser.value(title) == first
    browser.press("Escape")
    assert browser.value("document.getElementById('row').open") is False
    assert browser.value("document.activeElement.className") == "card"  # where it was


def test_what_is_typed_is_searched_once(built, browser):
    browser.open(built.page)
    browser.value(
        "{ window.times = 0; const cards = document.getElementById('cards'), field = "
        "document.getElementById('text'); new MutationObserver(() => { times += 1; }).observe(cards, "
        "{ childList: true }); for (const letter of 'zeppelin') { field.value += letter; "
        "field.dispatchEvent(new Event('input', { bubbles: true })); } }"
    )
    wait_for(browser, "location.hash === '#text=zeppelin'")
    assert browser.value("times") == 1 and len(ids(browser)) == 20


def test_a_repeat_is_shown_beside_the_row_that_it_repeats(built, browser):
    browser.open(f"{built.page}#operator=3")
    browser.value("document.querySelector('.card').click()")
    pictures = browser.value("[...document.querySelectorAll('#shots img')].map((image) => image.src)")
    assert len(set(pictures)) == 2
    assert caption_of(built.seed[5]["text"]) in browser.value("document.getElementById('shots').textContent")
    browser.value("document.getElementById('repeated').click()")
    assert browser.value("document.getElementById('row-title').textContent") == built.seed[5]["id"]
    assert browser.value("[...document.querySelectorAll('#shots img')].map((image) => image.src)") == [
        pictures[1]
    ]


def test_the_original_image_is_one_click_away(built, browser):
    browser.open(f"{(built.written / 'index.html').as_uri()}#text={built.seed[5]['id']}&state=kept")
    browser.value("document.querySelector('.card').click()")
    original = Path(unquote(urlsplit(browser.value("document.querySelector('#shots a').href")).path))
    assert original.resolve() == (built.written.parent / built.seed[5]["images"][0]).resolve()
    assert original.is_file()


def test_before_and_after_are_told_apart(built, browser):
    browser.open(f"{built.page}#text=zeppelin&max.words=5")
    browser.value("document.querySelector('.card').click()")
    new = browser.value("[...document.querySelectorAll('ins')].map((word) => word.textContent)")
    assert "zeppelin" in new and browser.value("document.querySelectorAll('del').length") > 0


def test_the_funnel_filters(built, browser):
    browser.open(built.page)
    steps = browser.value("[...document.querySelectorAll('.step')].map((step) => step.textContent)")
    assert len(steps) == 5 and "image_shape_filter" in steps[1] and steps[1].endswith("61 \u22123")
    browser.value("document.querySelectorAll('.step')[1].click()")
    assert sorted(ids(browser)) == ["60", "61", "62"]
    assert browser.value("document.querySelectorAll('.step')[1].ariaPressed") == "true"


def test_pictures_and_figures_are_shown(built, browser):
    browser.open(f"{built.page}#state=kept,removed")
    whole = (
        "[...document.images].filter((image) => image.getBoundingClientRect().top < "
        "innerHeight).map((image) => image.naturalWidth)"
    )
    sizes = browser.value(whole)
    assert len(sizes) >= 3 and min(sizes) > 0
    assert "secret" not in "".join(browser.requests)
    with_picture = browser.value("data.rows.map((row) => [row.state, Boolean(row.thumbnail)])")
    assert all(pictured == (state != "quarantined") for state, pictured in with_picture)


def test_dark_and_light(built, browser):
    colors = []
    for scheme in ("light", "dark"):
        browser.send(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
        )
        browser.open(built.page)
        colors.append(browser.value("getComputedStyle(document.body).backgroundColor"))
    assert colors == ["rgb(246, 247, 249)", "rgb(20, 23, 28)"]


def test_a_narrow_window_needs_no_sideways_scrolling(built, browser):
    browser.send(
        "Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=False
    )
    browser.open(built.page)
    assert browser.value("document.documentElement.scrollWidth") <= 390
    browser.send("Emulation.clearDeviceMetricsOverride")


@needs_axe
@pytest.mark.parametrize("filters", ["", "operator=3", "text=no-such-text", "state=quarantined"])
def test_nothing_keeps_anybody_out(built, browser, filters):
    browser.open(f"{built.page}#{filters}")
    assert browser.barriers() == []
    if ids(browser):
        browser.value("document.querySelector('.card').click()")
        assert browser.value("document.getElementById('row').open") and browser.barriers() == []


def test_the_same_bytes_again_on_any_number_of_processes(built):
    again = built.written.with_name("again")  # beside the first: links to the originals are relative
    assert main([*built.arguments, "--processes", "2", "--output", str(again)]) == 0
    files = sorted(path.relative_to(built.folder) for path in built.folder.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert all((built.folder / file).read_bytes() == (again / file).read_bytes() for file in files)
    assert len(files) > 60


def test_many_rows_become_a_stated_sample(built, tmp_path, monkeypatch, browser):
    monkeypatch.setattr(gallery, "ROWS", 20)
    assert main([*built.arguments, "--output", str(tmp_path / "few")]) == 0
    browser.open((tmp_path / "few" / "index.html").as_uri())
    assert count(browser) == "20 of 20 rows"
    assert "Shown are 20 of 66 rows" in browser.value("document.getElementById('footer').textContent")
    assert 18 <= len(list((tmp_path / "few/thumbnails").glob("*.jpg"))) <= 20


def test_a_file_that_synthesize_did_not_write(built, tmp_path, capsys):
    arguments = list(built.arguments)
    arguments[arguments.index("--removed") + 1] = str(write_rows(tmp_path / "removed.jsonl", [{"id": "1"}]))
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 1
    assert "removed.jsonl, line 1 is not what `data synthesize` writes" in capsys.readouterr().err


def influences(built, folder: Path) -> tuple[Path, dict[str, float]]:
    """influence.jsonl of all kept rows but the first, and the influence on TextVQA by id as on the cards."""
    rows = list(read_jsonl(built.arguments[2]))[1:]
    values = {row["id"]: (-1) ** number * (number + 0.5) for number, row in enumerate(rows)}
    lines = [
        {
            "id": row["id"],
            "caption": caption_of(row["text"]),
            "influence": {"textvqa": values[row["id"]], "mmbench": 0.25},
        }
        for row in rows
    ]
    path = write_rows(folder / "influence.jsonl", lines)
    return path, {row_id.lstrip("0") or "0": value for row_id, value in values.items()}


def test_rows_that_helped_and_rows_that_hurt(built, tmp_path, browser):
    path, values = influences(built, tmp_path)
    assert main([*built.arguments, "--influence", str(path), "--output", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "index.html").as_uri()
    browser.open(f"{page}#state=kept&order=-influence+on+TextVQA")
    assert browser.value("document.getElementById('order').selectedOptions[0].textContent") == (
        "influence on TextVQA, helped most first"
    )
    helped = sorted(values, key=lambda row_id: -values[row_id])
    assert ids(browser) == helped[:48]
    card = browser.value("document.querySelector('.card').textContent")
    assert f"helped +{values[helped[0]]}on TextVQA" in card and "helped +0.25on MMBench" in card
    browser.value(
        "{ const order = document.getElementById('order'); order.value = 'influence on TextVQA'; "
        "order.dispatchEvent(new Event('change')); }"
    )
    assert ids(browser)[:10] == helped[:-11:-1]
    card = browser.value("document.querySelector('.card').textContent")
    assert f"hurt \u2212{-values[helped[-1]]}on TextVQA" in card


def test_without_influence_the_page_holds_none(built, browser):
    text = (built.folder / "index.html").read_text()
    assert '"influence' not in text.partition('id="data">')[2].partition("</script>")[0]
    browser.open(f"{built.page}#state=kept")
    assert "helped" not in browser.value("document.getElementById('explorer').textContent")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ({"id": "000000001", "influence": {"textvqa": 1.0}}, "line 1 is not what `data influence` writes"),
        ({"id": "1", "caption": "a", "influence": {"nobench": 1.0}}, "line 1 is not what"),
        ({"id": "1", "caption": "a", "influence": {"textvqa": "high"}}, "line 1 is not what"),
        ({"id": "none", "caption": "a", "influence": {"textvqa": 1.0}}, "holds none of these rows"),
    ],
)
def test_a_file_that_influence_did_not_write(built, tmp_path, capsys, line, problem):
    path = write_rows(tmp_path / "influence.jsonl", [line])
    assert main([*built.arguments, "--influence", str(path), "--output", str(tmp_path / "out")]) == 1
    assert problem in capsys.readouterr().err
