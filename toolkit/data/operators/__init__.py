"""The project's own Data-Juicer operators; importing the package registers them.

The folder also serves stock Data-Juicer: `dj-process --config recipe.yaml --custom_operator_paths toolkit/data/operators`.
"""

from . import batched_simhash_deduplicator, batched_similarity_filter, greedy_captioning_mapper

__all__ = ["batched_simhash_deduplicator", "batched_similarity_filter", "greedy_captioning_mapper"]
