"""The statistics that filters compute, by name, and the steps that ask for one.

The steps up to the next mapper are a segment: a mapper makes other rows, whose statistics are computed anew.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from toolkit.data.recipe import allowed

if TYPE_CHECKING:
    from toolkit.data.recipe import Step

STATISTICS = "__dj__stats__."  # where a row has what filters computed of it
COMPUTED = {
    "alphanumeric_filter": ("alnum_ratio",),
    "average_line_length_filter": ("avg_line_length",),
    "batched_aesthetics_filter": ("image_aesthetics_scores",),
    "batched_grounding_recall_filter": ("phrase_grounding_recall",),
    "batched_matching_filter": ("image_text_matching_score",),
    "batched_perplexity_filter": ("perplexity",),
    "batched_similarity_filter": ("image_text_similarity",),
    "blank_image_filter": ("image_entropy", "image_deviation"),
    "caption_agreement_filter": ("caption_agreement",),
    "caption_concreteness_filter": ("caption_concreteness",),
    "caption_loss_filter": ("caption_loss",),
    "character_repetition_filter": ("char_rep_ratio",),
    "flagged_words_filter": ("flagged_words_ratio",),
    "image_aesthetics_filter": ("image_aesthetics_scores",),
    "image_aspect_ratio_filter": ("aspect_ratios",),
    "image_embedding_filter": ("image_embedding",),
    "image_face_count_filter": ("face_counts",),
    "image_face_ratio_filter": ("face_ratios",),
    "image_nsfw_filter": ("image_nsfw_score",),
    "image_shape_filter": ("image_width", "image_height"),
    "image_size_filter": ("image_sizes",),
    "image_subplot_filter": (
        "image_subplot_confidence",
        "horizontal_peak_count",
        "vertical_peak_count",
        "subplot_detected",
    ),
    "image_text_matching_filter": ("image_text_matching_score",),
    "image_text_similarity_filter": ("image_text_similarity",),
    "image_watermark_filter": ("image_watermark_prob",),
    "language_id_score_filter": ("lang", "lang_score"),
    "maximum_line_length_filter": ("max_line_length",),
    "ocr_filter": ("ocr_lines", "ocr_characters"),
    "perplexity_filter": ("perplexity",),
    "sentence_embedding_filter": ("sentence_embedding",),
    "special_characters_filter": ("special_char_ratio",),
    "stopwords_filter": ("stopwords_ratio",),
    "text_action_filter": ("num_action",),
    "text_entity_dependency_filter": ("num_dependency_edges",),
    "text_length_filter": ("text_len",),
    "token_num_filter": ("num_token",),
    "word_repetition_filter": ("word_rep_ratio",),
    "words_num_filter": ("num_words",),
}
EMBEDDINGS = {  # that selectors ask for by default
    "cluster_uniform_selector": "image_embedding",
    "embedding_duplicate_selector": "sentence_embedding",
}


def problems(steps: Sequence["Step"]) -> Iterator[str]:
    """Steps that ask for a statistic which no filter before them in their segment computes, and limits of
    which nobody can tell what statistic they are about."""
    known: list[str] = []
    for step in steps:
        context, own = f"step {step.number}, {step.operator}", COMPUTED.get(step.operator, ())
        if step.operator.startswith("specified_"):
            own = (step.arguments.get("field_key", ""),)
        for argument, form in step.adaptive.items():
            if not subject(own, argument, form.get("of")):
                yield f"{context}: {argument} needs `of`, the statistic it is about, one of {', '.join(own)}"
        for argument, name in _asked(step):
            if name not in known:
                hint = f"{allowed.did_you_mean(name, known)}; known: {', '.join(known) or 'none'}"
                yield (
                    f"{context}: {argument} names {allowed.short(name)}, which no filter before it in its "
                    f"segment computes{hint}"
                )
        known = [] if step.operator.endswith("_mapper") else list(dict.fromkeys([*known, *own]))


def subject(names: Sequence[str], argument: str, of: str | None) -> str | None:
    """Which of a filter's statistics a limit is about: the only one, the one whose name ends like the
    argument, or the one that `of` names. None where that is not one."""
    fitting = [name for name in names if of in (None, name)]
    if len(fitting) > 1:
        fitting = [name for name in fitting if name.endswith(argument[4:])]
    return fitting[0] if len(fitting) == 1 else None


def _asked(step: "Step") -> Iterator[tuple[str, str]]:
    """(argument, statistic of an earlier step that it names)."""
    yield from (("where", name) for name in step.where)
    for argument, form in step.adaptive.items():
        if "agree" in form:
            yield f"{argument}'s agree", form["agree"]
    key = str(step.arguments.get("field_key", ""))
    if step.operator.endswith("_selector") and key.startswith(STATISTICS):
        yield "field_key", key.removeprefix(STATISTICS)
    if step.operator == "weighted_score_selector":
        yield from (("weights", name) for name in step.arguments["weights"])
    if step.operator in EMBEDDINGS:
        yield "embedding", step.arguments.get("embedding", EMBEDDINGS[step.operator])
