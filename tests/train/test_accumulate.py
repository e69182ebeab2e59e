"""Accumulating: k gradients make the update of their mean, nothing moves between, and k follows the session."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskprune.train.optim import accumulate, doubling


def run(transform, gradients, progress=None):
    state, found = transform.init(gradients[0]), []
    update = jax.jit(transform.update)
    for number, gradient in enumerate(gradients):
        updates, state = update(gradient, state, progress=number / len(gradients) if progress is None else progress)
        found.append(np.asarray(updates))
    return np.stack(found)


@pytest.mark.parametrize("count", [1, 3])
def test_updates_are_those_of_the_means(rng, count):
    gradients = jnp.asarray(rng.normal(size=(12, 4)), jnp.float32)
    found = run(accumulate(optax.adam(0.1), lambda progress: jnp.int32(count)), gradients)
    means = jnp.mean(gradients.reshape(-1, count, 4), axis=1)
    wanted = run(optax.with_extra_args_support(optax.adam(0.1)), means)
    np.testing.assert_allclose(found[count - 1 :: count], wanted, rtol=1e-4, atol=1e-6)
    between = np.arange(12) % count != count - 1
    assert not np.any(found[between])


def test_batches_grow_with_the_session():
    found = run(accumulate(optax.sgd(1.0), doubling(2, start=0.5)), jnp.ones((16, 1)))
    assert np.flatnonzero(found).tolist() == [*range(9), 10, 12]  # 1 each, then 2; of the 4 after that only 3 come


def test_doubling_by_shares():
    progress = jnp.asarray([0.0, 0.5, 0.51, 0.66, 0.67, 0.83, 0.84, 0.999])
    assert jax.vmap(doubling(3))(progress).tolist() == [1, 1, 2, 2, 4, 4, 8, 8]


def test_members_wait_each_for_itself(rng):
    gradients = jnp.asarray(rng.normal(size=(2, 8, 3)), jnp.float32)  # [member, step, ...]
    transform = accumulate(optax.adam(0.1), lambda progress: jnp.where(progress > 0.5, 4, 1))

    def of(sequence, progress):
        def step(state, gradient):
            updates, state = transform.update(gradient, state, progress=progress)
            return state, updates

        return jax.lax.scan(step, transform.init(sequence[0]), sequence)[1]

    progress = jnp.asarray([0.0, 0.9])
    together = jax.jit(jax.vmap(of))(gradients, progress)
    for member in range(2):
        np.testing.assert_allclose(together[member], jax.jit(of)(gradients[member], progress[member]), rtol=1e-5)


@pytest.mark.parametrize(("times", "start", "words"), [(-1, 0.5, "`times` is -1"), (2, 1.0, "`start` is 1.0")])
def test_doubling_refuses_what_is_out_of_range(times, start, words):
    with pytest.raises(ValueError, match=words):
        doubling(times, start=start)
