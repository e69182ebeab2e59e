"""Holding a mask holds its running statistics, and training normalizes its channels by them."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from zoo.entry import pictures

import maskprune as mp
import maskprune.equinox
import maskprune.linen
import maskprune.nnx


WIDTH = 6
FROZEN, DISABLED = [0, 2], [5]
HELD = np.isin(np.arange(WIDTH), FROZEN + DISABLED)
IDENTITY = jnp.eye(WIDTH)


class Normed(nnx.Module):
    """A dense layer, a norm, and a dense layer that hands the normed channels out as they are."""

    def __init__(self, rngs, norm, axis=-1):
        self.c, self.b, self.d = nnx.Linear(3, WIDTH, rngs=rngs), norm(rngs), nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.d.kernel[...], self.axis = IDENTITY, axis

    def __call__(self, x):
        h = self.b(jnp.moveaxis(self.c(x), -1, self.axis))
        return self.d(jnp.moveaxis(h, self.axis, -1))


class Own(nnx.Module):
    """Batch norm by a user, with the flag that Flax's `train` and `eval` set."""

    def __init__(self, rngs):
        self.mean, self.use_running_average = nnx.BatchStat(jnp.full(WIDTH, 0.3)), False

    def __call__(self, x):
        mean = self.mean[...]
        if not self.use_running_average:
            mean = x.mean(tuple(range(x.ndim - 1)))
            self.mean[...] = 0.5 * self.mean[...] + 0.5 * mean
        return x - mean.reshape((1,) * (x.ndim - 1) + (-1,))


class Twice(nnx.Module):
    """One norm under two names, in a list."""

    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(WIDTH, momentum=0.8, rngs=rngs)
        self.again = nnx.List([self.norm])

    def __call__(self, x):
        return self.again[0](self.norm(x) + 1)


class Stacked(nnx.Module):
    """Two norms stacked by `vmap`, run by a scan whose body is computed again for the gradient."""

    def __init__(self, rngs):
        make = nnx.vmap(lambda rngs: nnx.BatchNorm(WIDTH, momentum=0.8, rngs=rngs), in_axes=0, out_axes=0)
        self.norms = make(rngs.split(2))

    def __call__(self, x):
        run = nnx.scan(nnx.remat(lambda x, norm: norm(x) * 2), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return run(x, self.norms)


def nnx_norm(**options):
    return lambda rngs: nnx.BatchNorm(WIDTH, momentum=0.7, rngs=rngs, **options)


class LinenNormed(nn.Module):
    norm: dict
    axis: int = -1

    @nn.compact
    def __call__(self, x, train=True):
        x = jnp.moveaxis(nn.Dense(WIDTH, name="c")(x), -1, self.axis)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.7, axis=self.axis, name="b", **self.norm)(x)
        identity = lambda *_: IDENTITY
        return nn.Dense(WIDTH, kernel_init=identity, name="d")(jnp.moveaxis(x, self.axis, -1))


class LinenTwice(nn.Module):
    """One norm used twice."""

    @nn.compact
    def __call__(self, x, train=True):
        norm = nn.BatchNorm(use_running_average=not train, momentum=0.8)
        x = norm(norm(nn.Dense(WIDTH)(x)) + 1)
        return nn.Dense(WIDTH, kernel_init=lambda *_: IDENTITY)(x)


class LinenBlock(nn.Module):
    train: bool

    @nn.compact
    def __call__(self, x, _):
        return nn.BatchNorm(use_running_average=not self.train, momentum=0.8)(x) * 2, None


class LinenStacked(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        x = nn.Dense(WIDTH)(x)
        axes = {"variable_axes": {"params": 0, "batch_stats": 0}, "split_rngs": {"params": True}}
        x, _ = nn.scan(nn.remat(LinenBlock), length=2, **axes)(train, name="blocks")(x, None)
        return nn.Dense(WIDTH, kernel_init=lambda *_: IDENTITY)(x)


def of_nnx(norm, axis=-1):
    module = Normed(nnx.Rngs(0), norm, axis)
    return (*maskprune.nnx.from_module(module), maskprune.nnx.training(module))


def of_linen(module):
    variables = module.init(jax.random.key(0), pictures(0, 2, 4, 3))
    evaluated = maskprune.linen.from_module(module, variables, settings={"train": False})
    return (*evaluated, maskprune.linen.training(module, settings={"train": True}))


class EquinoxNormed(eqx.Module):
    c: eqx.nn.Linear
    b: eqx.nn.BatchNorm
    d: eqx.nn.Linear

    def __init__(self, mode):
        keys = jax.random.split(jax.random.key(0))
        self.c, self.d = eqx.nn.Linear(3, WIDTH, key=keys[0]), eqx.nn.Linear(WIDTH, WIDTH, False, key=keys[1])
        self.b = eqx.nn.BatchNorm(WIDTH, "batch", mode=mode, momentum=0.7)
        self.d = eqx.tree_at(lambda layer: layer.weight, self.d, IDENTITY)

    def __call__(self, x, state):
        x, state = self.b(jax.vmap(self.c, 0, 1)(x), state)
        return jax.vmap(self.d, 1, 0)(x), state


def of_equinox(mode):
    module, state = eqx.nn.make_with_state(EquinoxNormed)(mode)
    apply, params, state = maskprune.equinox.from_module(module, state)
    run = maskprune.equinox.training(*eqx.nn.make_with_state(EquinoxNormed)(mode))
    return apply, params, run(params, state, pictures(3, 8, 4, 3))[1], run


NETWORKS = {
    "equinox batch": lambda: of_equinox("batch"),
    "equinox ema": lambda: of_equinox("ema"),
    "nnx": lambda: of_nnx(nnx_norm()),
    "nnx first axis": lambda: of_nnx(nnx_norm(axis=1), 1),
    "nnx without parameters": lambda: of_nnx(nnx_norm(use_bias=False, use_scale=False, use_fast_variance=False)),
    "nnx own": lambda: of_nnx(Own),
    "nnx shared": lambda: of_nnx(Twice),
    "nnx stacked": lambda: of_nnx(Stacked),
    "linen": lambda: of_linen(LinenNormed({})),
    "linen first axis": lambda: of_linen(LinenNormed({}, axis=1)),
    "linen without parameters": lambda: of_linen(LinenNormed({"use_bias": False, "use_scale": False})),
    "linen shared": lambda: of_linen(LinenTwice()),
    "linen stacked": lambda: of_linen(LinenStacked()),
}


def held_network(apply, params, state, x):
    """The network with masks of its normed layer frozen and disabled."""
    network = mp.init_network(params, mp.trace(apply, params, x, model_state=state))
    (name,) = [group.name for group in network.groups if group.with_role("state")]
    network = mp.freeze(network, mp.choose(network, {name: FROZEN}))
    return mp.disable(network, mp.choose(network, {name: DISABLED}))


def loss_on(run):
    """A loss that keeps the outputs beside the state of the network."""

    def loss(params, batch, state, key):
        out, net = run(params, state["net"], batch)
        return jnp.mean((out - 1) ** 2), {"net": net, "out": out}

    return loss


@pytest.fixture(autouse=True)
def without_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


@pytest.mark.parametrize("name", NETWORKS)
def test_held_channels_keep_their_statistics_and_are_normalized_by_them(name):
    apply, params, state, run = NETWORKS[name]()
    x = pictures(1, 8, 4, 3) + 1
    network = held_network(apply, params, state, x)
    optimizer = optax.sgd(0.1)
    step = mp.make_train_step(loss_on(jax.jit(run)), optimizer, stateful=True)  # with a user's own `jit` inside
    start = mp.init_state(network, optimizer, {"net": state, "out": jnp.zeros((*x.shape[:-1], WIDTH))})
    effective = mp.effective_params(network)
    both = jax.jit(lambda start: (step(start, x)[0], apply(effective, state, x), run(effective, state, x)[0]))
    after, stored, batch = both(start)
    out = after.model_state["out"]
    np.testing.assert_allclose(out[..., HELD], stored[..., HELD], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out[..., ~HELD], batch[..., ~HELD], rtol=1e-5, atol=1e-5)
    assert np.abs(stored - batch).max() > 0.1
    before, now = (mp.groups.leaves_by_path(each) for each in (state, both(after)[0].model_state["net"]))
    for path, leaf in ((path, leaf) for path, leaf in now.items() if leaf.ndim):
        np.testing.assert_array_equal(leaf[..., HELD], before[path][..., HELD])
        assert np.all(leaf[..., ~HELD] != before[path][..., ~HELD])
