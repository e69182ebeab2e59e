"""What each selector prefers, against numbers worked out by hand, and the order of removal that follows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import nnls

from maskprune import select
from maskprune.lab.testing import poison
from maskprune.masks.alterations import disable
from maskprune.masks.groups import Group, Groups, Slice
from maskprune.masks.network import choose, init_network
from maskprune.select.cosine import AGGREGATES, similarities


# Five masks with a kernel of two numbers and a bias each; the second repeats the first, the third opposes it, the
# fourth is empty, and the fifth stands square on the first.
VECTORS = np.array([[1.0, 2.0, 2.0], [2.0, 4.0, 4.0], [-1.0, -2.0, -2.0], [0.0, 0.0, 0.0], [2.0, 1.0, -2.0]])
ACROSS = {"min": np.min, "max": np.max, "mean": np.mean, "median": np.median, "std": np.std}


def layer(vectors, readers=None):
    """One group `g`: each row is a mask's kernel and, last, its bias; `readers` are float[C, R], what reads them."""
    vectors = np.asarray(vectors, np.float32)
    size, labels = len(vectors), tuple(range(len(vectors)))
    readers = np.ones((size, 1)) if readers is None else readers
    params = {"g": {"kernel": vectors[:, :-1].T, "bias": vectors[:, -1]}, "next": np.asarray(readers, np.float32)}
    own = (Slice("g/kernel", 1, labels, "out"), Slice("g/bias", 0, labels, "out"))
    return init_network(params, Groups((Group("g", size, (*own, Slice("next", 0, labels, "in"))),)))


def two_layers(rng):
    """Dense, 4 to 3 to 2 to 1, with masks of three and two."""
    shapes = {"w1": (4, 3), "b1": (3,), "w2": (3, 2), "b2": (2,), "w3": (2, 1)}
    params = {name: np.abs(rng.normal(size=shape)) for name, shape in shapes.items()}
    params["w1"] *= rng.choice([-1, 1], (4, 3))  # only here: whatever passes the first ReLU passes the second
    one = (Slice("w1", 1, (0, 1, 2), "out"), Slice("b1", 0, (0, 1, 2), "out"), Slice("w2", 0, (0, 1, 2), "in"))
    two = (Slice("w2", 1, (0, 1), "out"), Slice("b2", 0, (0, 1), "out"), Slice("w3", 0, (0, 1), "in"))
    return init_network(params, Groups((Group("one", 3, one), Group("two", 2, two))))


def score(selector, network, batch=None):
    return np.asarray(selector(jax.random.key(0), network, batch)["g"], np.float64)


def cosines(vectors):
    """By the definition, pair by pair, in float64."""
    product = lambda a, b: a @ b / np.sqrt((a @ a) * (b @ b)) if a.any() and b.any() else 0.0
    return np.array([[product(a, b) for b in vectors] for a in vectors])


def test_similarities_of_pairs_known_by_hand():
    matrix = np.asarray(similarities(jnp.asarray(VECTORS, jnp.float32)))
    expected = np.array(
        [[1, 1, -1, 0, 0], [1, 1, -1, 0, 0], [-1, -1, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]], np.float64
    )
    np.testing.assert_allclose(matrix, expected, atol=1e-6)


@pytest.mark.parametrize("similar_first", [True, False])
@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_cosine_aggregates_over_the_other_enabled_masks(aggregate, absolute, similar_first, rng):
    vectors = np.concatenate([VECTORS, rng.normal(size=(2, 3))])
    network = layer(vectors)
    network = poison(disable(network, choose(network, {"g": [1, 5]})))
    left = [0, 2, 3, 4, 6]
    matrix = cosines(np.asarray(vectors, np.float32)[left].astype(np.float64))
    matrix = np.abs(matrix) if absolute else matrix
    others = [np.delete(row, position) for position, row in enumerate(matrix)]  # self excluded
    expected = (-1 if similar_first else 1) * np.array([ACROSS[aggregate](row) for row in others])
    found = score(select.cosine(aggregate, absolute=absolute, similar_first=similar_first), network)
    np.testing.assert_allclose(found[left], expected, atol=1e-6)


def test_a_mask_alone_in_its_layer_aggregates_to_zero():
    network = layer(VECTORS)
    network = disable(network, choose(network, {"g": [1, 2, 3, 4]}))
    assert [score(select.cosine(aggregate), network)[0] for aggregate in AGGREGATES] == [0.0] * len(AGGREGATES)


def first(selector, network, batch=None):
    return select.rank(selector(jax.random.key(0), network, batch), network)[0]


def test_a_duplicate_goes_first_and_an_opposite_only_under_absolute_value():
    vectors = [[0.9, 0.1, 0.0], [0.0, 1.0, 0.1], [0.0, -1.0, -0.1], [1.0, 0.0, 0.2]]
    assert first(select.cosine(), layer([*vectors, [0.0, 2.0, 0.2]])) == ("g", 1)
    assert first(select.cosine(absolute=True), layer(vectors)) == ("g", 1)
    assert first(select.cosine(), layer(vectors)) == ("g", 0)  # nearest to the fourth
    assert first(select.cosine(similar_first=False), layer(vectors)) == ("g", 2)


@pytest.mark.parametrize(("order", "expected"), [(1, [5.0, 10.0, 5.0, 0.0, 5.0]), (2, [3.0, 6.0, 3.0, 0.0, 3.0])])
def test_magnitude_sums_kernel_and_bias(order, expected):
    np.testing.assert_allclose(score(select.magnitude(order), layer(VECTORS)), expected, rtol=1e-6)


def test_geometric_median_sums_distances_to_the_enabled():
    network = layer([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0], [0.0, 5.0], [100.0, 0.0]])
    network = disable(network, choose(network, {"g": [4]}))
    apart = np.sqrt(np.array([36.0 + 9.0, 9.0 + 1.0]))  # from the fourth to the third and second
    expected = [20.0, 10.0 + apart[1], 15.0 + apart[0], 5.0 + apart.sum()]
    np.testing.assert_allclose(score(select.geometric_median(), network)[:4], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("statistic", "expected"),
    [("mean", [2.5, 0.0, 1.0]), ("std", [np.sqrt(5.25), 0.0, 1.0]), ("zeros", [-0.25, -1, -0.5])],
)
def test_activation_statistics_by_hand(statistic, expected):
    outputs = jnp.array([[0.0, 0.0, 2.0], [1.0, 0.0, 0.0], [3.0, 0.0, 2.0], [6.0, 0.0, 0.0]])
    activations = lambda params, batch: {"g": outputs.reshape(2, 1, 2, 3), "another layer": batch}
    network = layer(np.ones((3, 2)))
    np.testing.assert_allclose(score(select.activation(activations, statistic), network, outputs), expected, rtol=1e-6)


def test_sequential_counts_on_through_the_layers(rng):
    scores = select.sequential()(jax.random.key(0), two_layers(rng), None)
    assert {name: values.tolist() for name, values in scores.items()} == {"one": [0, 1, 2], "two": [3, 4]}


@pytest.mark.parametrize("disabled", [[], [1]])
def test_twin_is_the_distance_to_the_best_multiple(rng, disabled):
    vectors, readers = np.vstack([VECTORS, rng.normal(size=(3, 3))]), rng.normal(size=(8, 2))
    network = layer(vectors, readers)
    network = disable(network, choose(network, {"g": disabled}))
    enabled = [i for i in range(8) if i not in disabled]

    def lost(i):
        away = [nnls(vectors[j][:, None], vectors[i])[1] for j in enabled if j != i]
        return min(away) * np.linalg.norm(readers[i])

    found = score(select.twin(), network)[enabled]
    np.testing.assert_allclose(found, [lost(i) for i in enabled], atol=1e-5)


def test_twin_finds_a_scaled_duplicate_and_not_an_opposite():
    vector = np.array([0.3, -0.7, 0.1])
    found = score(select.twin(), layer([vector, 3 * vector, [1.0, 0.0, 0.0]], readers=[[2.0], [1.0], [1.0]]))
    assert np.all(found[:2] < 1e-6) and found[2] > 0.1
    opposite = score(select.twin(), layer([vector, -3 * vector], readers=[[2.0], [1.0]]))
    np.testing.assert_allclose(opposite, np.linalg.norm(vector) * np.array([2, 3]), rtol=1e-6)
    alone = layer([vector, 3 * vector])
    alone = disable(alone, choose(alone, {"g": [1]}))
    np.testing.assert_allclose(score(select.twin(), alone)[0], np.linalg.norm(vector), rtol=1e-6)


def fixed(one, two):
    """A selector with these scores for `two_layers`."""
    return lambda key, network, batch: {"one": jnp.array(one), "two": jnp.array(two)}


def test_an_ensemble_is_the_mean_of_places(rng):
    network = two_layers(rng)
    first, second = fixed([5.0, 1.0, 3.0], [3.0, -2.0]), fixed([0.1, 0.2, 0.3], [np.nan, 0.4])
    found = select.ensemble([first, second])(jax.random.key(0), network, None)  # 5 2 3.5, 3.5 1 and 1 2 3, 5 4
    assert {name: values.tolist() for name, values in found.items()} == {"one": [3, 2, 3.25], "two": [4.25, 2.5]}
    found = select.ensemble([first, second], [3, 1])(jax.random.key(0), network, None)
    assert {name: values.tolist() for name, values in found.items()} == {"one": [4, 2, 3.375], "two": [3.875, 1.75]}


def test_an_ensemble_counts_enabled_masks_only(rng):
    network = two_layers(rng)
    network = disable(network, choose(network, {"one": [1], "two": [1]}))
    found = select.ensemble([fixed([5.0, 1.0, 3.0], [4.0, np.nan])])(jax.random.key(0), network, None)
    assert [*found["one"][np.array([0, 2])].tolist(), float(found["two"][0])] == [3, 1, 2]


@pytest.mark.parametrize("selector", [select.magnitude(), select.sequential(), select.geometric_median()])
def test_an_ensemble_of_one_keeps_its_order(rng, selector):
    network = two_layers(rng)
    order = lambda each: select.rank(each(jax.random.key(0), network, None), network)
    assert order(select.ensemble([selector])) == order(selector)


def test_every_selector_of_an_ensemble_draws_for_itself(rng):
    network, keys = two_layers(rng), []

    def note(key, network, batch):
        keys.append(tuple(jax.random.key_data(key).tolist()))
        return select.random()(key, network, batch)

    select.ensemble([note, note])(jax.random.key(0), network, None)
    assert len(set(keys)) == 2


def test_reverse_turns_the_order_round():
    network = layer([[1.0, 0.0], [3.0, 0.0], [2.0, 0.0]])
    order = lambda selector: [number for _, number in select.rank({"g": score(selector, network)}, network)]
    assert order(select.magnitude()) == [0, 2, 1]
    assert order(select.reverse(select.magnitude())) == [1, 2, 0]


def test_standardize_reads_enabled_masks_only():
    network = layer([[1.0, 0.0], [3.0, 0.0], [500.0, 0.0], [5.0, 0.0]])
    network = disable(network, choose(network, {"g": [2]}))
    found = score(select.standardize(select.magnitude()), network)[[0, 1, 3]]
    np.testing.assert_allclose(found, np.array([-2, 0, 2]) / np.sqrt(8 / 3), rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, 0.7, 1e-8, 3e5])
@pytest.mark.parametrize("size", [1, 3, 5, 7])
def test_standardize_leaves_equal_scores_equal_and_small(value, size):
    constant = lambda key, network, batch: {"g": jnp.full(size, value)}
    found = score(select.standardize(constant), layer(np.ones((size, 2))))
    np.testing.assert_allclose(found, 0.0, atol=1e-3)  # rounding of the mean is not a difference between masks


def test_rank_breaks_ties_by_outgoing_norm_then_number():
    network = layer(np.ones((5, 2)), readers=[[3.0, 0.0], [0.0, 1.0], [2.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    assert [number for _, number in select.rank({"g": np.array([1.0, 1.0, 0.5, 1.0, 2.0])}, network)] == [2, 1, 3, 0, 4]


def test_rank_puts_nan_last_and_mixes_layers(rng):
    order = select.rank({"one": [np.nan, 4.0, -np.inf], "two": [1.0, 1e30]}, two_layers(rng))
    assert order == [("one", 2), ("two", 0), ("one", 1), ("two", 1), ("one", 0)]


def test_outgoing_norms_count_only_what_is_read():
    network = layer(np.ones((3, 2)), readers=[[3.0, 4.0], [0.0, 1.0], [1.0, 0.0]])
    network = dataclasses.replace(network, enabled={"g": jnp.array([True, True, False])})
    assert np.asarray(select.outgoing_norms(network)["g"]).tolist() == [5.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("scores", "complaint"),
    [
        ({}, "no scores for group `g`, only for none"),
        ({"h": np.zeros(5)}, "no scores for group `g`, only for h"),
        ({"g": np.zeros(4)}, r"scores of `g` have shape \(4,\), not \(5,\)"),
        ({"g": 0.0}, r"shape \(\), not \(5,\)"),
    ],
)
def test_rank_names_what_is_wrong(scores, complaint):
    with pytest.raises(ValueError, match=complaint):
        select.rank(scores, layer(VECTORS))


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: select.cosine("maximum"), '`aggregate` is \'maximum\': use "min", "max"'),
        (lambda: select.magnitude(3), "`order` is 3"),
        (lambda: select.taylor(lambda params, batch: 0.0, 3), "`order` is 3"),
        (lambda: select.information(lambda params, batch: {}, lambda batch: batch, bins=1), "`bins` is 1"),
        (lambda: select.ensemble([]), "`selectors` is empty"),
        (lambda: select.ensemble([select.random()], [1, 2]), r"`weights` is \[1, 2\]: give 1 numbers"),
        (lambda: select.ensemble([select.random()], [0]), "not all 0"),
        (lambda: select.ensemble([select.random()] * 2, [2, -1]), "0 or more"),
        (lambda: select.activation(lambda params, batch: {}, "median"), "`statistic` is 'median'"),
    ],
)
def test_a_wrong_setting_is_named(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()
