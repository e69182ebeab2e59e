"""Holding a mask holds its running statistics, and training normalizes its channels by them."""

import functools
import warnings

import equinox as eqx
import haiku as hk
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
import maskprune.haiku
import maskprune.linen
import maskprune.nnx
from maskprune.masks.groups import leaves_by_path


WIDTH = 6
FROZEN, DISABLED = [0, 2], [5]
HELD = np.isin(np.arange(WIDTH), FROZEN + DISABLED)
IDENTITY = jnp.eye(WIDTH)
X = pictures(1, 8, 4, 3) + 1


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


def haiku_forward(x, is_training, axis=-1, times=1):
    norm = hk.BatchNorm(axis == -1, True, 0.7, data_format="channels_last" if axis == -1 else "channels_first")
    x = jnp.moveaxis(hk.Linear(WIDTH)(x), -1, axis)
    for _ in range(times):
        x = norm(x, is_training) + 1
    return hk.Linear(WIDTH, w_init=lambda *_: IDENTITY)(jnp.moveaxis(x, axis, -1))


def of_haiku(**options):
    network = hk.without_apply_rng(hk.transform_with_state(functools.partial(haiku_forward, **options)))
    run = maskprune.haiku.training(network, settings={"is_training": True})
    x = pictures(3, 8, 4, 3)
    params, state = jax.jit(functools.partial(network.init, is_training=True))(jax.random.key(0), x)
    return lambda *given: network.apply(*given, is_training=False)[0], params, run(params, state, x)[1], run


NETWORKS = {
    "haiku": lambda: of_haiku(),
    "haiku first axis": lambda: of_haiku(axis=1),
    "haiku shared": lambda: of_haiku(times=2),
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


# The others differ in details only, and compile as long.
QUICK = ("haiku", "equinox batch", "nnx", "nnx own", "nnx shared", "linen first axis", "linen shared")


@pytest.mark.rotating
@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS])
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
    along = lambda leaf: np.asarray(leaf).reshape(-1, WIDTH)  # statistics may have other axes of size 1
    before, now = (leaves_by_path(each) for each in (state, both(after)[0].model_state["net"]))
    for path in {piece.leaf for group in network.groups for piece in group.with_role("state")}:
        leaf, old = along(now[path]), along(before[path])
        np.testing.assert_array_equal(leaf[:, HELD], old[:, HELD])
        assert np.all(leaf[:, ~HELD] != old[:, ~HELD])


@functools.cache
def parts():
    """A network with one batch norm: function, parameters, state, training function, groups."""
    apply, params, state, run = of_nnx(nnx_norm())
    return apply, params, state, run, mp.trace(apply, params, X, model_state=state)


def moved(network, loss, state=None):
    """Which leaves of the model state move, entry by entry, in a step."""
    state = parts()[2] if state is None else state
    start = mp.init_state(network, optax.sgd(0.1), state)
    after, _ = jax.jit(mp.make_train_step(loss, optax.sgd(0.1), stateful=True))(start, X)
    before, now = (leaves_by_path(each) for each in (state, after.model_state))
    return {path: np.asarray(now[path] != before[path]) for path in now}


def adapted(params, batch, state, key):
    out, state = parts()[3](params, state, batch)
    return jnp.mean(out**2), state


@pytest.mark.parametrize(
    ("leaves", "held"),
    [
        ("b/*", {"b/mean", "b/var"}),
        (["*/scale", "b/bias"], {"b/mean", "b/var"}),  # all parameters of the layer
        (["c/*", "b/scale", "b/mean"], {"b/mean"}),
    ],
)
def test_whole_leaves_hold_the_statistics_of_their_layers(leaves, held):
    _, params, _, _, groups = parts()
    network = mp.freeze(mp.init_network(params, groups), leaves=leaves)
    assert network.fixed == mp.init_network(params, groups, fixed=leaves).fixed
    assert {path for path, each in moved(network, adapted).items() if not each.any()} == held
    assert mp.thaw(network, leaves=leaves).fixed == ()


def test_whole_leaves_are_frozen_and_thawed_by_patterns():
    _, params, _, _, groups = parts()
    network = mp.init_network(params, groups)
    some = mp.freeze(network, mp.choose(network, {"c": [1]}), leaves=["c/*", "b/*"])
    assert some.fixed == ("b/bias", "b/scale", "c/bias", "c/kernel", "b/mean", "b/var") and some.frozen["c"][1]
    rest = mp.thaw(some, leaves="b/*")
    assert rest.fixed == ("c/bias", "c/kernel") and rest.frozen["c"][1]
    assert mp.thaw(some, mp.choose(network, {"c": [1]})).fixed == some.fixed
    with pytest.raises(ValueError, match=r"`leaves` holds `e/\*`, which matches no leaf. The leaves are .*b/mean"):
        mp.freeze(network, leaves="e/*")
    with pytest.raises(ValueError, match="`chosen` and `leaves` are missing"):
        mp.thaw(network)


def test_the_collection_of_a_linen_state_need_not_be_named():
    apply, params, state, run = of_linen(LinenNormed({"use_bias": False, "use_scale": False}))
    groups = mp.trace(apply, params, X, model_state=state)
    network = mp.init_network(params, groups, fixed="b/*")
    assert network.fixed == ("batch_stats/b/mean", "batch_stats/b/var")

    def loss(params, batch, state, key):
        out, state = run(params, state, batch)
        return jnp.mean(out**2), state

    assert not any(each.any() for each in moved(network, loss, state).values())


def by_hand(params, batch, state, key, *, select=mp.select_statistics):
    """The same network without an adapter."""
    x = batch @ params["c"]["kernel"] + params["c"]["bias"].reshape(1, 1, -1)
    found = {"mean": x.mean((0, 1)), "var": x.var((0, 1))}
    new = {name: 0.7 * state["b"][name] + 0.3 * found[name] for name in found}
    used = select(state["b"], found)
    row = lambda leaf: leaf.reshape(1, 1, -1)
    x = (x - row(used["mean"])) * jax.lax.rsqrt(row(used["var"]) + 1e-5) * row(params["b"]["scale"])
    out = (x + row(params["b"]["bias"])) @ params["d"]["kernel"] + row(params["d"]["bias"])
    return jnp.mean(out**2), {"b": new}


def test_a_layer_by_hand_learns_what_the_adapter_learns():
    _, params, state, _, groups = parts()
    network = mp.init_network(params, groups)
    network = mp.freeze(network, mp.choose(network, {"c": FROZEN}))
    start = mp.init_state(network, optax.sgd(0.1), state)
    one, other = (
        jax.jit(mp.make_train_step(loss, optax.sgd(0.1), stateful=True))(start, X)[0] for loss in (adapted, by_hand)
    )
    found, expected = (leaves_by_path((each.network.params, each.model_state)) for each in (one, other))
    for path, leaf in found.items():
        np.testing.assert_allclose(leaf, expected[path], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(one.model_state["b"]["mean"][np.asarray(FROZEN)], 0.0)


def test_a_loss_that_does_not_say_what_it_holds_is_told_but_its_state_is_held():
    _, params, _, _, groups = parts()
    network = mp.init_network(params, groups)
    network = mp.freeze(network, mp.choose(network, {"c": FROZEN}))
    blind = functools.partial(by_hand, select=lambda state, found: found)
    mixed = lambda *given: (adapted(*given)[0], jax.tree.map(jnp.add, given[2], {"b": {"mean": 1.0, "var": 1.0}}))
    for loss in (blind, mixed):
        with pytest.warns(UserWarning, match=r"`b/mean`, `b/var`.*select_statistics"):
            found = moved(network, loss)
        assert not found["b/mean"][FROZEN].any() and found["b/mean"][[1, 3, 4]].all()
    with pytest.warns(UserWarning, match="lacks `b/mean`"):
        moved(
            network, lambda params, batch, state, key: (by_hand(params, batch, parts()[2], key)[0], state), {"n": 1.0}
        )
    with pytest.raises(ValueError, match="without `b/var`"):
        moved(network, lambda *given: (adapted(*given)[0], {"b": {"mean": jnp.zeros(WIDTH)}}))


def test_a_loop_in_the_loss_carries_the_state():
    _, params, _, run, groups = parts()
    network = mp.init_network(params, groups)
    network = mp.freeze(network, mp.choose(network, {"c": FROZEN}))

    def loss(params, batch, state, key):
        part = lambda state, x: tuple(reversed(jax.checkpoint(run)(params, state, x)))
        state, out = jax.lax.scan(part, state, batch.reshape(4, 2, 4, 3))
        return jnp.mean(out**2), state

    found = moved(network, loss)
    assert not found["b/var"][FROZEN].any() and found["b/var"][[1, 3, 4, 5]].all()


def test_other_masks_compile_nothing_anew():
    _, params, state, _, groups = parts()
    start = mp.init_network(params, groups)
    step = mp.make_train_step(adapted, optax.sgd(0.1), stateful=True)
    session = mp.make_session(step, lambda key, data: data, chunk=2)
    for masks in ([], [1], [2, 3]):
        network = mp.freeze(start, mp.choose(start, {"c": masks}))
        after, _ = session.run(jax.random.key(0), mp.init_state(network, optax.sgd(0.1), state), X, 2)
        assert np.flatnonzero(after.model_state["b"]["mean"] == state["b"]["mean"]).tolist() == masks
        assert type(after.model_state["b"]) is dict
    assert session.compilations() == 1


def test_a_layer_keeps_the_mode_that_the_user_gave_it():
    module = nnx.Sequential(nnx.BatchNorm(3, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(0)))
    module.layers[0].use_running_average = True
    _, params, state = maskprune.nnx.from_module(module)
    out, new = maskprune.nnx.training(module)(params, state, jnp.ones((8, 3)), key=jax.random.key(0))
    assert set(np.unique(np.round(out, 3)).tolist()) == {0.0, 2.0}  # dropout is at work, the norm is not
    np.testing.assert_array_equal(new["layers"][0]["mean"], 0.0)
    module.eval()
    with pytest.warns(UserWarning, match="All layers of the Sequential stand in evaluation mode"):
        maskprune.nnx.training(module)
