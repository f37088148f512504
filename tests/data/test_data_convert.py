"""`data convert`: the kit's own result, byte for byte, its sampling, and one sentence for what it cannot
convert."""

import json
import random
from pathlib import Path

import pytest
from tiny_data import seed_row, write_rows

from toolkit.__main__ import main
from toolkit.data.convert import clean

REAL = Path(__file__).parents[3] / "shared" / "seed_10k_sample"
ORIGINAL = [
    {
        "id": "000000001",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is this?"},
            {"from": "gpt", "value": "old"},
        ],
    },
    {
        "id": 2,
        "conversations": [
            {"from": "human", "value": "Describe.\n<image>"},
            {"from": "gpt", "value": "old"},
            {"from": "human"},
        ],
    },
]


def convert(folder: Path, rows: list, *flags: str, original: list | None = None) -> Path:
    """Convert `rows`; return the file, which is absent when the command failed."""
    (folder / "stage_1.json").write_text(json.dumps(ORIGINAL if original is None else original))
    samples = write_rows(folder / "rows.jsonl", rows)
    main(
        [
            "data",
            "convert",
            "--to",
            "llava",
            "--original",
            str(folder / "stage_1.json"),
            *flags,
            str(samples),
            str(folder / "out.json"),
        ]
    )
    return folder / "out.json"


@pytest.mark.skipif(not REAL.is_dir(), reason="the 500 real rows are not beside the project")
def test_real_rows_give_the_kits_own_bytes(tmp_path: Path) -> None:
    samples, original = REAL / "mgm_pretrain_stage_1_10k.jsonl", REAL / "stage_1.json"
    assert (
        main(
            [
                "data",
                "convert",
                "--to",
                "llava",
                "--original",
                str(original),
                str(samples),
                str(tmp_path / "out.json"),
            ]
        )
        == 0
    )
    assert (tmp_path / "out.json").read_bytes() == original.read_bytes()


def test_exact_bytes(tmp_path: Path) -> None:
    second = {"id": "2", "text": "a dog 狗\n<|__dj__eoc|>", "images": []}
    out = convert(tmp_path, [seed_row(1, "a red mug"), second])
    assert out.read_text(encoding="utf-8") == (
        '[{"id": "000000001", "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"}, '
        '{"from": "gpt", "value": "a red mug"}], "image": "images/00000/000000001.jpg"}, '
        '{"id": 2, "conversations": [{"from": "human", "value": "Describe.\\n<image>"}, {"from": "gpt", '
        '"value": "a dog 狗"}]}]'
    )


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<__dj__image>\na mug <|__dj__eoc|>", "a mug"),
        ("<__dj__image> a mug\n <|__dj__eoc|>\n", "a mug"),
        ("a mug\n<__dj__image> <|__dj__eoc|>", "a mug"),
        # the README's token: the kit leaves it in the answer
        ("<image>\na mug <|__dj__eoc|>", "<image>\na mug"),
        # one token at the end, no more
        ("<__dj__image>\na <|__dj__eoc|> mug <|__dj__eoc|>", "a <|__dj__eoc|> mug"),
        ("a mug", "a mug"),
    ],
)
def test_cleaning(text: str, answer: str) -> None:
    assert clean(text) == answer


def test_cap_samples_as_the_kit_and_keeps_order_below_it(tmp_path: Path) -> None:
    rows = [seed_row(number, f"caption {number}") for number in range(50)]
    original = [{**ORIGINAL[0], "id": row["id"]} for row in rows]
    random.seed(1024)
    expected = [row["id"] for row in random.sample(rows, 20)]
    capped = json.loads(convert(tmp_path, rows, "--cap", "20", original=original).read_text())
    assert [entry["id"] for entry in capped] == expected != sorted(expected)
    for flags in ([], ["--cap", "50"]):
        assert [
            entry["id"]
            for entry in json.loads(convert(tmp_path, rows, *flags, original=original).read_text())
        ] == [r["id"] for r in rows]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (seed_row(7, "a mug"), "line 2: id 000000007 is not in"),
        (
            {**seed_row(1, "a mug"), "images": ["a.jpg", "b.jpg"]},
            "line 2 (id 000000001) has 2 distinct images",
        ),
        ('{"id": "000000001", "te', "line 2: malformed line"),
        ({"id": "000000001"}, "line 2 has no id and text"),
    ],
)
def test_one_sentence_for_a_row_that_cannot_be_converted(
    tmp_path: Path, capsys: pytest.CaptureFixture, row: object, sentence: str
) -> None:
    assert not convert(tmp_path, [seed_row(1, "fine"), row]).exists()
    assert sentence in capsys.readouterr().err
