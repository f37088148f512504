"""What a recipe may hold: nothing that runs, installs, unpickles, connects or reads elsewhere, and all that
the shipped recipes use."""

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_data import ROOT

from toolkit.code import closure
from toolkit.data import recipe
from toolkit.data.engine import juicer
from toolkit.data.recipe import allowed, plan
from toolkit.errors import UserError
from toolkit.files import read_yaml

PYTHON = "not an operator that a recipe may use, toolkit/data/recipe/allowed.py lists them"


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        ({"python_file_mapper": {"file_path": "solution/evil.py"}}, PYTHON),
        ({"python_lambda_mapper": {"lambda_str": "lambda row: row"}}, PYTHON),
        ({"general_field_filter": {"filter_condition": "1 < 2"}}, PYTHON),
        (
            {
                "general_fused_op": {
                    "fused_op_list": [{"python_lambda_mapper": {"lambda_str": "lambda row: row"}}]
                }
            },
            PYTHON,
        ),
        ({"image_tagging_mapper": None}, PYTHON),
        ({"download_file_mapper": {"download_field": "images"}}, PYTHON),
        ({"llm_quality_score_filter": {"api_or_hf_model": "gpt-4o"}}, PYTHON),
        ({"ray_image_deduplicator": None}, PYTHON),
        ("video_deduplicator", PYTHON),
        (
            {"remove_repeat_sentences_mapper": {"tokenizer": "lambda text: text.split()"}},
            "a text is not allowed there",
        ),
        (
            {"image_nsfw_filter": {"hf_nsfw_model": "{nsfw}", "trust_remote_code": True}},
            "trust_remote_code is not allowed",
        ),
        (
            {"image_nsfw_filter": {"hf_nsfw_model": "{nsfw}", "trust_remote_code": 1}},
            "trust_remote_code is not allowed",
        ),
        ({"image_nsfw_filter": {"hf_nsfw_model": "solution/model"}}, "not the token of a local model"),
        ({"image_nsfw_filter": {"hf_nsfw_model": ["{nsfw}"]}}, "not the token of a local model"),
        (
            {"batched_similarity_filter": {"hf_clip": "{captioner}"}},
            'hf_clip names the model captioner, which is of another kind: hf_clip: "{clip}"',
        ),
        (
            {"document_minhash_deduplicator": {"tokenizer_model": "solution/words.model"}},
            "not the token of a local model",
        ),
        ({"image_face_count_filter": {"cv_classifier": "/etc/passwd"}}, "a text is not allowed there"),
        ({"flagged_words_filter": {"flagged_words_dir": "/"}}, "only relative paths inside the project"),
        ({"flagged_words_filter": {"flagged_words_dir": "."}}, "only relative paths inside the project"),
        (
            {"flagged_words_filter": {"flagged_words_dir": "solution/../../words"}},
            "only relative paths inside the project",
        ),
        (
            {"flagged_words_filter": {"flagged_words_dir": "~/words"}},
            "only relative paths inside the project",
        ),
        (
            {"flagged_words_filter": {"flagged_words_dir": "..\\words"}},
            "only relative paths inside the project",
        ),
        (
            {"flagged_words_filter": {"flagged_words_dir": "C:/words"}},
            "only relative paths inside the project",
        ),
        ({"flagged_words_filter": {"flagged_words_dir": ["/etc"]}}, "only relative paths inside the project"),
        (
            {"endpoint_rewriting_mapper": {"responses": "/tmp/responses.jsonl"}},
            "only relative paths inside the project",
        ),
        ({"text_length_filter": {"runtime_env": {"pip": ["evil"]}}}, "runtime_env is set by the toolkit"),
        ({"text_length_filter": {"stats_export_path": "x.jsonl"}}, "stats_export_path is set by the toolkit"),
        ({"text_length_filter": {"history_key": "x"}}, "a text is not allowed there"),
        ({"text_length_filter": {"anything": {"a": 1}}}, "a table is not expected"),
        ({"text_length_filter": {"min_len": [[1]]}}, "a number, a text or a list of them is expected"),
    ],
)
def test_what_is_not_allowed(step: object, problem: str) -> None:
    (found,) = allowed.problems([step])
    name = step if isinstance(step, str) else next(iter(step))
    assert found.startswith(f"step 1, {name}: ") and problem in found


@pytest.mark.parametrize(
    "step",
    [None, 3, [], {}, ["text_length_filter"], {"a": {}, "b": {}}, {3: None}, {"a": [1]}, {"a": {3: 1}}, ""],
)
def test_what_is_no_step(step: object) -> None:
    assert len(allowed.problems([step])) == 1


def test_a_recipe_is_finite() -> None:
    assert allowed.problems(["no_such_operator"] * 100_000) == ["it has 100000 steps, at most 200 are read"]
    (found,) = allowed.problems([{"x" * 100_000: None}])
    assert len(found) < 300


def test_the_shipped_recipes_are_allowed() -> None:
    for path in sorted((ROOT / "solution" / "recipes").glob("*.yaml")):
        assert allowed.problems(read_yaml(path)["process"]) == []


def test_every_operator_of_the_list_is_one_of_data_juicer() -> None:
    with juicer.offline():
        from data_juicer.ops import OPERATORS

        from toolkit.data.operators import register_all, registered

        for name in allowed.OPERATORS:
            assert "default" in registered(name)._supported_exec_modes
        register_all()
        own = {name for name, kind in OPERATORS.modules.items() if kind.__module__.startswith("toolkit.")}
        assert own <= allowed.OPERATORS


def test_checking_starts_nothing() -> None:
    code = (
        "import sys; from toolkit.data.recipe import allowed; assert not {'data_juicer', 'torch', 'ray'} & "
        "set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_text_in_braces_is_a_model_only_where_one_is_expected() -> None:
    assert allowed.role("hf_clip", "{clip}") == "clip"
    assert allowed.role("template", "{keywords}") is None and allowed.role("hf_clip", 3) is None


@pytest.mark.parametrize("case", ["link to a file", "link to a folder", "folder is a link", "too many"])
def test_files_of_a_recipe_are_few_and_inside_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    project, outside = tmp_path / "project", tmp_path / "outside"
    (project / "words").mkdir(parents=True)
    outside.mkdir()
    (outside / "flagged_words.json").write_text("{}")
    monkeypatch.chdir(project)
    arguments = {"flagged_words_dir": "words"}
    if case == "link to a file":
        (project / "words/flagged_words.json").symlink_to(outside / "flagged_words.json")
    elif case == "folder is a link":
        (project / "words").rmdir()
        (project / "words").symlink_to(outside)
    elif case == "link to a folder":
        (project / "words/more").symlink_to(outside)
        (project / "words/mine.json").write_text("{}")
        assert recipe.named_files(arguments) == [Path("words/mine.json")]
        return
    else:
        for number in range(recipe.FILES + 1):
            (project / f"words/{number}").touch()
    with pytest.raises(
        UserError, match="leads out of the project" if "link" in case else "holds more than 1000 files"
    ):
        recipe.named_files(arguments)
    (project / "recipe.yaml").write_text("process: [{flagged_words_filter: {flagged_words_dir: words}}]")
    assert plan.files(Path("recipe.yaml")) == []  # said by the recipe's check
    with (
        juicer.offline(),
        pytest.raises(UserError, match=r"step 1, flagged_words_filter: flagged_words_dir is words, "),
    ):
        recipe.load(Path("recipe.yaml"), {})


def test_a_path_that_is_not_allowed_is_never_walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.walk", None)
    (tmp_path / "recipe.yaml").write_text("process: [{flagged_words_filter: {flagged_words_dir: /}}]")
    assert plan.files(tmp_path / "recipe.yaml") == []


@pytest.mark.parametrize(
    ("step", "package"),
    [
        ("{document_simhash_deduplicator: {tokenization: space, window_size: 6}}", "simhash-pybind"),
        ("{chinese_convert_mapper: {mode: s2t}}", "opencc"),
        ("{language_id_score_filter: {lang: en}}", "fasttext"),
        ("{perplexity_filter: {lang: en}}", "sentencepiece"),
        ("{text_action_filter: {lang: en}}", "spacy"),
        ('{image_aesthetics_filter: {hf_scorer_model: "{m}"}}', "simple-aesthetics-predictor"),
    ],
)
def test_a_package_that_is_not_installed_is_named_by_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, step: str, package: str
) -> None:
    # they may be on this machine
    monkeypatch.setattr(recipe, "_is_installed", lambda module: module.startswith("torch"))
    (tmp_path / "recipe.yaml").write_text(f"process: [{step}]")
    with juicer.offline(), pytest.raises(UserError) as caught:
        recipe.load(tmp_path / "recipe.yaml", {"m": tmp_path})
    assert f"it needs the Python package {package}" in str(
        caught.value
    ) and "install it, or take the step out" in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err


def test_every_operator_s_code_decides_results() -> None:
    """One that `register_all` lacks would be run, and an edit of it would run nothing again."""
    folder = ROOT / "toolkit/data/operators"
    assert set(closure("toolkit.data.operators")) >= set(folder.glob("*.py"))
