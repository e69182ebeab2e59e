"""Curvature against derivatives worked out otherwise: dense ones of JAX, and a model that is linear."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import away_from_zero, same_bits

from maskprune.conv import conv2d
from maskprune.lab.testing import awkward_forms, poison, sample_network
from maskprune.masks.alterations import disable, freeze
from maskprune.masks.groups import Groups
from maskprune.masks.network import choose, effective_params, init_network, trainable
from maskprune.tasks.models import fcn
from maskprune.train.curvature import flatten, gauss_newton, hessian, jacobian, shift


MODEL = fcn((3,), kernel=3, convolution=partial(conv2d, way="xla"))


@pytest.fixture
def network():
    return init_network(away_from_zero(1, jax.eval_shape(MODEL.init, jax.random.key(0))), MODEL.groups)


@pytest.fixture
def batch(rng):
    inputs, targets = rng.uniform(size=(2, 5, 6, 6, 1))
    return jnp.asarray(inputs, jnp.float32), jnp.asarray(targets, jnp.float32)


def residuals(params, batch):
    return (MODEL.apply(params, batch[0]) - batch[1]).reshape(-1)


def loss(params, batch):
    return jnp.mean(jnp.square(residuals(params, batch)))


JACOBIAN = jax.jit(partial(jacobian, residuals, chunk=4))
HESSIAN = jax.jit(partial(hessian, loss))
GAUSS_NEWTON = jax.jit(partial(gauss_newton, residuals), static_argnames="examples")


def held_and_gone(network):
    network = disable(network, choose(network, {"conv1": [1]}))
    return dataclasses.replace(freeze(network, choose(network, {"conv1": [0]})), fixed=("conv2/bias",))


def moving_entries(network):
    """The flags of `flatten`, found leaf by leaf."""
    marks = jax.tree.map(lambda mark, leaf: np.broadcast_to(mark, leaf.shape), trainable(network), network.params)
    return np.concatenate([np.ravel(mark) for mark in jax.tree.leaves(marks)])


@pytest.mark.rotating
@pytest.mark.parametrize("form", [lambda network: network, held_and_gone], ids=["whole", "held"])
def test_jacobian_and_hessian_are_the_dense_ones(form, network, batch):
    network = form(network)
    flat, moves = flatten(network), moving_entries(network)
    np.testing.assert_array_equal(flat.trains, moves)
    dense = jax.jit(jax.jacrev(lambda vector: residuals(flat.unflatten(vector), batch)))(flat.vector)
    np.testing.assert_allclose(JACOBIAN(network, batch), dense * moves[None], rtol=1e-5, atol=1e-6)
    second = jax.jit(jax.hessian(lambda vector: loss(flat.unflatten(vector), batch)))(flat.vector)
    np.testing.assert_allclose(HESSIAN(network, batch), second * np.outer(moves, moves), rtol=1e-4, atol=1e-5)


@pytest.mark.rotating
@pytest.mark.parametrize("examples", [None, 2, 5, 9])
def test_gauss_newton_does_not_depend_on_how_many_examples_are_held(examples, network, batch):
    flat, rows = flatten(network), JACOBIAN(network, batch)
    found = GAUSS_NEWTON(network, batch, examples=examples)
    np.testing.assert_allclose(found.matrix, 2 / len(rows) * rows.T @ rows, rtol=1e-4, atol=1e-5)
    gradient = jax.jit(jax.grad(lambda vector: loss(flat.unflatten(vector), batch)))(flat.vector)
    np.testing.assert_allclose(found.gradient, gradient, rtol=1e-4, atol=1e-5)


def linear_residuals(params, batch):
    return (batch[0] @ params["kernel"] + params["bias"][None] - batch[1]).reshape(-1)


def linear_loss(params, batch):
    return jnp.mean(jnp.square(linear_residuals(params, batch)))


def test_the_loss_of_a_linear_model_is_its_quadratic(rng):
    params = {"kernel": rng.normal(size=(3, 2)).astype(np.float32), "bias": rng.normal(size=2).astype(np.float32)}
    network = init_network(params, Groups(()))
    batch = tuple(jnp.asarray(rng.normal(size=(7, width)), jnp.float32) for width in (3, 2))
    found = jax.jit(partial(gauss_newton, linear_residuals))(network, batch)
    exact = jax.jit(partial(hessian, linear_loss))(network, batch)
    np.testing.assert_allclose(found.matrix, exact, rtol=1e-4, atol=1e-5)
    step = jnp.asarray(rng.normal(size=8), jnp.float32)
    predicted = linear_loss(network.params, batch) + found.gradient @ step + step @ found.matrix @ step / 2
    assert float(linear_loss(shift(network, step).params, batch)) == pytest.approx(float(predicted), rel=1e-4)
    best = shift(network, -jnp.linalg.solve(found.matrix, found.gradient)).params
    solved = np.linalg.lstsq(np.c_[batch[0], np.ones(7)], np.asarray(batch[1]), rcond=None)[0]
    np.testing.assert_allclose(np.vstack([best["kernel"], best["bias"]]), solved, rtol=1e-3, atol=1e-3)


def test_gauss_newton_is_the_hessian_where_nothing_is_left_over(network, batch):
    batch = batch[0], MODEL.apply(network.params, batch[0])
    found, exact = GAUSS_NEWTON(network, batch).matrix, HESSIAN(network, batch)
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.rotating
def test_a_network_is_its_vector_and_what_is_held_stays(rng):
    for network in map(poison, awkward_forms(sample_network()).values()):
        flat, moves = flatten(network), trainable(network)
        assert np.isfinite(flat.vector).all()
        chex.assert_trees_all_equal(flat.unflatten(flat.vector), effective_params(network), strict=True)
        moved = shift(network, jnp.asarray(rng.uniform(1, 2, flat.vector.size), jnp.float32)).params
        for old, new, may in zip(*map(jax.tree.leaves, (network.params, moved, moves)), strict=True):
            old, new, may = np.asarray(old), np.asarray(new), np.broadcast_to(may, old.shape)
            assert same_bits(old[~may], new[~may])
            assert np.all(new[may] > old[may])


def test_what_disabled_masks_store_is_not_read(network, batch):
    network = held_and_gone(network)
    for function in (HESSIAN, JACOBIAN):
        found = function(network, batch)
        assert same_bits(found, function(poison(network), batch))
        assert not np.asarray(found)[:, ~moving_entries(network)].any()


def test_integer_leaves_have_no_place_in_the_vector():
    network = sample_network()
    first = lambda params, x: (x @ params["in"]["kernel"]).reshape(-1)
    rows = jax.jit(partial(jacobian, first))(network, jnp.ones((2, 4)))
    floating = [leaf.size for leaf in jax.tree.leaves(network.params) if leaf.dtype == jnp.float32]
    assert rows.shape == (12, sum(floating)) == (12, flatten(network).vector.size)


def test_one_program_whichever_masks_are_there(network, batch):
    compiled = jax.jit(partial(jacobian, residuals))
    for each in (network, disable(network, choose(network, {"conv1": [1]}))):
        compiled(each, batch)
    assert compiled._cache_size() == 1


@pytest.mark.parametrize(("examples", "shapes"), [(0, (4, 4)), (2, (4, 3))])
def test_examples_that_cannot_be_counted_are_refused(examples, shapes, network):
    batch = tuple(jnp.zeros((count, 6, 6, 1)) for count in shapes)
    with pytest.raises(ValueError, match="`examples` is"):
        gauss_newton(lambda params, batch: params["conv1"]["bias"] * 1.0, network, batch, examples=examples)
