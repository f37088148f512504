"""The project's own Data-Juicer operators; importing the package registers them.

The folder also serves stock Data-Juicer: `dj-process --config recipe.yaml --custom_operator_paths toolkit/data/operators`.
"""

from . import (
    batched_captioning_mapper,
    batched_matching_filter,
    batched_simhash_deduplicator,
    batched_similarity_filter,
    cluster_uniform_selector,
    image_augmentation_mapper,
    image_embedding_filter,
    keyword_mapper,
    question_answer_mapper,
    repeat_mapper,
    synonym_replacement_mapper,
    weighted_score_selector,
)

__all__ = [
    "batched_captioning_mapper",
    "batched_matching_filter",
    "batched_simhash_deduplicator",
    "batched_similarity_filter",
    "cluster_uniform_selector",
    "image_augmentation_mapper",
    "image_embedding_filter",
    "keyword_mapper",
    "question_answer_mapper",
    "repeat_mapper",
    "synonym_replacement_mapper",
    "weighted_score_selector",
]
