"""Every benchmark's score against what its official scorer gave (tests/golden/benchmarks), answer by answer,
and the answer files that no scorer can join.

The golden files are synthetic; `expected.json` has what the official code printed for them.
"""

import json
import random
import shutil
from pathlib import Path

import pandas
import pytest
from official import FIGURES, GOLDEN, answers_of, expected, published, table

from toolkit.__main__ import main
from toolkit.benchmarks import BENCHMARKS, mme
from toolkit.benchmarks.labelled import Label
from toolkit.benchmarks.questions import Question, load_questions
from toolkit.errors import UserError
from toolkit.files import read_json, read_jsonl, write_json, write_jsonl
from toolkit.mgm.text import question_prompt

MGM = json.loads((GOLDEN.parent / "mgm/eval.json").read_text(encoding="utf-8"))
# the official script's verdict on each answer: the scores in the order of the answers, or the right ids
VERDICTS = {
    "chartqa": "score_per_question_in_answers_order",
    "docvqa": "score_per_question_in_answers_order",
    "ai2d": "lmms_eval_score_per_question_in_answers_order",
    "ocrbench": "score_per_question_in_answers_order",
}
RIGHT = {"scienceqa": "right", "seed_bench": "right_question_ids", "gqa": "right_question_ids"}
LANGUAGES = ("EN", "CN")


@pytest.fixture
def copied(tmp_path):
    """A function that copies a benchmark's golden folder to where it may be edited, and edits its answers."""

    def copy(name, edit=lambda rows: rows):
        shutil.copytree(GOLDEN / name, tmp_path / name)
        rows = edit(list(read_jsonl(answers_of(name))))
        write_jsonl(answers_of(name, tmp_path), rows)
        return tmp_path

    return copy


@pytest.mark.parametrize("name", FIGURES)
def test_the_command_prints_the_official_figure_last(capsys, name):
    arguments = ["--questions", str(GOLDEN / name), "--answers", str(answers_of(name))]
    assert main(["evaluate", "score", "--benchmark", name, *arguments]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    for figure, official in FIGURES[name].items():
        assert printed[figure] == pytest.approx(expected(name)[official], abs=1e-9), figure


@pytest.mark.parametrize("name", [*VERDICTS, *RIGHT])
def test_every_answer_is_judged_as_by_the_official_scorer(name):
    scores = published(name)["scores"]
    if name in RIGHT:
        assert {key for key, score in scores.items() if score} == set(expected(name)[RIGHT[name]])
    else:
        official = list(map(float, expected(name)[VERDICTS[name]]))
        keys = [row["question_id"] for row in read_jsonl(answers_of(name))]
        by_id = {key.rpartition("/")[2]: score for key, score in scores.items()}
        assert [by_id[str(key)] for key in keys] == pytest.approx(official, abs=1e-9)


@pytest.mark.parametrize("name", FIGURES)
def test_the_first_reference_is_a_right_answer(name):
    benchmark = BENCHMARKS[name]
    files = benchmark.official_files(GOLDEN / name, answers_of(name))
    asked, labels = benchmark.questions(files), benchmark.by_key(benchmark.labels(files))
    references = benchmark.references(files, asked)
    assert references and references.keys() <= published(name)["scores"].keys()
    for reference in references.values():
        (place,) = reference.places
        label = labels[benchmark.key(asked[place].head)]
        right = reference.right[0]
        # which ChartQA's script compares as numbers
        assert benchmark.judge(right, label) == float(right not in ("nan", "infinity"))
        assert reference.part == label.part


def test_the_documentation_has_the_table_of_these_figures():
    page = (Path(__file__).parents[2] / "docs/benchmarks.md").read_text(encoding="utf-8")
    assert table() in page


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("<think>C or B</think>B", 1.0),
        ("so it is C</think>\nB.", 1.0),
        ("C.</think>B", 0.0),
        ("<analysis>C</analysis><think>D</think>(B)", 1.0),
        ("<th<think></think>ink>C</think>B", 1.0),
        ("<think>B", 0.0),
        ("<THINK>C</THINK>B", 0.0),
    ],
)
def test_ai2d_leaves_reasoning_out(text, score):
    """What lmms-eval 0.7.3 gave: the filter of tasks/ai2d/utils.py, strip_reasoning_tags of api/reasoning.py
    with the tags of its command, strip, exact_match of api/metrics.py."""
    assert BENCHMARKS["ai2d"].judge(text, Label(1, "B")) == score


def test_gqa_takes_trailing_periods_alone():
    """No golden answer begins with a period."""
    label = Label("1", "yes")
    assert [BENCHMARKS["gqa"].judge(text, label) for text in ("Yes..", ".yes", " yes")] == [1.0, 0.0, 0.0]


def test_mme_task_by_task():
    rows = read_jsonl(answers_of("mme"))
    labels = "".join(mme.yes_or_no(row["text"])[0] for row in rows)
    assert labels == expected("mme")["per_question_label_in_answers_order"]
    tasks = published("mme")["tasks"]
    for task, official in expected("mme")["tasks"].items():
        ours = tasks[task]
        assert (ours["score"], ours["accuracy"], ours["both"], ours["other"]) == pytest.approx(
            (official["score"], 100 * official["acc"], 100 * official["acc_plus"], official["other"]),
            abs=1e-9,
        )


@pytest.mark.parametrize("language", LANGUAGES)
def test_mmbench_by_the_rule_of_published_figures_and_by_the_contests(capsys, language):
    """Both tables lie in one folder: the answers say which was asked."""
    answers = GOLDEN / f"mmbench/answers_{language.lower()}.jsonl"
    arguments = ["--questions", str(GOLDEN / "mmbench"), "--answers", str(answers)]
    assert main(["evaluate", "score", "--benchmark", "mmbench", *arguments]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    official = expected("mmbench")[language]
    assert (printed["score"], printed["vanilla"], printed["questions"]) == pytest.approx(
        (official["circular_percent"], official["vanilla_all_rows_percent"], official["groups"]), abs=1e-9
    )
    assert printed["table"] == f"MMBench_TEST_{language}.tsv"
    kit = official["wrong_reimplementations"]["exact_letter_as_the_contest_kit"]["circular"]
    assert printed["exact"]["circular"] == pytest.approx(kit, abs=0.005)


@pytest.mark.parametrize("name", FIGURES)
def test_the_order_of_lines_does_not_matter(copied, name):
    """The official tools for POPE and MME join by line, and would score at random without a word."""
    if name == "scienceqa":  # the last of several answers counts
        folder = copied(name, lambda rows: sorted(rows, key=lambda row: row["question_id"]))
    else:
        folder = copied(name, lambda rows: random.Random(3).sample(rows, len(rows)))
    assert published(name, folder) == published(name)


STRICT = sorted(FIGURES.keys() - {"scienceqa"})  # whose official script passes over these faults


@pytest.mark.parametrize("name", STRICT)
@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda rows: [*rows, rows[0]], "answers question .* a second time"),
        (lambda rows: [*rows[1:], rows[0] | {"question_id": "task/unknown"}], "which is not asked"),
        (lambda rows: [*rows[1:], rows[0] | {"question_id": "unknown"}], "which is not asked"),
        (
            lambda rows: [rows[0] | {"text": None}, *rows[1:]],
            "answer 1 does not name its question, or has no",
        ),
        (lambda rows: [rows[0] | {"question_id": True}, *rows[1:]], "answer 1 does not name its question"),
        (lambda rows: [rows[0] | {"question_id": 1.0}, *rows[1:]], "answer 1 does not name its question"),
        (lambda rows: [[], *rows[1:]], "answer 1 does not name its question"),
        (lambda rows: [], "holds no answers"),
    ],
)
def test_an_answer_that_cannot_be_joined_is_named(copied, name, edit, sentence):
    folder = copied(name, edit)
    with pytest.raises(UserError, match=sentence):
        published(name, folder)


@pytest.mark.parametrize("name", sorted(set(STRICT) - {"ocrbench"}))
def test_a_missing_answer_is_named(copied, name):
    """GQA's eval.py asks for balanced questions alone, so the first balanced answer goes."""
    counted = published(name)["scores"]
    first = next(
        place
        for place, row in enumerate(read_jsonl(answers_of(name)))
        if name == "mme" or str(row["question_id"]) in counted
    )
    folder = copied(name, lambda rows: rows[:first] + rows[first + 1 :])
    with pytest.raises(UserError, match="has no answer for question "):
        published(name, folder)


def test_what_official_scripts_pass_over_is_passed_over_and_said(copied, capsys):
    """ScienceQA's golden answers lack some, repeat some and hold a foreign line; OCRBench leaves out items
    without an answer."""
    assert published("scienceqa")["unanswered"] == len(expected("scienceqa")["missing_question_ids"])
    arguments = ["--questions", str(GOLDEN / "scienceqa"), "--answers", str(answers_of("scienceqa"))]
    assert main(["evaluate", "score", "--benchmark", "scienceqa", *arguments]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "warning: 9 questions are unanswered",
        "warning: 3 answers are to a question that another line answers too",
        "warning: 1 answer is to no question",
    ]
    result = published("ocrbench", copied("ocrbench", lambda rows: rows[1:]))
    assert (result["score"], result["unanswered"]) == (expected("ocrbench")["right"] - 1, 1)


@pytest.mark.parametrize("name", ["pope", "scienceqa", "seed_bench", "docvqa", "gqa", "ai2d", "ocrbench"])
def test_an_id_of_another_type_is_named(copied, name):
    """An official script that looks up 7 for "7" calls every answer wrong, without a word."""

    def other_type(row):
        key = row["question_id"]
        changed = str(key) if isinstance(key, int) else int(key) if key.isdigit() else key
        return row | {"question_id": changed}

    folder = copied(name, lambda rows: list(map(other_type, rows)))
    with pytest.raises(UserError, match=r"is for question .*, where .* is expected"):
        published(name, folder)


@pytest.mark.parametrize(
    ("name", "edit", "sentence"),
    [
        ("pope", lambda row: {"text": "no"}, "no answer of the sampling .* is a right yes"),
        ("mme", lambda row: {"text": "Yes\nit is"}, "has a line break or a tab"),
        ("mme", lambda row: {"text": "Yes\tit is"}, "has a line break or a tab"),
        ("seed_bench", lambda row: {"text": ""}, "no answer of the type Scene Understanding is right"),
        ("scienceqa", lambda row: {"prompt": "x"}, "do not agree whether there is an image"),
        ("scienceqa", lambda row: {"prompt": None}, "has no prompt"),
    ],
)
def test_answers_that_the_official_script_ends_on_are_named(copied, name, edit, sentence):
    folder = copied(name, lambda rows: [row | edit(row) for row in rows])
    with pytest.raises(UserError, match=sentence):
        published(name, folder)


def changed(path: Path, edit) -> None:
    value = read_json(path)
    edit(value)
    write_json(path, value)


@pytest.mark.parametrize(
    ("name", "file", "edit", "sentence"),
    [
        ("scienceqa", "pid_splits.json", lambda value: value["test"].append("0"), "problem '0' lacks answer"),
        (
            "scienceqa",
            "pid_splits.json",
            lambda value: value["test"].append(["183"]),
            r"problem \['183'\] lacks answer",
        ),
        ("scienceqa", "pid_splits.json", lambda value: value.pop("test"), "lacks test of the right kind"),
        ("scienceqa", "pid_splits.json", lambda value: value["test"].clear(), "has no question that counts"),
        (
            "scienceqa",
            "problems.json",
            lambda value: value["183"].update(answer=4),
            "problem '183': the answer is none of its choices",
        ),
        (
            "seed_bench",
            "SEED-Bench.json",
            lambda value: value["questions"].append(value["questions"][0]),
            "two labels for question 6205",
        ),
        (
            "seed_bench",
            "SEED-Bench.json",
            lambda value: value["questions"][2].pop("answer"),
            "question 3 lacks answer of the right kind",
        ),
        (
            "seed_bench",
            "SEED-Bench.json",
            lambda value: value["question_type"].popitem(),
            "has a type without a name",
        ),
        (
            "seed_bench",
            "SEED-Bench.json",
            lambda value: [row.update(data_type="video") for row in value["questions"]],
            "no question of SEED-Bench is about an image",
        ),
        ("chartqa", "test_human.json", lambda value: value[4].update(label=5), "question 5 lacks label"),
        ("docvqa", "val_v1.0.json", lambda value: value.pop("dataset_name"), "lacks dataset_name"),
        ("docvqa", "val_v1.0.json", lambda value: value["data"][0].pop("answers"), "no list of answers"),
        ("docvqa", "val_v1.0.json", lambda value: value["data"][0].update(answers=[]), "no list of answers"),
        (
            "ocrbench",
            "OCRBench.json",
            lambda value: value[1].update(answers=3),
            "question 2 lacks answers",
        ),
        (
            "gqa",
            "testdev_balanced_questions.json",
            lambda value: value["207858707"].pop("types"),
            "question 207858707 lacks types",
        ),
        (
            "gqa",
            "testdev_balanced_questions.json",
            lambda value: [row.update(isBalanced=False) for row in value.values()],
            "GQA has no question that counts",
        ),
    ],
)
def test_a_label_file_that_cannot_be_used_is_named(copied, name, file, edit, sentence):
    folder = copied(name)
    changed(folder / name / file, edit)
    with pytest.raises(UserError, match=sentence):
        published(name, folder)


def test_an_mme_folder_of_another_shape_is_named(copied):
    folder = copied("mme")
    text = next((folder / "mme/MME_Benchmark_release_version/color").glob("*.txt"))
    text.write_text("Is it red? Please answer yes or no.\tYes\n")
    with pytest.raises(UserError, match="is not two lines of a question, a tab and Yes or No"):
        published("mme", folder)
    shutil.rmtree(folder / "mme/MME_Benchmark_release_version")
    with pytest.raises(UserError, match="has no task of MME"):
        published("mme", folder)


def test_an_mme_folder_without_a_task_is_named(copied):
    """calculation.py of eval_tool.zip (sha256 b8125e2a…) opens the table of every task: FileNotFoundError."""
    folder = copied("mme", lambda rows: [row for row in rows if not row["question_id"].startswith("count/")])
    shutil.rmtree(folder / "mme/MME_Benchmark_release_version/count")
    with pytest.raises(UserError, match="the task count is missing"):
        published("mme", folder)


@pytest.mark.parametrize("questions", [slice(1, None), slice(196)])
def test_pope_questions_that_leave_labels_out_are_named(copied, questions):
    """LLaVA's eval_pope.py (c121f043) joins by line. Without the first question it prints a mean F1 of 61.16
    from labels of other questions; without the last sampling it ends with a ZeroDivisionError."""
    folder = copied("pope", lambda rows: rows[questions])
    path = folder / "pope/llava_pope_test.jsonl"
    write_jsonl(path, list(read_jsonl(path))[questions])
    with pytest.raises(UserError, match=r"questions? fewer than have labels: take the official file"):
        published("pope", folder)


def test_a_pope_question_that_is_asked_twice_is_named(copied):
    folder = copied("pope", lambda rows: rows)
    path = folder / "pope/llava_pope_test.jsonl"
    rows = list(read_jsonl(path))
    write_jsonl(path, [*rows, rows[-1]])
    with pytest.raises(UserError, match="asks 1 question more than have labels: take the official file"):
        published("pope", folder)


def test_chartqa_is_rounded_as_by_pix2struct(copied):
    """aggregate_metrics of pix2struct's metrics.py (945f27e9) gave these for 1 of 3, 1 of 6 and 2 of 9."""
    folder = copied(
        "chartqa",
        lambda rows: [
            {"question_id": f"{half}_{place}", "prompt": "", "text": "x" if place else "5"}
            for half, count in (("human", 3), ("augmented", 6))
            for place in range(count)
        ],
    )
    for half, count in (("human", 3), ("augmented", 6)):
        rows = [{"imgname": "1.png", "query": "", "label": "5"}] * count
        write_json(folder / f"chartqa/test_{half}.json", rows)
    result = published("chartqa", folder)
    assert [result[name] for name in ("human", "augmented", "score", "accuracy")] == [
        33.333333333333336,
        16.666666666666668,
        22.22222222222222,
        22.22222222222222,
    ]


def test_an_ocrbench_id_of_two_data_sets_needs_the_data_set(copied):
    folder = copied("ocrbench")
    changed(folder / "ocrbench/OCRBench.json", lambda value: value[11].update(id=1))  # svt 12 becomes svt 1
    rows = list(read_jsonl(answers_of("ocrbench")))
    write_jsonl(answers_of("ocrbench", folder), rows)
    with pytest.raises(
        UserError, match="answer 1 is for question 1, which IC13_857 and svt have: add dataset_name"
    ):
        published("ocrbench", folder)
    rows[0] |= {"dataset_name": "IC13_857"}
    rows[11] |= {"dataset_name": "svt", "question_id": 1}
    write_jsonl(answers_of("ocrbench", folder), rows)
    assert published("ocrbench", folder)["score"] == expected("ocrbench")["right"]


def test_mmbench_answers_are_joined_with_the_table_that_was_asked(tmp_path):
    shutil.copytree(GOLDEN / "mmbench", tmp_path / "mmbench")
    rows = list(read_jsonl(GOLDEN / "mmbench/answers_en.jsonl"))
    for edited, sentence in (
        (rows[1:], "has no answer for index 317"),
        ([*rows, rows[0]], "answers index 317 a second time"),
        ([rows[0] | {"text": "A\x01"}, *rows[1:]], "index 317 has a character that no workbook can hold"),
        ([row | {"prompt": ""} for row in rows], "is for none of the tables"),
        ([], "holds no answers"),
    ):
        write_jsonl(tmp_path / "answers.jsonl", edited)
        with pytest.raises(UserError, match=sentence):
            published("mmbench", tmp_path, tmp_path / "answers.jsonl")


def test_an_answer_longer_than_a_cell_of_a_workbook_is_judged_without_a_word_of_pandas(tmp_path, recwarn):
    rows = list(read_jsonl(GOLDEN / "mmbench/answers_en.jsonl"))
    write_jsonl(tmp_path / "answers.jsonl", [rows[0] | {"text": "x " * 20_000}, *rows[1:]])
    assert published("mmbench", answers=tmp_path / "answers.jsonl")["rows"] == len(rows)
    assert not [warning for warning in recwarn if issubclass(warning.category, UserWarning)]


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda table: pandas.concat([table, table.iloc[[0]]]), "has index 317 twice"),
        (lambda table: table.rename(columns={"index": "Index"}), "has no column index"),
        (lambda table: table.drop(columns="question"), "has no column question"),
        (lambda table: table.assign(prediction="A"), "has a column prediction already"),
        (lambda table: table.replace({"index": {"317": "-317"}}), "row 2 has no whole number"),
    ],
)
def test_a_table_that_is_not_mmbenchs_is_named(tmp_path, edit, sentence):
    """LLaVA's converter (c121f043) or VLMEvalKit (e8e78f05) end on it with a KeyError or a ValueError; they
    count a row that comes twice as two questions, and leave out one with a negative index."""
    table = pandas.read_table(GOLDEN / "mmbench/MMBench_TEST_EN.tsv", dtype=str, keep_default_na=False)
    edit(table).to_csv(tmp_path / "MMBench.tsv", sep="\t", index=False)
    files = BENCHMARKS["mmbench"].official_files(tmp_path, tmp_path)
    with pytest.raises(UserError, match=sentence):
        BENCHMARKS["mmbench"].published(files, GOLDEN / "mmbench/answers_en.jsonl")


def asked(name: str, folder: Path) -> list[Question]:
    """The questions of a benchmark's golden files; the contest's two from the official code's own run."""
    benchmark = BENCHMARKS[name]
    if name == "textvqa":
        write_jsonl(folder / "Q.jsonl", MGM["vqa_loader"]["questions"])
        return load_questions(folder / "Q.jsonl")
    if name == "mmbench":
        pandas.DataFrame(MGM["mmbench_rows"]).to_csv(folder / "T.tsv", sep="\t", index=False)
        files = {"table": folder / "T.tsv"}
    elif name == "mmbench_cn":
        files = {"table_cn": GOLDEN / "mmbench/MMBench_TEST_CN.tsv"}
    else:
        files = benchmark.official_files(GOLDEN / name, answers_of(name))
    return benchmark.questions(files, benchmark.instruction)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_first_three_prompts(tmp_path, name):
    """As the model gets them, to the character."""
    prompts = [question_prompt(question.message, "gemma") for question in asked(name, tmp_path)[:3]]
    assert prompts == read_json(GOLDEN / "prompts.json")[name]


@pytest.mark.parametrize("name", FIGURES)
def test_prompts_are_those_that_the_answers_state(tmp_path, name):
    stated = {
        BENCHMARKS[name].key(row): row["prompt"].removeprefix("<image>\n")
        for row in read_jsonl(answers_of(name))
    }
    questions = asked(name, tmp_path)
    by_id = name == "ocrbench"  # its answers name no data set
    keys = [
        question.head["question_id"] if by_id else BENCHMARKS[name].key(question.head)
        for question in questions
    ]
    answered = [
        (question.message, stated[key])
        for question, key in zip(questions, keys, strict=True)
        if key in stated
    ]
    assert len(answered) > 70 and all(message == prompt for message, prompt in answered)
