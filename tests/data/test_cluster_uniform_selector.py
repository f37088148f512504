"""Even numbers from every cluster, the same ones each time."""

from collections.abc import Iterator

import numpy as np
import pytest

from toolkit.data.engine import juicer
from toolkit.errors import UserError


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    with juicer.offline():
        yield


def clouds(sizes: list[int]) -> np.ndarray:
    """Points around far corners, mixed: float [sum(sizes), 4], and the corner of each."""
    random = np.random.default_rng(5)
    corner = random.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return random.normal(0, 0.1, (len(corner), 4)) + 10 * np.eye(4)[corner], corner


def data(vectors: np.ndarray):
    from data_juicer.core.data import NestedDataset

    statistics = [{"image_embedding": vector.tolist()} for vector in vectors]
    return NestedDataset.from_dict(
        {"id": list(range(len(vectors))), "text": ["x"] * len(vectors), "__dj__stats__": statistics}
    )


def chosen(vectors: np.ndarray, **arguments) -> list[int]:
    from toolkit.data.operators.cluster_uniform_selector import ClusterUniformSelector

    return ClusterUniformSelector(**arguments).process(data(vectors))["id"][:]


def test_clusters_give_equally_and_a_small_one_everything() -> None:
    vectors, corner = clouds([60, 30, 5, 25])
    found = chosen(vectors, clusters=4, top_num=65)
    assert np.bincount(corner[found]).tolist() == [20, 20, 5, 20]
    assert found == sorted(found)


def test_the_seed_decides_and_nothing_else() -> None:
    vectors, _ = clouds([60, 30, 5, 25])
    assert chosen(vectors, clusters=4, top_ratio=0.5) == chosen(vectors, clusters=4, top_ratio=0.5)
    assert chosen(vectors, clusters=4, top_ratio=0.5, seed=1) != chosen(
        vectors, clusters=4, top_ratio=0.5, seed=2
    )


def test_more_clusters_than_rows_and_equal_rows() -> None:
    assert len(chosen(np.ones((6, 4)), clusters=400, top_num=3)) == 3
    assert chosen(clouds([2, 2])[0], clusters=400, top_num=9) == [0, 1, 2, 3]


def test_centres_fitted_to_a_sample_still_find_the_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    from toolkit.data.operators import cluster_uniform_selector

    monkeypatch.setattr(cluster_uniform_selector, "FITTED", 10)
    vectors, corner = clouds([400, 300, 200, 100])
    found = chosen(vectors, clusters=4, top_num=200)
    assert np.bincount(corner[found]).tolist() == [50, 50, 50, 50]


def test_shares() -> None:
    from toolkit.data.operators.cluster_uniform_selector import shares

    assert shares([10, 10, 10], 10) == [3, 3, 4]
    assert shares([1, 2, 100], 50) == [1, 2, 47]
    assert shares([1, 2, 3], 50) == [1, 2, 3]
    assert shares([5, 0, 5], 4) == [2, 0, 2]


def test_a_row_without_its_embedding_is_named() -> None:
    with pytest.raises(UserError, match=r"no text_embedding: .* its statistics: image_embedding"):
        chosen(clouds([3])[0], embedding="text_embedding", top_num=1)
    with pytest.raises(ValueError, match="give top_num or top_ratio"):
        chosen(clouds([3])[0])


def test_vectors_are_those_of_the_rows_that_are_there() -> None:
    from toolkit.data.operators.cluster_uniform_selector import vectors_of

    values = clouds([9])[0]
    taken = data(values).select([7, 2, 3])
    assert (vectors_of(taken, "image_embedding") == values[[7, 2, 3]].astype(np.float32)).all()
    with pytest.raises(ValueError, match="the rows' image_embedding have 4 and 2 numbers"):
        vectors_of(data([*values[:2], values[2][:2]]), "image_embedding")
