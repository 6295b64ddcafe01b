import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preread.errors import RequestError
from preread.tokens.labels import label_trie


def edges_for(trie, table):
    """Edge log-probabilities from P(token | node)."""
    return np.log(
        np.array(
            [
                [
                    table[(n, t)]
                    for n, t in zip(trie.edge_node.tolist(), trie.edge_token.tolist(), strict=True)
                ]
            ],
            np.float32,
        )
    )


def test_single_token_labels_need_no_inner_node():
    trie = label_trie([[5], [7], [6]])
    assert len(trie.tokens) == 0
    got = trie.score(edges_for(trie, {(0, 5): 0.5, (0, 6): 0.1, (0, 7): 0.2}))
    np.testing.assert_allclose(np.exp(got), [[0.5, 0.2, 0.1]], rtol=1e-6)


def test_shared_beginnings_are_computed_once():
    trie = label_trie([[1, 2, 3], [1, 2, 4], [1, 5], [9]])
    assert trie.tokens.tolist() == [1, 2]
    assert trie.depth.tolist() == [1, 2]
    assert trie.mask.tolist() == [[True, False], [True, True]]
    table = {(0, 1): 0.5, (1, 2): 0.8, (2, 3): 0.25, (2, 4): 0.5, (1, 5): 0.1, (0, 9): 0.3}
    got = np.exp(trie.score(edges_for(trie, table)))
    np.testing.assert_allclose(got, [[0.1, 0.2, 0.05, 0.3]], rtol=1e-6)


def test_siblings_do_not_see_each_other():
    trie = label_trie([[1, 2, 3], [4, 2, 3]])
    assert trie.mask.tolist() == [
        [True, False, False, False],
        [False, True, False, False],
        [True, False, True, False],
        [False, True, False, True],
    ]


def test_a_label_that_begins_another_keeps_what_does_not_go_on():
    trie = label_trie([[1], [1, 2], [1, 2, 3], [1, 4]])
    table = {(0, 1): 0.6, (1, 2): 0.5, (1, 4): 0.2, (2, 3): 0.9}
    got = np.exp(trie.score(edges_for(trie, table)))[0]
    np.testing.assert_allclose(got, [0.6 * 0.3, 0.6 * 0.5 * 0.1, 0.6 * 0.5 * 0.9, 0.12], rtol=1e-5)
    assert got.sum() <= 0.6 + 1e-6


def test_bad_labels():
    with pytest.raises(RequestError, match="label 1 is empty"):
        label_trie([[1], []])
    with pytest.raises(RequestError, match="same tokens as label 0"):
        label_trie([[1, 2], [3], [1, 2]])


@settings(max_examples=100, deadline=None)
@given(st.sets(st.lists(st.integers(0, 2), min_size=1, max_size=5).map(tuple), min_size=1))
def test_what_begins_with_a_label_is_found_as_by_comparing_all(labels):
    keys = list(labels)
    trie = label_trie(keys)
    begin = [{j for j, b in enumerate(keys) if b != a and b[: len(a)] == a} for a in keys]
    for i, longer in enumerate(trie.longer):
        assert set(longer) == {j for j in begin[i] if not any(j in begin[k] for k in begin[i])}


@pytest.mark.parametrize(
    "labels",
    [
        [[1] * 100_000],
        [[i] for i in range(100_000)],
        [[i, *range(500)] for i in range(100)],
    ],
)
def test_labels_without_end_are_refused_before_they_cost_anything(labels):
    with pytest.raises(RequestError, match="Give fewer or shorter"):
        label_trie(labels)
    assert len(label_trie([[i] for i in range(20_000)]).paths) == 20_000
