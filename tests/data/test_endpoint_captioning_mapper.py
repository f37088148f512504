"""Captions from an endpoint, and what all operators that ask one share: arguments, unusable answers, a recipe
rebuilt offline."""

import base64
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from chat_server import KEY, Server
from endpoint_tools import COST, run
from PIL import Image
from test_data_synthesize import synthesize_arguments
from tiny_data import ROOT, picture, seed_set

from toolkit.__main__ import main
from toolkit.data.endpoint import message
from toolkit.data.operators.endpoint_captioning_mapper import EndpointCaptioningMapper
from toolkit.files import read_jsonl
from toolkit.images import load

NAME = "endpoint_captioning_mapper"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_MODEL", raising=False)


def test_the_image_is_sent_and_the_answer_becomes_a_row(server: Server, tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg", 1)
    picture(tmp_path / "b.png", 2)
    server.answer = lambda body: ' "A red mug,\n the sign reads nova." '
    captions, _ = run(NAME, ["old", "older"], [tmp_path / "a.jpg", tmp_path / "b.png"])
    assert captions == ["old", "A red mug, the sign reads nova", "older", "A red mug, the sign reads nova"]
    sent = {}
    for body in server.bodies:
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0, 200)
        text, image = body["messages"][0]["content"]
        assert "old" not in text["text"] and "caption" in text["text"]
        kind, _, data = image["image_url"]["url"].partition(";base64,")
        sent[kind] = base64.b64decode(data)
    assert sent == {
        "data:image/jpeg": (tmp_path / "a.jpg").read_bytes(),
        "data:image/png": (tmp_path / "b.png").read_bytes(),
    }


def test_an_image_of_another_format_is_sent_as_png(server: Server, tmp_path: Path) -> None:
    picture(tmp_path / "a.bmp", 1)
    assert run(NAME, ["x"], [tmp_path / "a.bmp"], keep_original_sample=False)[0] == [
        "a caption from the server"
    ]
    assert server.bodies[0]["messages"][0]["content"][1]["image_url"]["url"].startswith(
        "data:image/png;base64,"
    )


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("a <image> of a mug", "with a token of the format"),
        ("<__dj__image> a mug", "with a token of the format"),
        ("a mug <|__dj__eoc|>", "with a token of the format"),
        ("I\u2019m sorry, I can't help with that.", "an apology"),
        ("word " * 31, "longer than 30 words"),
        ("...", "empty"),
        ("old", "the same caption"),
    ],
)
def test_an_unusable_answer_keeps_the_row_and_is_counted(
    answer: str, reason: str, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    picture(tmp_path / "a.jpg", 1)
    server.answer = lambda body: answer
    captions, operator = run(NAME, ["old"], [tmp_path / "a.jpg"], keep_original_sample=False)
    assert captions == ["old"] and operator.unusable == {reason: 1}
    assert f"0 of 1 answers used; not used so far: 1 {reason}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"model": None}, "model is not given"),
        ({"responses": None}, "responses is not"),
        ({"responses": "/tmp/x.jsonl"}, "responses is not"),
        ({"responses": "../x.jsonl"}, "responses is not"),
        ({"price_input": None, "max_cost": None}, "price_input, max_cost: give prices"),
        ({"max_cost": -1.0}, "max_cost: give prices"),
        ({"parameters": {"temperature": 0}}, "max_tokens"),
        ({"concurrency": 0}, "concurrency is 0"),
    ],
)
def test_arguments_are_checked_before_anything_is_asked(arguments: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        EndpointCaptioningMapper(**{"model": "m", "responses": "x.jsonl", **COST, **arguments})


def test_the_model_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_MODEL", "another")
    assert EndpointCaptioningMapper(responses="x.jsonl", **COST).model == "another"


RECIPE = """
process:
  - endpoint_captioning_mapper:
      model: m
      responses: responses/captions.jsonl
      price_input: 1.0
      price_output: 1.0
      max_cost: 1.0
      retries: 1
      requests_per_minute: 1000000
      keep_original_sample: false
  - words_num_filter: {min_num: 1}
"""


def test_a_recipe_is_made_again_without_network_and_key(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """Through the whole of `data synthesize`, which refuses the network but for the endpoint: at first in a
    process of its own, which imports the operator when all is refused."""
    rows = seed_set(tmp_path, 300)  # more than one chunk of the pipeline

    def arguments(name: str, processes: int) -> list[str]:
        (tmp_path / name).mkdir()
        given = synthesize_arguments(tmp_path, RECIPE, rows, tmp_path / name, "--processes", processes)
        return ["data", "synthesize", *map(str, given)]

    def answer(body: dict) -> str:
        image = body["messages"][0]["content"][1]["image_url"]["url"]
        return "a <image>" if sum(image.encode()) % 5 == 0 else f"caption of an image of {len(image)} letters"

    server.answer = answer
    toolkit = [sys.executable, "-m", "toolkit"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    said = subprocess.run(
        [*toolkit, *arguments("one", 2)], env=environment, check=True, capture_output=True, text=True
    ).stderr
    assert said.count("new requests, about") == 1 and "300 new requests" in said  # the cost of all, once
    kept = list(read_jsonl(tmp_path / "one/out.jsonl"))
    left = sum(row["text"] == kept_row["text"] for row, kept_row in zip(rows, kept, strict=True))
    record = json.loads((tmp_path / "one/run.json").read_text())
    assert 0 < left < 300 and record["results"]["funnel"][1]["unusable"] == left
    assert KEY not in said + "".join(
        path.read_text(errors="replace") for path in tmp_path.rglob("*.*") if path.suffix != ".jpg"
    )

    monkeypatch.delenv("OPENAI_API_KEY")
    assert main(arguments("two", 1)) == 0
    assert len(server.bodies) == 300
    for name in ("out.jsonl", "removed.jsonl", "run.json"):
        item, two = (
            (tmp_path / folder / name).read_text().replace(f"{folder}/", "") for folder in ("one", "two")
        )
        assert item == two

    responses = tmp_path / "responses/captions.jsonl"
    responses.write_text("".join(responses.read_text().splitlines(keepends=True)[:-2]))
    assert main(arguments("three", 1)) == 1
    assert "captions.jsonl lacks 2 of the answers and OPENAI_API_KEY is not set" in capfd.readouterr().err


def test_a_service_sees_the_pixels_that_the_trainer_sees(tmp_path):
    """A turned JPEG and a 16-bit PNG are sent as their pixels, every other file as it is."""
    pixels = np.random.default_rng(0).integers(0, 255, (6, 9, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "plain.jpg")
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(tmp_path / "grey.png")
    for name, as_it_is in (("plain.jpg", True), ("turned.jpg", False), ("grey.png", False)):
        url = message("What is this?", tmp_path / name)["content"][1]["image_url"]["url"]
        sent = base64.b64decode(url.partition(",")[2])
        assert (sent == (tmp_path / name).read_bytes()) is as_it_is
        assert (
            load(sent).tobytes() == load(tmp_path / name).tobytes()
            and not Image.open(io.BytesIO(sent)).getexif()
        )
