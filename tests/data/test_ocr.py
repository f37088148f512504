"""Text in images: what is quoted, asked and counted of what a reader read; and the reader itself, where its
extra is installed."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from test_data_synthesize import account, synthesize
from tiny_data import seed_set

from toolkit import assets
from toolkit.assets.fetch import fetch
from toolkit.data import ocr
from toolkit.data.ocr import Line, Reader
from toolkit.data.operators import ocr_mapper
from toolkit.data.operators.ocr_caption_mapper import OcrCaptionMapper
from toolkit.data.operators.ocr_filter import OcrFilter
from toolkit.data.operators.ocr_question_answer_mapper import WORDS, OcrQuestionAnswerMapper
from toolkit.data.samples import caption_of, row_problem, text_of
from toolkit.errors import UserError
from toolkit.files import read_jsonl

READS = all(importlib.util.find_spec(name) for name in ocr.PACKAGES[:2])
needs_reader = pytest.mark.skipif(not READS, reason="`make setup EXTRAS=ocr` installs the reader")

CAPTION = "a cup of coffee on a table."
TOP = Line("HAPPY HOUR", [0.1, 0.05, 0.4, 0.15], 0.99)
MIDDLE = Line("since 1978", [0.4, 0.45, 0.6, 0.5], 0.98)
FAINT = Line("mocha", [0.7, 0.8, 0.9, 0.9], 0.6)


def batch(*rows: tuple[str, list[Line]]) -> dict[str, list[Any]]:
    """Rows as ocr_mapper leaves them."""
    return {
        "text": [text_of(caption) for caption, _ in rows],
        "images": [["x.jpg"] for _ in rows],
        "__dj__meta__": [ocr.tag(lines) for _, lines in rows],
        "__dj__stats__": [{} for _ in rows],
    }


def run(operator: Any, *rows: tuple[str, list[Line]]) -> list[str]:
    new = operator.process_batched(batch(*rows))
    assert len({len(values) for values in new.values()}) == 1
    for text in new["text"]:
        assert row_problem({"id": "1", "text": text, "images": ["x.jpg"]}) is None
    return [caption_of(text) for text in new["text"]]


def test_denormal_numbers_count_as_zero_while_an_image_is_read() -> None:
    """Intel's processors are slow with them, and an eighth of the detector's weights are such numbers."""
    import torch

    if not torch.set_flush_denormal(False):
        pytest.skip("this processor cannot")
    smallest, seen = torch.tensor(1e-40), []

    def engine(pixels: object) -> SimpleNamespace:
        seen.append(float(smallest * 1))
        return SimpleNamespace(boxes=None)

    reader = Reader.__new__(Reader)
    reader.engine = engine
    assert reader.read(Image.new("RGB", (8, 8))) == []
    assert seen == [0.0] and float(smallest * 1) > 0  # other work of the process is as before


@pytest.mark.parametrize(
    ("box", "place"),
    [
        ([0, 0, 0.2, 0.2], "at the top left"),
        ([0.4, 0.4, 0.6, 0.6], "in the middle"),
        ([0.4, 0, 0.6, 0.1], "at the top"),
        ([0.8, 0.4, 1, 0.6], "at the right"),
        ([0.9, 0.9, 1, 1], "at the bottom right"),
        ([1, 1, 1, 1], "at the bottom right"),
    ],
)
def test_places_by_thirds(box: list[float], place: str) -> None:
    assert Line("x", box, 1).place == place


def test_only_what_a_caption_can_quote_is_confident() -> None:
    lines = [
        TOP,
        FAINT,
        Line("happy hour", MIDDLE.box, 0.99),
        Line("x", MIDDLE.box, 1),
        Line("* - !", MIDDLE.box, 1),
        Line("a <image> b", MIDDLE.box, 1),
        Line("<eos>", MIDDLE.box, 1),
        MIDDLE,
    ]
    assert ocr.confident(lines, 0.9) == [TOP, MIDDLE]
    assert ocr.confident(lines, 0.5) == [TOP, FAINT, MIDDLE]
    assert ocr.confident(lines, 0.99) == [TOP]


def test_the_largest_lines_are_quoted_in_their_order() -> None:
    row = (CAPTION, [TOP, MIDDLE, FAINT])
    quoted = 'a cup of coffee on a table; the text reads "HAPPY HOUR" and "since 1978"'
    assert run(OcrCaptionMapper(), row) == [CAPTION, quoted]
    assert run(OcrCaptionMapper(most=1, keep_original_sample=False), row) == [
        'a cup of coffee on a table; the text reads "HAPPY HOUR"'
    ]
    everything = run(OcrCaptionMapper(confidence=0.5), row)[1]
    assert everything.endswith('reads "HAPPY HOUR", "since 1978" and "mocha"')
    small_first = [MIDDLE, Line("BIG", [0, 0.6, 1, 1], 1)]
    assert run(OcrCaptionMapper(), (CAPTION, small_first))[1].endswith('reads "since 1978" and "BIG"')


def test_nothing_is_quoted_twice_and_nothing_where_nothing_stands() -> None:
    assert run(OcrCaptionMapper(), (CAPTION, []), (CAPTION, [FAINT])) == [CAPTION] * 2
    assert run(OcrCaptionMapper(keep_original_sample=False), (CAPTION, [])) == [CAPTION]
    assert run(OcrCaptionMapper(), ("a Happy Hour sign", [TOP])) == ["a Happy Hour sign"]
    assert run(OcrCaptionMapper(), (CAPTION, [Line('the "X1" mug', TOP.box, 1)]))[1].endswith(
        "reads \"the 'X1' mug\""
    )


def test_rows_are_kept_by_what_was_read() -> None:
    def kept(**arguments: Any) -> list[bool]:
        operator = OcrFilter(**arguments)
        samples = operator.compute_stats_batched(batch((CAPTION, [TOP, MIDDLE, FAINT]), (CAPTION, [FAINT])))
        return [operator.process_single({"__dj__stats__": values}) for values in samples["__dj__stats__"]]

    operator = OcrFilter()
    samples = operator.compute_stats_batched(batch((CAPTION, [TOP, MIDDLE, FAINT]), (CAPTION, [])))
    assert samples["__dj__stats__"] == [
        {"ocr_lines": 2, "ocr_characters": 18},
        {"ocr_lines": 0, "ocr_characters": 0},
    ]
    assert kept() == [True, True]
    assert kept(min_lines=1) == [True, False] and kept(min_lines=3) == [False, False]
    assert kept(max_lines=1) == [False, True] and kept(max_lines=2) == [True, True]
    assert kept(min_characters=18) == [True, False] and kept(min_characters=19) == [False, False]
    assert kept(max_characters=17) == [False, True]
    assert kept(min_lines=1, confidence=0.5) == [True, True]


def test_a_question_says_which_line_it_means() -> None:
    def asked(caption: str, lines: list[Line], **arguments: Any) -> list[str]:
        operator = OcrQuestionAnswerMapper(most=9, keep_original_sample=False, **arguments)
        return run(operator, (caption, lines))[0].split("; ")[1:]

    statements = asked(CAPTION, [TOP, MIDDLE, FAINT])
    assert statements[:2] == [
        "the text at the top left reads HAPPY HOUR",
        "the text in the middle reads since 1978",
    ]
    assert asked(CAPTION, [MIDDLE], form="question")[0] == "what does the text read? since 1978"
    assert asked("a shop sign", [MIDDLE])[0] == "the sign reads since 1978"
    for caption in ("a sign and a poster", 'a cup; the text reads "no sign"'):
        assert "the text reads since 1978" in asked(caption, [MIDDLE])
    # a line that was hardly readable stands at the same place: neither is asked about
    faint = Line("moch", [0.5, 0.4, 0.6, 0.5], 0.3)
    assert not [text for text in asked(CAPTION, [MIDDLE, faint]) if "middle" in text or "text" in text]


def test_wrong_words_stand_in_no_line_and_look_like_the_right_one() -> None:
    absent = [Line(word, FAINT.box, 0.1) for word in WORDS if word not in ("stop", "exit", "milk", "library")]
    operator = OcrQuestionAnswerMapper(most=9, form="question", keep_original_sample=False)
    (caption,) = run(operator, (CAPTION, [Line("OPEN 24", TOP.box, 0.99), *absent]))
    question = caption.split("; ")[-1]
    options, answer = question.removeprefix("which word can be read, ").split("? ")
    assert answer == "OPEN"
    chosen = set(options.replace(" or ", ", ").split(", "))
    assert len(chosen) == 3 and "OPEN" in chosen and chosen - {"OPEN"} < {"STOP", "EXIT", "MILK"}


def test_parts_of_addresses_and_names_are_not_asked_for() -> None:
    operator = OcrQuestionAnswerMapper(most=9, form="question", keep_original_sample=False)
    texts = ["www.mugs.com", "Herbal-Gro", "X1 of 99"]
    lines = [Line(text, [0.1, 0.1 * n, 0.2, 0.1 * n], 0.99) for n, text in enumerate(texts)]
    assert "which word" not in run(operator, (CAPTION, lines))[0]
    assert run(operator, (CAPTION, [*lines, Line("Enjoy!", TOP.box, 0.99)]))[0].endswith("? Enjoy")


def test_answers_come_from_confident_lines_alone() -> None:
    for form in ("statement", "question"):
        operator = OcrQuestionAnswerMapper(most=9, form=form)
        assert run(operator, (CAPTION, [FAINT]), (CAPTION, [])) == [CAPTION] * 2
        (_, new) = run(operator, (CAPTION, [TOP, FAINT]))
        assert "mocha" not in new and "HAPPY" in new


def test_questions_follow_from_the_row_and_the_seed() -> None:
    rows = [(f"a cup on table {number}", [TOP, MIDDLE]) for number in range(12)]
    together = run(OcrQuestionAnswerMapper(most=1), *rows)
    assert together == [caption for row in rows for caption in run(OcrQuestionAnswerMapper(most=1), row)]
    assert len({caption.split("; ")[1] for caption in together[1::2]}) > 2
    assert run(OcrQuestionAnswerMapper(most=1, seed=3), *rows) != together
    with pytest.raises(ValueError, match="form is poem"):
        OcrQuestionAnswerMapper(form="poem")


def test_an_image_that_was_not_read_is_an_error() -> None:
    samples = batch((CAPTION, [TOP])) | {"__dj__meta__": [{}]}
    for operator in (OcrCaptionMapper(), OcrQuestionAnswerMapper()):
        with pytest.raises(UserError, match="put ocr_mapper before"):
            operator.process_batched(samples)
    with pytest.raises(UserError, match="put ocr_mapper before"):
        OcrFilter().compute_stats_batched({key: value for key, value in samples.items() if "meta" not in key})


# --- in a recipe


class Stand:
    """Reads the colour of an image's first pixel as a word."""

    images = 0

    def __init__(self, folder: str, device: str) -> None:
        self.folder = folder

    def read(self, image: Image.Image) -> list[Line]:
        Stand.images += 1
        red, green, blue = image.getpixel((0, 0))
        return [Line(f"shade {red:02x}{green:02x}{blue:02x}", [0.1, 0.1, 0.9, 0.2], 0.99)]


@pytest.fixture
def stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of models that `Stand` takes."""
    monkeypatch.setattr(Stand, "images", 0)
    monkeypatch.setattr(ocr_mapper, "Reader", Stand)
    monkeypatch.setattr(ocr_mapper, "check_models", lambda folder: folder)
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "detector.onnx").write_text("stand")
    return folder


READ = 'process:\n  - ocr_mapper: {hf_ocr: "{ocr}"}\n'


def test_an_image_is_read_once_for_all_rows_steps_and_recipes(tmp_path: Path, stand: Path) -> None:
    rows = seed_set(tmp_path, 6)
    twin = {**rows[0], "id": "twin", "text": text_of("another caption")}
    model = ["--model", f"ocr={stand}"]
    recipe = (
        f"{READ}  - ocr_filter: {{min_lines: 1}}\n  - ocr_caption_mapper: {{keep_original_sample: false}}"
    )
    assert synthesize(tmp_path, recipe, [*rows, twin], *model) == 0
    kept, _, _ = account(tmp_path, 7)
    assert Stand.images == 6
    for row, old in zip(kept, [*rows, twin], strict=True):
        assert caption_of(row["text"]).startswith(f'{caption_of(old["text"])}; the text reads "shade ')
    assert caption_of(kept[0]["text"]).split("; ")[1] == caption_of(kept[6]["text"]).split("; ")[1]

    other = f"{READ}  - ocr_question_answer_mapper: {{most: 1}}\n  - ocr_filter: {{min_characters: 99}}"
    assert synthesize(tmp_path, other, rows, *model) == 1
    assert {entry["operator"] for entry in read_jsonl(tmp_path / "removed.jsonl")} == {"ocr_filter"}
    assert Stand.images == 6
    (stand / "detector.onnx").write_text("another")
    assert synthesize(tmp_path, recipe, rows, *model) == 0
    assert Stand.images == 12


def test_other_steps_keep_what_was_read_and_a_new_image_does_not(tmp_path: Path, stand: Path) -> None:
    rows, model = seed_set(tmp_path, 4), ["--model", f"ocr={stand}"]
    quote = "  - ocr_caption_mapper: {keep_original_sample: false}"
    recipe = f"{READ}  - repeat_mapper: {{times: 2}}\n{quote}"
    assert synthesize(tmp_path, recipe, rows, *model) == 0
    assert len(account(tmp_path, 4)[0]) == 8
    turned = "  - image_augmentation_mapper: {keep_original_sample: false}\n"
    assert synthesize(tmp_path, f"{READ}{turned}{quote}", rows, *model) == 1
    assert synthesize(tmp_path, f"{READ}{turned}{READ.partition(chr(10))[2]}{quote}", rows, *model) == 0


def test_a_captioner_keeps_what_was_read_also_from_the_store(
    tmp_path: Path, stand: Path, captioner: Path
) -> None:
    rows = seed_set(tmp_path, 3)
    model = ["--model", f"ocr={stand}", "--model", f"captioner={captioner}"]
    caption = '  - batched_captioning_mapper: {hf_img2seq: "{captioner}", max_new_tokens: 4}\n'
    quote = "  - ocr_caption_mapper: {keep_original_sample: false}"
    assert synthesize(tmp_path, f"process:\n{caption}", rows, *model) == 0  # before anything was read
    assert synthesize(tmp_path, f"{READ}{caption}{quote}", rows, *model) == 0
    assert all("the text reads" in row["text"] for row in account(tmp_path, 3)[0])


def test_the_record_names_the_model_and_the_packages(tmp_path: Path, stand: Path) -> None:
    assert synthesize(tmp_path, READ, seed_set(tmp_path, 2), "--model", f"ocr={stand}") == 0
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["settings"]["models"]["ocr"]["sha256"]
    assert ("rapidocr" in record["versions"]) == READS


def test_without_the_extra_the_recipe_check_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(ocr, "PACKAGES", ("no_such_package_of_ours", "onnxruntime"))
    assert synthesize(tmp_path, READ, seed_set(tmp_path, 1), "--model", f"ocr={tmp_path}") == 1
    error = capsys.readouterr().err
    assert "step 1, ocr_mapper: it needs the Python package no_such_package_of_ours" in error
    assert "run `make setup EXTRAS=ocr`, or take the step out" in error


# --- the reader


def test_a_space_that_the_recogniser_holds_possible_is_written() -> None:
    class Decode:
        character = ("none", "a", "b", " ")

        def __call__(self, probabilities: np.ndarray, mark: str) -> str:
            best = [self.character[column] for column in probabilities[0].argmax(1)]
            return mark + "".join(best).replace("none", "-")

    def decoded(space: float) -> str:
        columns = [[0.1, 0.9, 0, 0], [0.9 - space, 0.05, 0.05, space], [0, 0, 1, 0], [0.97, 0, 0, 0.03]]
        return ocr.Spaces(Decode())(np.array([columns], np.float32), mark=">")

    assert decoded(0.06) == ">a b-" and decoded(0.04) == ">a-b-"
    assert decoded(0.9) == ">a b-"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pp-ocrv6-small")
    assert fetch("pp-ocrv6-small", assets.entry("pp-ocrv6-small"), folder) == 2
    return folder


def drawn(*texts: str) -> Image.Image:
    image = Image.new("RGB", (480, 480), "white")
    for number, text in enumerate(texts):
        ImageDraw.Draw(image).text((40, 100 + 200 * number), text, "black", ImageFont.load_default(56))
    return image


@needs_reader
def test_drawn_words_are_read_where_they_stand(models: Path) -> None:
    reader = ocr.Reader(models)
    first, second = reader.read(drawn("HAPPY HOUR", "since 1978"))
    assert (first.text, second.text) == ("HAPPY HOUR", "since 1978")
    assert min(first.confidence, second.confidence) > ocr.CONFIDENT
    assert first.box[3] < 0.5 < second.box[1] and first.box[0] == pytest.approx(40 / 480, abs=0.04)
    assert reader.read(drawn()) == [] == reader.read(Image.new("RGB", (1, 1)))
    assert reader.read(Image.new("RGB", (20, 1000))) == [] == reader.read(Image.new("RGB", (1000, 20)))
    assert ocr.Reader(models).read(drawn("HAPPY HOUR", "since 1978")) == [first, second]


@needs_reader
def test_a_recipe_reads_the_same_on_any_number_of_processes(tmp_path: Path, models: Path) -> None:
    rows, words = seed_set(tmp_path, 3), ["MILK BAR", "garden", "Station"]
    for row, word in zip(rows, words, strict=True):
        drawn(word).save(tmp_path / row["images"][0])
    recipe, model = f"{READ}  - ocr_caption_mapper:", ["--model", f"ocr={models}"]
    outputs = []
    for count in ("1", "2"):
        assert synthesize(tmp_path, recipe, rows, *model, "--processes", count) == 0
        outputs.append((tmp_path / "out.jsonl").read_bytes())
        (tmp_path / "scores/scores.sqlite").unlink()
    assert outputs[0] == outputs[1]
    captions = [caption_of(row["text"]) for row in account(tmp_path, 3)[0]]
    quotes = [caption.rpartition("; ")[2] for caption in captions[1::2]]
    assert quotes == [f'the text reads "{word}"' for word in words]


@needs_reader
def test_a_folder_without_models_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert synthesize(tmp_path, READ, seed_set(tmp_path, 1), "--model", f"ocr={tmp_path}") == 1
    assert "holds no models that read: there is no detector.onnx in it" in capsys.readouterr().err
