"""Recipes are checked in full before anything starts; nothing is installed or fetched."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_data import ROOT, run_python
from world_rows import ZOO

from toolkit import assets
from toolkit.data import recipe
from toolkit.data.engine import juicer
from toolkit.data.operators import ocr_mapper
from toolkit.errors import UserError


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    with juicer.offline():
        yield


def problems(folder: Path, text: str, models: dict | None = None) -> str:
    """The message of the refusal."""
    (folder / "recipe.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        recipe.load(folder / "recipe.yaml", models or {})
    return str(caught.value)


REVERSED = {
    "text_length_filter: {min_len: 100, max_len: 10}": "min_len is 100 and max_len 10: no row",
    "words_num_filter: {max_num: 5}": "min_num is 10 by default and max_num 5: no row lies",
    "text_length_filter: {min_len: {quantile: 0.5}, max_len: 1}": "",
    "text_length_filter: {min_len: 10, max_len: 10, min_closed_interval: false}": "",
    "range_specified_field_selector: {field_key: a, lower_rank: 9, upper_rank: 2}": "upper_rank 2",
    "repeat_mapper: {where: {num_words: {min: 0.9, max: 0.2}}}": "where.num_words has min 0.9 above max 0.2",
}


@pytest.mark.parametrize(("step", "problem"), REVERSED.items())
def test_limits_between_which_nothing_lies(tmp_path: Path, step: str, problem: str) -> None:
    """They are found before models run for hours over rows that all go."""
    text = f"process:\n  - {step}\n"
    if problem:
        assert problem in problems(tmp_path, text)
    else:
        (tmp_path / "recipe.yaml").write_text(text)
        assert recipe.load(tmp_path / "recipe.yaml", {}).steps


def test_all_problems_at_once(tmp_path: Path) -> None:
    message = problems(
        tmp_path,
        """
np: 4
process:
  - text_lenght_filter: {min_len: 3}
  - text_length_filter: {min_length: 3}
  - words_num_filter: {min_num: "3"}
  - image_text_similarity_filter: {hf_clip: "{clip}"}
  - image_text_similarity_filter: {hf_clip: openai/clip-vit-base-patch32}
  - image_text_similarity_filter: {min_score: 0.3}
  - flagged_words_filter: {flagged_words_dir: /somewhere}
  - flagged_words_filter: {flagged_words_dir: ../words}
  - batched_captioning_mapper: {hf_img2seq: {captioner}}
  - image_size_filter: {min_size: 4 B}
  - whitespace_normalization_mapper: {num_proc: 1}
  - [text_length_filter]
  - ray_document_deduplicator:
  - cluster_uniform_selector: {top_num: 2, seed: -1}
  - suffix_filter: {suffixes: [.jpg]}
  - remove_non_chinese_character_mapper: {keep_punc: true}
  - stopwords_filter: {stopwords_dir: solution/recipes/words}
  - specified_field_filter: {field_key: id, target_value: [3]}
  - specified_numeric_field_filter: {field_key: __dj__stats__.num_words, min_value: 3}
  - document_minhash_deduplicator: {num_permutations: 20, num_bands: 7, num_rows_per_band: 3}
  - document_minhash_deduplicator: {num_permutations: 100000}
  - document_minhash_deduplicator: {tokenization: words}
  - text_length_filter: {max_len: .inf}
  - replace_content_mapper: {pattern: [a, b], repl: [x]}
""",
    )
    expected = [
        "np: not a key of a recipe",
        "step 1, text_lenght_filter: not an operator that a recipe may use, toolkit/data/recipe/allowed.py "
        "lists them, did you mean",
        "step 2, text_length_filter: it has no argument min_length, did you mean",
        "step 3, words_num_filter: min_num is '3': input should be a valid integer",
        "step 4, image_text_similarity_filter: hf_clip names the model {clip}, give --model clip=DIR",
        "step 5, image_text_similarity_filter: hf_clip is openai/clip-vit-base-patch32, not the token of a "
        'local model: hf_clip: "{model}"',
        "step 6, image_text_similarity_filter: hf_clip is not given and would be downloaded",
        "step 7, flagged_words_filter: flagged_words_dir is /somewhere, only relative paths",
        "step 8, flagged_words_filter: flagged_words_dir is ../words, only relative paths",
        'step 9, batched_captioning_mapper: hf_img2seq: write the token of a model in quotes, "{captioner}"',
        "step 10, image_size_filter: min_size is '4 B': a whole number of bytes is expected, or of KB",
        "step 11, whitespace_normalization_mapper: num_proc is set by the toolkit",
        "step 12: not an operator with its arguments",
        "step 13, ray_document_deduplicator: not an operator that a recipe may use",
        "step 14, cluster_uniform_selector: seed is -1: input should be greater than or equal to 0",
        "step 15, suffix_filter: it looks at a column of file names' endings, which these rows do not have",
        "step 16, remove_non_chinese_character_mapper: it takes the image's token out of every text",
        "step 17, stopwords_filter: stopwords_dir is solution/recipes/words, which holds no stopwords.json",
        "step 18, specified_field_filter: field_key is 'id': rows have only what mappers noted",
        "step 19, specified_numeric_field_filter: field_key is '__dj__stats__.num_words': rows have only",
        "step 20, document_minhash_deduplicator: it refuses its arguments: 7 bands of 3 rows need 21 "
        "permutations, num_permutations is 20",  # the last band would be empty: all rows repeats of one
        "step 21, document_minhash_deduplicator: num_permutations is 100000: input should be less than or",
        "step 22, document_minhash_deduplicator: it refuses its arguments: Unimplemented tokenization",
        "step 23, text_length_filter: max_len is inf: a finite number is expected",
        "step 24, replace_content_mapper: pattern has 2 entries and repl 1: give as many of each",
    ]
    assert f"has {len(expected)} problems" in message
    for text in expected:
        assert text in message
    assert message.count("\n") == len(expected)


@pytest.mark.parametrize("text", ["", "process: 3", "process: [", "- a", "project_name: x"])
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str) -> None:
    assert "recipe.yaml" in problems(tmp_path, text)


def test_tokens_become_folders(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        'process: [{image_text_similarity_filter: {hf_clip: "{clip}", min_score: 1}}]'
    )
    found = recipe.load(tmp_path / "recipe.yaml", {"clip": tmp_path, "unused": tmp_path})
    assert found.steps == [
        recipe.Step(1, "image_text_similarity_filter", {"hf_clip": str(tmp_path), "min_score": 1})
    ]
    assert found.raw_steps == [{"image_text_similarity_filter": {"hf_clip": "{clip}", "min_score": 1}}]
    assert found.models == {"clip": tmp_path}


def test_a_folder_that_is_no_model_fails_before_any_row_is_read(tmp_path: Path) -> None:
    text = 'process: [{batched_similarity_filter: {hf_clip: "{clip}"}}]'
    assert "batched_similarity_filter: it refuses its arguments" in problems(
        tmp_path, text, {"clip": tmp_path}
    )


SHIPPED = {
    "baseline", "recaption", "image_captioning", "basic", "blip2_30k", "balanced", "quality_focused",
    "diversity_focused", "clip_top", "clip_recaption_resort", "cluster_uniform", "random",
    "similarity_aesthetics", "grounding_itm", "llava_pretrain_refine", "caption_clusters",
}  # fmt: skip


def test_what_a_recipe_does_not_name_is_not_imported() -> None:
    code = (
        "import sys; from pathlib import Path; from toolkit.data import recipe; "
        "from toolkit.data.engine import juicer\n"
        "with juicer.offline():\n"
        "    recipe.load(Path('solution/recipes/random.yaml'), {})\n"
        "print('imported', *{'imagededup', 'matplotlib', 'scipy', 'transformers'} & set(sys.modules))"
    )
    assert run_python("-c", code).stdout.split() == ["imported"]


def test_shipped_recipes_are_valid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ocr_mapper, "check_models", lambda folder: folder)  # its packages are an extra
    recipes = sorted((ROOT / "solution" / "recipes").glob("*.yaml"))
    assert {path.stem for path in recipes} >= SHIPPED
    models = {entry.serves: ZOO / entry.folder for entry in assets.registry().values() if entry.kind == "zoo"}
    # The model is loaded with the first row, so a configuration serves where the world has none.
    for role, kind in (("concreteness", "BertForSequenceClassification"), ("mgm", "MGMGemmaForCausalLM")):
        models[role] = tmp_path / role
        models[role].mkdir()
        (models[role] / "config.json").write_text(json.dumps({"architectures": [kind]}))
    models["ocr"] = tmp_path
    for path in recipes:
        loaded = recipe.load(path, models)
        assert loaded.name == path.stem
        if loaded.models:
            with pytest.raises(UserError, match=r"give --model \w+=DIR"):
                recipe.load(path, {})


def test_defaults_of_every_operator_pass_the_type_check() -> None:
    """The check must not refuse what Data-Juicer itself uses: its annotations are of many forms."""
    from data_juicer.ops import OPERATORS

    from toolkit.data.operators import register_all

    register_all()
    assert len(OPERATORS.modules) > 150
    wrong = []
    for name, operator in OPERATORS.modules.items():
        for argument, parameter in recipe.signature(operator).items():
            if parameter.default is not parameter.empty and type(parameter.default) in (
                bool,
                int,
                float,
                list,
                dict,
            ):
                problem, _ = recipe._value(argument, parameter.default, parameter, {}, set())
                wrong.extend([f"{name}: {problem}"] if problem else [])
    assert wrong == []


def test_nothing_connects_or_installs() -> None:
    from data_juicer.utils.lazy_loader import LazyLoader

    with pytest.raises(OSError, match="fetches nothing"):
        socket.create_connection(("127.0.0.1", 9), timeout=1)
    with pytest.raises(OSError, match="fetches nothing"):
        socket.socket().connect(("127.0.0.1", 9))
    with pytest.raises(UserError, match="not installed"):
        LazyLoader("no_such_module_of_ours").anything  # noqa: B018


def test_what_no_operator_of_a_recipe_needs_is_not_imported(tmp_path: Path) -> None:
    recipe_file = tmp_path / "recipe.yaml"
    recipe_file.write_text("process: [{words_num_filter: {min_num: 2}}, {blank_image_filter: {}}]")
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from toolkit.data import recipe\n"
        "from toolkit.data.engine import juicer, workers\n"
        "with juicer.offline():\n"
        f"    steps = recipe.load(Path({str(recipe_file)!r}), {{}}).steps\n"
        "    with workers.workers(juicer.job(steps), 1, 'local'):\n"
        "        print(sorted({'torch', 'cv2', 'transformers', 'rapidocr'} & sys.modules.keys()))\n"
    )
    assert run_python("-c", code).stdout.strip() == "[]"
