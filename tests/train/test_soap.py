"""SOAP: plain Adam where it does not rotate, indifferent to rotations where it does, quick on a narrow valley."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskprune.train.optim import scale_by_soap, soap
from maskprune.train.optim.eigenbasis import SoapState


def orthogonal(rng: np.random.Generator, size: int) -> np.ndarray:
    return np.linalg.qr(rng.normal(size=(size, size)))[0]


def run(transform, gradients):
    """All updates of a transform for a given sequence of gradients."""
    state, found = transform.init(gradients[0]), []
    update = jax.jit(transform.update)
    for gradient in gradients:
        updates, state = update(gradient, state)
        found.append(updates)
    return found, state


def minimize(loss, params, transform, steps: int) -> float:
    def body(carry, _):
        params, state = carry
        updates, state = transform.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.jit(lambda p: jax.lax.scan(body, (p, transform.init(p)), length=steps))(params)
    return float(loss(params))


def test_vectors_and_scalars_get_adam(rng):
    gradients = [{"b": jnp.asarray(rng.normal(size=6), jnp.float32), "s": jnp.float32(rng.normal())} for _ in range(25)]
    ours, _ = run(scale_by_soap(b1=0.8, b2=0.97, eps=1e-6), gradients)
    adam, _ = run(optax.scale_by_adam(b1=0.8, b2=0.97, eps=1e-6), gradients)
    for one, other in zip(ours, adam, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), one, other)


def test_sides_longer_than_the_limit_are_not_rotated(rng):
    gradients = [jnp.asarray(rng.normal(size=(3, 5)), jnp.float32) for _ in range(12)]
    ours, _ = run(scale_by_soap(largest=2), gradients)
    adam, _ = run(optax.scale_by_adam(b1=0.9, b2=0.99), gradients)
    np.testing.assert_allclose(ours, adam, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "largest", "rows", "columns"),
    [
        ((5, 5, 2, 4), 1024, 50, 4),
        ((5, 5, 2, 4), 49, 0, 4),
        ((5, 5, 2, 4), 3, 0, 0),
        ((7, 7), 7, 7, 7),
        ((1, 1, 1, 6), 1024, 0, 6),
        ((6,), 1024, 0, 0),
        ((), 1024, 0, 0),
        ((3, 3, 0, 4), 1024, 0, 4),
        ((3, 3, 4, 0), 1024, 0, 0),
    ],
)
def test_state_has_the_sides_it_rotates(shape, largest, rows, columns):
    state = scale_by_soap(largest=largest).init(jnp.ones(shape))
    assert isinstance(state, SoapState)
    (moments,) = state.leaves
    assert moments.rows.shape == moments.row_basis.shape == (rows, rows)
    assert moments.columns.shape == moments.column_basis.shape == (columns, columns)
    assert moments.mean.size == moments.square.size == int(np.prod(shape))


def test_turning_the_problem_turns_the_updates(rng):
    """Adam depends on the axes; SOAP sees left and right rotations of a matrix of gradients as the same problem."""
    left, right = orthogonal(rng, 4), orthogonal(rng, 3)
    steep = np.outer([8.0, 4.0, 2.0, 1.0], [9.0, 3.0, 1.0])  # well separated, so the eigenvectors are well determined
    plain = [jnp.asarray(steep * rng.normal(size=(4, 3)), jnp.float32) for _ in range(15)]
    turned = [jnp.asarray(left @ np.asarray(g, np.float64) @ right.T, jnp.float32) for g in plain]
    (ours, _), (ours_turned, _) = run(scale_by_soap(every=1), plain), run(scale_by_soap(every=1), turned)
    (adam, _), (adam_turned, _) = run(optax.scale_by_adam(), plain), run(optax.scale_by_adam(), turned)
    back = lambda updates: left.T @ np.asarray(updates[-1]) @ right
    np.testing.assert_allclose(back(ours_turned), ours[-1], atol=2e-2)
    assert np.max(np.abs(back(adam_turned) - np.asarray(adam[-1]))) > 0.2


def test_ten_times_lower_than_adam_in_a_narrow_valley(rng):
    """A quadratic bowl, 10 000 times as steep along one direction as along another, none of them along an axis."""
    left = orthogonal(rng, 8) * np.logspace(0, -1, 8) @ orthogonal(rng, 8)
    right = orthogonal(rng, 6) * np.logspace(0, -1, 6) @ orthogonal(rng, 6)
    left, right = jnp.asarray(left, jnp.float32), jnp.asarray(right, jnp.float32)
    target = jnp.asarray(rng.normal(size=(8, 6)), jnp.float32)
    loss = lambda w: jnp.sum((left @ (w - target) @ right) ** 2)
    ours = optax.chain(scale_by_soap(), optax.scale(-1e-2))
    reached = minimize(loss, jnp.zeros((8, 6)), ours, 400)
    assert reached < 0.1 * minimize(loss, jnp.zeros((8, 6)), optax.adam(1e-2), 400)
    assert reached < 1e-3 * float(loss(jnp.zeros((8, 6))))


def test_zero_gradients_give_finite_nothing():
    zeros = {"kernel": jnp.zeros((3, 3, 2, 4)), "bias": jnp.zeros(4), "empty": jnp.zeros((3, 3, 0, 4))}
    found, state = run(scale_by_soap(every=2), [zeros] * 3)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(found))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))


def test_a_population_is_one_vmap(rng):
    gradients = jnp.asarray(rng.normal(size=(3, 12, 4, 2)), jnp.float32)  # [member, step, ...]
    transform = scale_by_soap(every=3)

    def of(sequence):
        def step(state, gradient):
            updates, state = transform.update(gradient, state)
            return state, updates

        return jax.lax.scan(step, transform.init(sequence[0]), sequence)[1]

    together, alone = jax.jit(jax.vmap(of))(gradients), jax.jit(of)
    for member in range(3):
        np.testing.assert_allclose(together[member], alone(gradients[member]), rtol=1e-3, atol=1e-3)


def test_bases_stay_orthogonal_and_turn_only_when_told(rng):
    transform = scale_by_soap(every=4)
    gradients = [jnp.asarray(rng.normal(size=(5, 3)), jnp.float32) for _ in range(8)]
    state, bases = transform.init(gradients[0]), []
    update = jax.jit(transform.update)
    for gradient in gradients:
        _, state = update(gradient, state)
        bases.append(np.asarray(state.leaves[0].row_basis))
    for basis in bases:
        np.testing.assert_allclose(basis.T @ basis, np.eye(5), atol=1e-5)
    turns = [not np.array_equal(a, b) for a, b in itertools.pairwise(bases)]
    assert turns == [False, False, False, True, False, False, False]


def test_recipe_warms_up_and_comes_to_rest():
    gradient = jnp.ones(3)
    optimizer = optax.with_extra_args_support(soap(0.5))
    sizes = []
    for progress in (0.0, 0.02, 0.5, 0.85, 0.999999):
        updates, _ = optimizer.update(gradient, optimizer.init(gradient), progress=progress)
        sizes.append(-float(jnp.asarray(updates)[0]))
    np.testing.assert_allclose(sizes, [0, 0.5, 0.5, 0.25, 0], atol=1e-3)
