"""What a recipe may hold: operators that only compute, and arguments that name no code, no network and no
file outside the project.

A recipe is run by whoever rebuilds an entry, so this is a list of what is allowed: of Data-Juicer 1.6.1 the
operators that turn a row's text and image into statistics, hashes or rows of the same seed row, and the
project's own. Left out are operators that run Python of the recipe, install packages, unpickle, download or
upload, ask a paid service outside `max_cost`, or make one row of several.

It is read without Data-Juicer, so an archive is checked without starting anything of it.
"""

import difflib
import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

# of those the ones that make images; a recipe without them leaves every row its image of the seed
IMAGE_MAKERS = frozenset(
    (
        "image_augmentation_mapper",
        "image_blur_mapper",
        "image_diffusion_mapper",
        "image_face_blur_mapper",
        "text_to_image_mapper",
    )
)
OPERATORS = frozenset(
    """
    alphanumeric_filter average_line_length_filter character_repetition_filter flagged_words_filter
    image_aesthetics_filter image_aspect_ratio_filter image_face_count_filter image_face_ratio_filter
    image_nsfw_filter image_shape_filter image_size_filter image_subplot_filter image_text_matching_filter
    image_text_similarity_filter image_watermark_filter language_id_score_filter maximum_line_length_filter
    perplexity_filter special_characters_filter specified_field_filter specified_numeric_field_filter
    stopwords_filter text_action_filter text_entity_dependency_filter text_length_filter
    token_num_filter word_repetition_filter words_num_filter

    chinese_convert_mapper clean_copyright_mapper clean_email_mapper clean_html_mapper clean_ip_mapper
    clean_links_mapper expand_macro_mapper fix_unicode_mapper image_blur_mapper image_captioning_mapper
    image_diffusion_mapper image_face_blur_mapper mllm_mapper nlpaug_en_mapper nlpcda_zh_mapper
    punctuation_normalization_mapper remove_bibliography_mapper remove_comments_mapper remove_header_mapper
    remove_long_words_mapper remove_repeat_sentences_mapper
    remove_specific_chars_mapper remove_table_text_mapper remove_words_with_incorrect_substrings_mapper
    replace_content_mapper sentence_augmentation_mapper whitespace_normalization_mapper

    document_deduplicator document_minhash_deduplicator document_simhash_deduplicator image_deduplicator

    frequency_specified_field_selector random_selector range_specified_field_selector
    tags_specified_field_selector topk_specified_field_selector

    batched_aesthetics_filter batched_captioning_mapper batched_grounding_recall_filter
    batched_matching_filter batched_perplexity_filter batched_simhash_deduplicator
    batched_similarity_filter blank_image_filter caption_agreement_filter caption_concreteness_filter
    caption_loss_filter caption_note_mapper cluster_uniform_selector embedding_duplicate_selector
    endpoint_captioning_mapper endpoint_keyword_mapper endpoint_question_answer_mapper
    endpoint_rewriting_mapper image_augmentation_mapper image_embedding_filter keyword_mapper
    ocr_caption_mapper ocr_filter ocr_mapper ocr_question_answer_mapper placeholder_image_deduplicator
    question_answer_mapper repeat_mapper sentence_embedding_filter synonym_replacement_mapper
    text_to_image_mapper weighted_score_selector
    """.split()  # noqa: SIM905
)
# of Data-Juicer's the ones for rows of another kind, and what stands in their way
FOR_OTHER_ROWS = {
    "remove_non_chinese_character_mapper": "it takes the image's token out of every text: no row is left",
    "suffix_filter": "it looks at a column of file names' endings, which these rows do not have",
}
# Arguments that hold words or patterns, or lists of them.
WORDS = frozenset(
    """
    accelerator any_or_all blur_type chars_to_remove doc_type embedding field_key form ignore_pattern
    keep_candidate_mode lang memory mem_required method mode model normalization pattern prompt reduce_mode
    repl substrings suffixes system_prompt target_tags target_value task_sentence template tokenization
    torch_dtype words_aug_join_char
    """.split()  # noqa: SIM905
)
# folders whose files decide a result as the arguments do
WORD_LISTS = frozenset({"flagged_words_dir", "stopwords_dir"})
PATHS = WORD_LISTS | {"responses"}  # files and folders, relative to the project's
MODEL = re.compile(r"hf_|tokenizer_model$")  # arguments that hold the token of a model
# those that only a model of one role can serve
ROLES = {
    "hf_blip": "itm",
    "hf_clip": "clip",
    "hf_concreteness": "concreteness",
    "hf_img2seq": "captioner",
    "hf_mgm": "mgm",
    "hf_nsfw_model": "nsfw",
    "hf_ocr": "ocr",
    "hf_owlvit": "grounding",
    "hf_scorer_model": "aesthetics",
    "hf_sentences": "sentences",
    "hf_watermark_model": "watermark",
}
# arguments that hold names with numbers or limits
TABLES = re.compile(r"(where|weights|parameters)$|(min|max)_")
# Set for every operator by the toolkit: another value would skip failing rows, or change the result with the
# number of processes.
RESERVED = frozenset(
    """
    auto_op_parallelism batch_mode image_key num_proc ray_execution_mode runtime_env save_dir skip_op_error
    stats_export_path text_key turbo work_dir
    """.split()  # noqa: SIM905
)
TOKEN = re.compile(r"\{(\w+)\}\Z")
STEPS = 200  # of a recipe; the longest of the project's own has 25


def problems(process: list) -> list[str]:
    """What is not allowed in a recipe's `process`, as it was parsed: "step 1, name: reason", in the order of
    the steps."""
    if len(process) > STEPS:
        return [f"it has {len(process)} steps, at most {STEPS} are read"]
    return [
        problem for number, step in enumerate(process, start=1) for problem in step_problems(number, step)
    ]


def step_problems(number: int, step: Any) -> list[str]:
    """The problems of one step; `number`: its place, from 1."""
    operator, arguments = parts(step)
    if operator is None:
        return [f"step {number}: not an operator with its arguments"]
    if operator in FOR_OTHER_ROWS:
        refusals = [f"{FOR_OTHER_ROWS[operator]}; take the step out"]
    elif operator in OPERATORS:
        refusals = [
            problem for name, value in arguments.items() if (problem := _argument_problem(short(name), value))
        ]
    else:
        refusals = [
            "not an operator that a recipe may use, toolkit/data/recipe/allowed.py lists "
            f"them{did_you_mean(operator, OPERATORS)}"
        ]
    return [f"step {number}, {short(operator)}: {problem}" for problem in refusals]


def parts(step: Any) -> tuple[str | None, dict[str, Any]]:
    """(operator, arguments) of a step, `- name` for `- name:`; (None, {}) for what is not a step."""
    step = {step: None} if isinstance(step, str) else step
    if not isinstance(step, dict) or len(step) != 1:
        return None, {}
    ((operator, arguments),) = step.items()
    arguments = {} if arguments is None else arguments
    if (
        not isinstance(operator, str)
        or not isinstance(arguments, dict)
        or not all(isinstance(name, str) for name in arguments)
    ):
        return None, {}
    return operator, arguments


def role(name: str, value: Any) -> str | None:
    """The model that an argument names, `clip` for `hf_clip: "{clip}"`; None for everything else."""
    token = TOKEN.match(value) if MODEL.match(name) and isinstance(value, str) else None
    return token and token.group(1)


def is_relative(path: str) -> bool:
    """Whether a path stays inside the folder that it is relative to, as far as its text shows."""
    parts = PurePosixPath(path.replace("\\", "/")).parts
    return (
        bool(parts)
        and not path.startswith(("/", "\\", "~"))
        and ".." not in parts
        and ":" not in path
        and path.isprintable()
    )


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A hint at the name that was probably meant."""
    close = difflib.get_close_matches(name[:100], list(names), n=1)
    return f", did you mean {close[0]}?" if close else ""


def short(value: Any) -> str:
    """A value as it stands in a sentence."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _argument_problem(name: str, value: Any) -> str | None:
    """What of an argument is not allowed. Whether the operator has it, and whether it is sensible, is another
    question."""
    if name in RESERVED:
        return f"{name} is set by the toolkit, take it out"
    if name == "trust_remote_code" and value is not False:
        return "trust_remote_code is not allowed: it runs Python that comes with a model"
    if value is None or isinstance(value, bool | int | float):
        return None
    if MODEL.match(name) and not role(name, value):
        if isinstance(value, dict) and len(value) == 1 and next(iter(value.values())) is None:
            return f'{name}: write the token of a model in quotes, "{{{next(iter(value))}}}"'
        return f'{name} is {short(value)}, not the token of a local model: {name}: "{{model}}"'
    if (named := role(name, value)) in ROLES.values() and ROLES.get(name, named) != named:
        return f'{name} names the model {named}, which is of another kind: {name}: "{{{ROLES[name]}}}"'
    if name in PATHS and not (isinstance(value, str) and is_relative(value)):
        return f"{name} is {short(value)}, only relative paths inside the project are allowed"
    if isinstance(value, dict):
        return None if TABLES.match(name) else f"{name} is {short(value)}: a table is not expected"
    texts = [
        item
        for item in (value if isinstance(value, list) else [value])
        if not isinstance(item, bool | int | float | None)
    ]
    if not all(isinstance(text, str) for text in texts):
        return f"{name} is {short(value)}: a number, a text or a list of them is expected"
    if texts and not (name in WORDS or name in PATHS or MODEL.match(name) or TABLES.match(name)):
        return (
            f"{name} is {short(value)}: a text is not allowed there, toolkit/data/recipe/allowed.py lists "
            "the arguments that hold one"
        )
    return None
