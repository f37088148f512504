"""The project's own Data-Juicer operators; importing the package registers them.

The folder also serves stock Data-Juicer: `dj-process --config recipe.yaml --custom_operator_paths toolkit/data/operators`.
"""

from data_juicer.utils import mm_utils

from toolkit import images

# Before any operator is imported, which copies the name: Data-Juicer's own turns images as their EXIF says, which the trainer does not
mm_utils.load_image = images.load

from . import (  # noqa: E402
    batched_aesthetics_filter,
    batched_captioning_mapper,
    batched_grounding_recall_filter,
    batched_matching_filter,
    batched_perplexity_filter,
    batched_simhash_deduplicator,
    batched_similarity_filter,
    cluster_uniform_selector,
    endpoint_captioning_mapper,
    endpoint_keyword_mapper,
    endpoint_question_answer_mapper,
    endpoint_rewriting_mapper,
    image_augmentation_mapper,
    image_embedding_filter,
    keyword_mapper,
    question_answer_mapper,
    repeat_mapper,
    synonym_replacement_mapper,
    text_to_image_mapper,
    weighted_score_selector,
)

__all__ = [
    "batched_aesthetics_filter",
    "batched_captioning_mapper",
    "batched_grounding_recall_filter",
    "batched_matching_filter",
    "batched_perplexity_filter",
    "batched_simhash_deduplicator",
    "batched_similarity_filter",
    "cluster_uniform_selector",
    "endpoint_captioning_mapper",
    "endpoint_keyword_mapper",
    "endpoint_question_answer_mapper",
    "endpoint_rewriting_mapper",
    "image_augmentation_mapper",
    "image_embedding_filter",
    "keyword_mapper",
    "question_answer_mapper",
    "repeat_mapper",
    "synonym_replacement_mapper",
    "text_to_image_mapper",
    "weighted_score_selector",
]
