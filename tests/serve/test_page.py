"""The chat page in a real browser: ask, stream, stop, errors, keyboard, phone width, both colour schemes, and
not one request beyond its server."""

import json
import shutil
import threading
import time

import pytest
from browser import AXE, Browser, needs_axe
from PIL import Image
from tiny_server import NAME, png, serving

from toolkit.mgm.answer import Answerer
from toolkit.mgm.generate import Greedy

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on the PATH (Debian: apt install chromium)"
)
HOSTILE = "<img src=x onerror=\"document.title='owned'\"> & </script>"


@pytest.fixture(scope="module")
def served(folder):
    with serving(folder, 2, new_tokens=20) as served:
        yield served


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(CHROMIUM, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def page(served, browser):
    browser.messages.clear()
    browser.requests.clear()
    browser.open(f"{served.url}/")
    until(browser, f"document.title === {json.dumps(NAME)}")
    yield browser
    asked = [address for address in browser.requests if not address.startswith(("data:", "about:"))]
    assert all(address.startswith(f"{served.url}/") for address in asked)
    assert [text for text in browser.messages if "status of" not in text] == []


def until(browser, condition):
    end = time.monotonic() + 60
    while not browser.value(condition):
        assert time.monotonic() < end, browser.value("document.body.innerText")
        time.sleep(0.02)


def drop(browser, file):
    """Drop a PNG onto the page as a hand would."""
    bytes_of = f"Uint8Array.from({json.dumps(list(file))})"
    event = "new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true })"
    browser.value(
        "{ const data = new DataTransfer(); "
        f"data.items.add(new File([{bytes_of}], 'a.png', {{ type: 'image/png' }})); "
        f"document.body.dispatchEvent({event}); }}"
    )
    until(browser, "!document.getElementById('shown').hidden")


def ask(browser, text):
    browser.value("document.getElementById('question').focus()")
    browser.send("Input.insertText", text=text)
    browser.press("Enter")


def answers(browser):
    return browser.value("[...document.querySelectorAll('.model span')].map((span) => span.textContent)")


CHOOSE = (
    "document.getElementById('which').selectedIndex = {}; "
    "document.getElementById('which').dispatchEvent(new Event('change'))"
)
DONE = "document.getElementById('stop').hidden && document.querySelectorAll('.model').length === {}"


def test_an_image_is_asked_about_and_the_conversation_goes_on(served, folder, page):
    image = Image.effect_noise((60, 40), 90).convert("RGB")
    drop(page, png(image))
    ask(page, "what is this?")
    until(page, DONE.format(1))
    answerer = Answerer(folder, "cpu", 1)
    first = answerer.answer(["what is this?"], [image], 20)[0]
    assert answers(page) == [first]
    assert "tokens/s" in page.value("document.querySelector('.model small').textContent")
    assert page.value("document.querySelector('.user img').naturalWidth") == 60
    ask(page, "red or blue?")
    until(page, DONE.format(2))
    source = page.value("document.querySelector('.user img').src")
    picture = {"type": "image_url", "image_url": {"url": source}}
    turns = [[picture, {"type": "text", "text": "what is this?"}], first, "red or blue?"]
    roles = ("user", "assistant", "user")
    messages = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=True)]
    reply = served.client.post("/v1/chat/completions", json={"messages": messages}).json()
    assert answers(page)[1] == reply["choices"][0]["message"]["content"] != ""
    page.value("document.getElementById('anew').click()")
    assert answers(page) == [] and page.value("!document.getElementById('empty').hidden")
    drop(page, png(image))
    ask(page, "what is this?")
    until(page, DONE.format(1))
    assert answers(page) == [first]


def test_errors_are_shown_and_the_question_is_kept(page):
    ask(page, f"what is <image>? {HOSTILE}")
    until(page, DONE.format(1))
    assert page.value("document.querySelector('[role=alert]').textContent").startswith(
        "Error: a question contains <image>"
    )
    assert page.value("document.getElementById('question').value") == f"what is <image>? {HOSTILE}"
    assert page.value("document.querySelector('.user span').textContent").endswith(HOSTILE)
    assert page.value("document.title") != "owned"
    drop(page, png(Image.new("L", (400, 400))))
    page.value("document.getElementById('question').value = ''")
    ask(page, "what?")
    until(page, DONE.format(2))
    assert "at most 100000 are read" in page.value("document.querySelectorAll('[role=alert]')[1].textContent")


def test_the_answer_streams_and_escape_stops_it(served, page, monkeypatch):
    step, more = Greedy._pass, threading.Semaphore(6)

    def slowly(self, slots, new):
        more.acquire(timeout=60)
        return step(self, slots, new)

    monkeypatch.setattr(Greedy, "_pass", slowly)
    ask(page, "what is the red dog?")
    until(page, "document.querySelector('.model span')?.textContent.length > 0")
    assert not page.value("document.getElementById('stop').hidden")
    page.press("Escape")
    until(page, "document.getElementById('stop').hidden")
    assert page.value("document.querySelector('.model small').textContent") == "stopped"
    more.release(6)
    ask(page, "what is the blue dog?")
    until(page, "document.querySelectorAll('.model span')[1]?.textContent.length > 0")
    page.value("document.getElementById('anew').click()")
    until(page, "document.getElementById('stop').hidden")
    assert page.value("chats.size") == 0  # what was on its way belongs to the chat before
    more.release(1000)
    end = time.monotonic() + 60
    while served.engine.running:  # the server has noticed
        assert time.monotonic() < end
        time.sleep(0.02)


def test_keyboard_alone_reaches_everything(page):
    reached = []
    page.value("document.getElementById('anew').focus()")
    for _ in range(5):
        reached.append(page.value("document.activeElement.id"))
        page.press("Tab")
    assert reached == ["anew", "turns", "question", "choose", "send"]


def test_phone_width_and_both_colour_schemes(page):
    backgrounds = []
    for scheme in ("light", "dark"):
        page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        for width in (1440, 360):
            size = {"width": width, "height": 740, "deviceScaleFactor": 1, "mobile": width < 500}
            page.send("Emulation.setDeviceMetricsOverride", **size)
            assert page.value("document.documentElement.scrollWidth") <= width
            inside = "{ const box = document.getElementById('send').getBoundingClientRect(); "
            inside += "box.right <= innerWidth && box.bottom <= innerHeight && box.height >= 44 }"
            assert page.value(inside)
        backgrounds.append(page.value("getComputedStyle(document.body).backgroundColor"))
    page.send("Emulation.clearDeviceMetricsOverride")
    assert len(set(backgrounds)) == 2


def test_two_models_answer_side_by_side_or_one_alone(folder, second, browser):
    image = Image.effect_noise((60, 40), 90).convert("RGB")
    texts = ["what is this?", "red or blue?"]
    with serving({NAME: folder, "other": second}, 2, new_tokens=20) as served:
        answerers = {NAME: Answerer(folder, "cpu", 1), "other": Answerer(second, "cpu", 1)}
        alone = {name: each.answer([texts[0]], [image], 20)[0] for name, each in answerers.items()}
        assert alone[NAME] != alone["other"]
        browser.open(f"{served.url}/")
        until(browser, "document.title === " + json.dumps(f"{NAME}, other"))
        options = "[...document.querySelectorAll('#which option')].map((option) => option.textContent)"
        assert browser.value(options) == [NAME, "other", f"{NAME} beside other"]
        browser.value(CHOOSE.format(2))
        drop(browser, png(image))
        ask(browser, texts[0])
        until(browser, DONE.format(2))
        assert answers(browser) == [alone[NAME], alone["other"]]
        titles = "[...document.querySelectorAll('.pair b')].map((title) => title.textContent)"
        assert browser.value(titles) == [NAME, "other"]
        first_edge, second_edge = browser.value(
            "[...document.querySelectorAll('.pair .turn')].map((turn) => turn.getBoundingClientRect().left)"
        )
        assert first_edge < second_edge
        if AXE:
            assert browser.barriers() == []
        ask(browser, texts[1])  # each goes on with its own answer
        until(browser, DONE.format(4))
        url = browser.value("document.querySelector('.user img').src")
        first = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": texts[0]}]
        for name, shown in zip((NAME, "other"), answers(browser)[2:], strict=True):
            turns = [("user", first), ("assistant", alone[name]), ("user", texts[1])]
            messages = [{"role": role, "content": content} for role, content in turns]
            chat = {"model": name, "messages": messages}
            reply = served.client.post("/v1/chat/completions", json=chat).json()
            assert (reply["model"], reply["choices"][0]["message"]["content"]) == (name, shown)
        browser.value(CHOOSE.format(1))
        assert answers(browser) == []
        drop(browser, png(image))
        ask(browser, texts[0])
        until(browser, DONE.format(1))
        assert answers(browser) == [alone["other"]]


def test_on_a_phone_two_answers_stand_below_each_other(folder, second, browser):
    with serving({NAME: folder, "other": second}, 2, new_tokens=20) as served:
        size = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
        browser.send("Emulation.setDeviceMetricsOverride", **size)
        browser.open(f"{served.url}/")
        until(browser, "document.querySelectorAll('#which option').length === 3")
        browser.value(CHOOSE.format(2))
        ask(browser, "what?")
        until(browser, DONE.format(2))
        assert browser.value("document.documentElement.scrollWidth") <= 360
        tops = "[...document.querySelectorAll('.pair .turn')].map((turn) => turn.getBoundingClientRect().top)"
        upper, lower = browser.value(tops)
        assert upper < lower
        browser.send("Emulation.clearDeviceMetricsOverride")


@needs_axe
def test_nothing_keeps_anybody_out(page):
    assert page.barriers() == []
    drop(page, png(Image.effect_noise((60, 40), 90).convert("RGB")))
    ask(page, "what is this?")
    until(page, DONE.format(1))
    ask(page, "what is <image>?")  # an error
    until(page, DONE.format(2))
    assert page.barriers() == []
    page.value("document.getElementById('locked').hidden = false")  # the field for the key
    assert page.barriers() == []


def test_a_key_is_asked_for(folder, browser):
    key = "0123456789abcdef-key"
    with serving(folder, 1, key=key) as served:
        browser.open(f"{served.url}/")
        until(browser, "!document.getElementById('locked').hidden")
        ask(browser, "what?")
        until(browser, DONE.format(1))
        assert "the key is missing or wrong" in browser.value(
            "document.querySelector('[role=alert]').innerText"
        )
        browser.value("document.getElementById('key').focus()")
        browser.send("Input.insertText", text=key)
        browser.press("Enter")
        until(browser, f"document.title === {json.dumps(NAME)}")
        browser.value("document.getElementById('send').click()")
        until(browser, DONE.format(2))
        assert answers(browser)[1] and browser.value("!document.querySelectorAll('.wrong')[1]")
