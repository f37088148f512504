"""Comparison of experiments: paired intervals, ratios, identical questions."""

import json

import numpy
import pytest

from toolkit.__main__ import main
from toolkit.contest.records import write_record
from toolkit.errors import UserError
from toolkit.evaluate.compare import compare, load_score, markdown
from toolkit.evaluate.comparison import checked
from toolkit.files import read_json, write_json

SUFFIXES = ("", "-seed7", "-seed8")


def write_scores(folder, textvqa, mmbench):
    for name, scores in (("textvqa", textvqa), ("mmbench", mmbench)):
        accuracy = 100.0 * sum(scores) / len(scores)
        write_json(
            folder / name / "score.json",
            {
                "accuracy": accuracy,
                "texts": "0" * 64,
                "scores": {f"q{n}": value for n, value in enumerate(scores)},
            },
        )
    return folder


@pytest.fixture
def results(tmp_path):
    """Baseline, an experiment that is better on TextVQA question by question, and one that is the same."""
    generator = numpy.random.default_rng(0)
    base = generator.choice([0.0, 0.3, 0.6, 0.9], size=200)
    choice = (generator.random(100) < 0.3).astype(float)
    better = [min(1.0, value + 0.1) for value in base]
    return [
        write_scores(tmp_path / "MGM-Tiny-Finetune-baseline", base.tolist(), choice.tolist()),
        write_scores(tmp_path / "MGM-Tiny-Finetune-synth", better, choice.tolist()),
        write_scores(tmp_path / "MGM-Tiny-Finetune-same", base.tolist(), choice.tolist()),
    ]


def test_a_score_that_is_not_the_recorded_one_is_refused(results):
    score = results[1] / "textvqa" / "score.json"
    write_record(
        score.with_name("run.json"),
        "evaluate textvqa",
        inputs={},
        outputs={"score": score},
        settings={},
        results={},
    )
    compare(results, seed=3, resamples=10)
    score.write_text(score.read_text() + " ")
    with pytest.raises(UserError, match=r"score.json is not the file that .*run.json lists \(sha256\)"):
        compare(results, seed=3, resamples=10)


def test_experiments_that_were_asked_otherwise_are_not_compared(results):
    def asked(result, **settings):
        score = result / "mmbench/score.json"
        write_json(score, read_json(score) | {"settings": {"decoding": "greedy"} | settings})

    for result in results:
        asked(result, prompt="Answer with a letter.", shuffle_images=None, device="cpu", batch_size=1)
    asked(results[1], prompt="Answer with a letter.", shuffle_images=None, device="cuda", batch_size=16)
    compare(results, seed=3, resamples=10)
    asked(results[1], prompt="Answer with a letter.", shuffle_images=7)
    with pytest.raises(UserError, match=r"mmbench with shuffle_images None, .*synth with 7: evaluate both"):
        compare(results, seed=3, resamples=10)
    asked(results[1], prompt="Letter!", shuffle_images=None)
    with pytest.raises(UserError, match=r"with prompt 'Answer with a letter.', .* with 'Letter!'"):
        compare(results, seed=3, resamples=10)


def test_one_training_named_twice_is_no_spread(results):
    with pytest.raises(UserError, match="--seeds 7 7 has a seed twice"):
        compare(results, seed=3, resamples=10, seeds=[7, 7])


def test_pairing_and_ratios(results):
    found = compare(results, seed=3, resamples=500)
    rows = found["benchmarks"]["textvqa"]["results"]
    synth, same = rows["MGM-Tiny-Finetune-synth"], rows["MGM-Tiny-Finetune-same"]
    # unpaired, the interval of a difference of 10 points would be about 9 points wide
    assert synth["difference_interval"] == pytest.approx([10, 10])
    assert synth["verdict"] == "better"
    base = rows["MGM-Tiny-Finetune-baseline"]["accuracy"]
    assert synth["ratio"] == pytest.approx((base + 10) / base)
    assert (
        same["difference_interval"] == [0.0, 0.0] and same["verdict"] == "undecided" and same["ratio"] == 1.0
    )
    low, high = rows["MGM-Tiny-Finetune-baseline"]["interval"]
    assert low < base < high and 5 < high - low < 14
    score = found["score"]["MGM-Tiny-Finetune-synth"]
    assert score["score"] == pytest.approx(((base + 10) / base + 1) / 2)
    assert score["interval"][0] > 1 and score["verdict"] == "better"


def test_the_interval_is_the_middle_95_percent(tmp_path):
    scores = [0.0, 1.0] * 200
    folders = [write_scores(tmp_path / name, scores, scores) for name in "ab"]
    low, high = compare(folders, 1, 4000)["benchmarks"]["textvqa"]["results"]["a"]["interval"]
    assert (low, high) == pytest.approx((50 - 4.9, 50 + 4.9), abs=0.3)  # 1.96 * 50 / sqrt(400)


def test_worse_is_seen_and_the_seed_decides(results):
    back = [results[1], results[0]]
    assert (
        compare(back, 1, 200)["benchmarks"]["textvqa"]["results"]["MGM-Tiny-Finetune-baseline"]["verdict"]
        == "worse"
    )
    assert compare(results, 1, 200) == compare(results, 1, 200)
    assert compare(results, 1, 200) != compare(results, 2, 200)


def test_the_order_of_questions_does_not_matter(results):
    path = results[1] / "textvqa/score.json"
    score = json.loads(path.read_text())
    expected = compare(results, 1, 100)
    write_json(path, score | {"scores": dict(reversed(score["scores"].items()))})
    assert compare(results, 1, 100) == expected


def test_a_baseline_of_nothing_has_no_ratio(tmp_path):
    folders = [
        write_scores(tmp_path / "a", [0.0] * 10, [0.0, 1.0]),
        write_scores(tmp_path / "b", [1.0] * 10, [0.0, 1.0]),
    ]
    found = compare(folders, 1, 100)
    row = found["benchmarks"]["textvqa"]["results"]["b"]
    assert row["ratio"] is None and row["ratio_interval"] == [None, None] and row["verdict"] == "better"
    assert found["score"]["b"]["score"] is None


def test_a_score_that_does_not_exist_is_not_better(tmp_path):
    """The baseline scores nothing in TextVQA, the other neither, and far less in MMBench."""
    folders = [
        write_scores(tmp_path / "a", [0.0] * 50, [1.0] * 40 + [0.0] * 10),
        write_scores(tmp_path / "b", [0.0] * 50, [1.0] * 5 + [0.0] * 45),
    ]
    found = compare(folders, 1, 1000)
    assert found["benchmarks"]["mmbench"]["results"]["b"]["verdict"] == "worse"
    assert found["score"]["b"] == {"score": None, "interval": [None, None], "verdict": "undecided"}


def test_neither_scoring_in_a_resample_is_no_difference(tmp_path):
    """One question of 100 has points, so that a third of the resamples have none."""
    few = [0.5] + [0.0] * 99
    folders = [write_scores(tmp_path / "a", few, few), write_scores(tmp_path / "b", few, few)]
    row = compare(folders, 1, 500)["benchmarks"]["textvqa"]["results"]["b"]
    assert row["ratio"] == 1 and row["ratio_interval"] == [1.0, 1.0]


def test_the_score_of_several_seeds_is_the_mean_of_theirs(tmp_path):
    def trained(name: str, *points: int):
        for suffix, right in zip(SUFFIXES, points, strict=True):
            scores = [1.0] * right + [0.0] * (20 - right)
            write_scores(tmp_path / f"{name}{suffix}", scores, [1.0] * 10 + [0.0] * 10)
        return tmp_path / name

    folders = [trained("a", 4, 10, 8), trained("b", 8, 10, 16)]
    found = compare(folders, 1, 300, seeds=[1, 7, 8])
    score, over = found["score"]["b"], found["score"]["b"]["over_seeds"]
    assert over["scores"] == pytest.approx([(2 + 1) / 2, (1 + 1) / 2, (2 + 1) / 2])
    assert score["score"] == pytest.approx(4 / 3) == pytest.approx(sum(over["interval"]) / 2)
    assert found["benchmarks"]["textvqa"]["results"]["b"]["ratio"] == pytest.approx(5 / 3)
    assert score["interval"][0] < 4 / 3 < score["interval"][1]

    trained("a", 4, 0, 8)  # no ratio with one seed
    nothing = compare(folders, 1, 300, seeds=[1, 7, 8])["score"]["b"]
    assert nothing["score"] is None and nothing["verdict"] == "undecided"
    assert nothing["over_seeds"]["scores"] == pytest.approx([1.5, None, 1.5])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda found: found.pop("seed"), "seed: Field required"),
        (lambda found: found["benchmarks"].update(textvqa=3), "benchmarks.textvqa: "),
        (lambda found: found["benchmarks"].clear(), "benchmarks: "),
        (lambda found: found.update(baseline="x"), "textvqa lacks the baseline x"),
        (
            lambda found: found["benchmarks"]["textvqa"]["results"]["b"].pop("difference"),
            "textvqa does not compare b with the baseline",
        ),
    ],
)
def test_a_comparison_that_is_not_whole_is_one_sentence(tmp_path, damage, said):
    scores = [1.0, 0.0] * 10
    found = compare([write_scores(tmp_path / name, scores, scores) for name in "ab"], 1, 10)
    assert checked(json.loads(json.dumps(found)), "c.json")
    damage(found)
    with pytest.raises(UserError, match=r"c\.json is not of `evaluate compare`: ") as refused:
        checked(found, "c.json")
    assert said in str(refused.value)


def test_other_questions_are_refused(results):
    path = results[1] / "mmbench/score.json"
    score = json.loads(path.read_text())
    score["scores"]["extra"] = 1
    write_json(path, score)
    with pytest.raises(UserError, match=r"differ in 1 mmbench questions: only .*synth answered 'extra'"):
        compare(results, 1, 10)
    (results[1] / "mmbench/score.json").unlink()
    with pytest.raises(UserError, match="does not exist"):
        compare(results, 1, 10)
    with pytest.raises(UserError, match="at least one other"):
        compare(results[:1], 1, 10)


def test_command_writes_json_and_markdown(results, tmp_path, capsys):
    arguments = ["evaluate", "compare", "--results", *map(str, results), "--seed", "1", "--resamples", "100"]
    assert main([*arguments, "--output", str(tmp_path / "c.json"), "--markdown", str(tmp_path / "c.md")]) == 0
    table = (tmp_path / "c.md").read_text()
    assert capsys.readouterr().out == table
    assert json.loads((tmp_path / "c.json").read_text()) == compare(results, 1, 100)
    rows = [line.count("|") for line in table.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 6 + 2 and set(rows) == {9}
    assert "100 resamples, seed 1" in table


@pytest.fixture
def trained_again(tmp_path):
    """Baseline and experiment with three training seeds: plain folders for the first, -seed7 and -seed8 for
    the others."""
    generator = numpy.random.default_rng(5)
    for suffix, gain in (("", 0.10), ("-seed7", 0.20), ("-seed8", 0.15)):
        base = (generator.random(200) < 0.4).astype(float)
        better = numpy.maximum(base, (generator.random(200) < gain).astype(float))
        for name, scores in (("baseline", base), ("synth", better)):
            write_scores(tmp_path / f"MGM-Tiny-Finetune-{name}{suffix}", scores.tolist(), scores.tolist())
    return [tmp_path / "MGM-Tiny-Finetune-baseline", tmp_path / "MGM-Tiny-Finetune-synth"]


def test_several_seeds_have_an_interval_of_their_own(trained_again):
    result = compare(trained_again, 1, 500, seeds=[1024, 7, 8])
    rows = result["benchmarks"]["textvqa"]["results"]
    base, synth = (rows[folder.name] for folder in trained_again)
    exact = numpy.array([row["over_seeds"]["accuracies"] for row in (base, synth)])
    singles = [
        load_score(folder.with_name(f"{folder.name}{suffix}"), "textvqa").accuracy
        for folder in trained_again
        for suffix in SUFFIXES
    ]
    assert exact.ravel().tolist() == singles
    assert base["accuracy"] == pytest.approx(exact[0].mean()) and synth["difference"] == pytest.approx(
        (exact[1] - exact[0]).mean()
    )
    differences = exact[1] - exact[0]
    reach = 4.302653 * differences.std(ddof=1) / 3**0.5  # Student's t for two degrees of freedom
    expected = [differences.mean() - reach, differences.mean() + reach]
    assert synth["over_seeds"]["difference_interval"] == pytest.approx(expected, abs=1e-4)
    ratios = exact[1] / exact[0]
    score = result["score"]["MGM-Tiny-Finetune-synth"]
    assert score["over_seeds"]["scores"] == pytest.approx(ratios.tolist())
    assert "Training seeds 1024, 7, 8" in markdown(result) and "differences paired by seed" in markdown(
        result
    )


def test_better_is_said_where_both_intervals_say_so(trained_again):
    result = compare(trained_again, 1, 500, seeds=[1024, 7])  # two seeds: Student's interval is wide
    row = result["benchmarks"]["textvqa"]["results"]["MGM-Tiny-Finetune-synth"]
    low, high = row["over_seeds"]["difference_interval"]
    assert row["difference_interval"][0] > 0 and low < 0 < high and row["verdict"] == "undecided"


def test_one_seed_changes_nothing(results):
    result = compare(results, 1, 50)
    assert "over_seeds" not in json.dumps(result) and "Training seeds" not in markdown(result)
    assert compare(results, 1, 50, seeds=[99]) == result


def test_further_benchmarks_are_compared_and_do_not_count(results):
    before = compare(results, 1, 50)
    for number, folder in enumerate(results):
        write_json(
            folder / "pope/score.json",
            {"accuracy": 50.0 + number, "texts": "0", "scores": {"a": 0.0, "b": 1.0}},
        )
    after = compare(results, 1, 50, benchmarks=["pope", "textvqa", "mmbench"])
    assert list(after["benchmarks"]) == ["textvqa", "mmbench", "pope"]
    assert (
        after["score"] == before["score"]
        and after["benchmarks"]["textvqa"] == before["benchmarks"]["textvqa"]
    )
    assert "POPE (accuracy), 2 questions" in markdown(after)
    with pytest.raises(UserError, match="--benchmarks lacks mmbench"):
        compare(results, 1, 50, benchmarks=["textvqa"])


ODD = [
    [],
    {"accuracy": "50"},
    {"accuracy": True},
    {"scores": {"a": None}},
    {"scores": [1.0]},
    {"scores": {}},
    {"texts": 1},
    {"settings": []},
]


@pytest.mark.parametrize("score", ODD)
def test_a_score_of_other_kinds_is_named(tmp_path, score):
    write_json(
        tmp_path / "textvqa/score.json",
        {"accuracy": 50.0, "scores": {"a": 1.0}, "texts": "x"} | score if score else score,
    )
    with pytest.raises(
        UserError, match=r"score\.json lacks accuracy, scores by question, the texts' hash or settings"
    ):
        load_score(tmp_path, "textvqa")


@pytest.mark.parametrize(
    "arguments",
    [
        ["compare", "--seed", "-1"],
        ["compare", "--seed", str(2**63)],
        ["compare", "--seeds", str(2**63)],
        ["mmbench", "--shuffle-images", "-1"],
        ["mmbench", "--prompt", "\udcff"],
    ],
)
def test_values_that_nothing_can_be_done_with_are_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", *arguments])
    assert f"argument {arguments[1]}: " in capsys.readouterr().err
