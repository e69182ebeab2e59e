"""Optimizers that read parameters see effective ones, and those that want the loss are told it, in every form.

What a disabled mask stores changes no bit of how the others train; a line search sees the loss where nothing held has
moved. To check another optimizer, add a line.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from maskprune import (
    choose,
    disable,
    freeze,
    init_network,
    init_state,
    make_population,
    make_session,
    make_train_step,
    stack,
    trainable,
)
from maskprune.masks.groups import Group, Groups, Slice
from maskprune.train.objective import offers
from maskprune.train.optim import accumulate, land_on_average, levenberg, make_levenberg_step


RNG = np.random.default_rng(5)
SHAPES = {"bias": (2,), "first": (3, 4), "second": (4, 2)}
PARAMS = {name: jnp.asarray(RNG.normal(size=shape), jnp.float32) for name, shape in SHAPES.items()}
BATCH = tuple(jnp.asarray(RNG.normal(size=(6, size)), jnp.float32) for size in (3, 2))
MASKS = (Slice("first", 1, (0, 1, 2, 3), "out"), Slice("second", 0, (0, 1, 2, 3), "in"))
TWO = lambda progress: jnp.int32(2)
NORMALIZED = optax.chain(contrib.normalize(), optax.sgd(0.05))

READ_PARAMETERS = {
    "lamb": optax.lamb(1e-2, weight_decay=0.1),
    "adaptive clipping": optax.chain(optax.adaptive_grad_clip(0.01), optax.sgd(0.1)),
    "adafactor": optax.adafactor(min_dim_size_to_factor=2, weight_decay_rate=0.01),
    "block rms": optax.chain(optax.scale_by_param_block_rms(), optax.sgd(0.1)),
    "schedule-free": contrib.schedule_free_adamw(1e-2, weight_decay=0.1),
    "prodigy": contrib.prodigy(1.0, weight_decay=0.1),
    "muon": contrib.muon(1e-2, weight_decay=0.1),
    "on two batches": accumulate(optax.lamb(1e-2), TWO),
    "on the average": optax.chain(optax.sgd(0.1), land_on_average(0.0)),
}
WANT_THE_LOSS = {
    "plateau": optax.chain(optax.adam(1e-2), contrib.reduce_on_plateau(patience=1)),
    "polyak": optax.polyak_sgd(),
    "lbfgs": optax.lbfgs(),
    "decayed lbfgs": optax.chain(
        optax.scale_by_lbfgs(), optax.add_decayed_weights(0.1), optax.scale(-1.0), optax.scale_by_zoom_linesearch(8)
    ),
    "backtracking": optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(8, store_grad=True)),
    "sam": contrib.sam(optax.sgd(0.1), NORMALIZED),
    "opaque sam": contrib.sam(optax.sgd(0.1), NORMALIZED, opaque_mode=True),
    "sophia": contrib.sophia(1e-2, update_interval=2),
    "every second step": optax.MultiSteps(optax.polyak_sgd(), 2).gradient_transformation(),
    "where finite": optax.apply_if_finite(optax.polyak_sgd(), 2),
    "lbfgs on two batches": accumulate(optax.lbfgs(), TWO),
}
EVERY = READ_PARAMETERS | WANT_THE_LOSS


def apply(params, x):
    return jnp.tanh(x @ params["first"]) @ params["second"] + params["bias"][None]


def loss(params, batch):
    return jnp.mean((apply(params, batch[0]) - batch[1]) ** 2)


def network_of(stored=1.0, fixed=("bias",)):
    """Mask 1 disabled, with these numbers stored; mask 2 frozen; a leaf that never trains."""
    params = {
        **PARAMS,
        "first": PARAMS["first"].at[:, 1].set(stored),
        "second": PARAMS["second"].at[1].set(stored),
    }
    network = init_network(params, Groups((Group("g", 4, MASKS),)), fixed=fixed)
    network = disable(network, choose(network, {"g": [1]}))
    return freeze(network, choose(network, {"g": [2]}))


def leaves_where(network, flags):
    moved = zip(jax.tree.leaves(network.params), jax.tree.leaves(flags), strict=True)
    return [np.asarray(leaf)[np.broadcast_to(flag, leaf.shape)].tobytes() for leaf, flag in moved]


@pytest.mark.rotating
@pytest.mark.parametrize("optimizer", EVERY.values(), ids=EVERY.keys())
def test_what_disabled_masks_store_changes_nothing(optimizer):
    step = make_train_step(loss, optimizer)

    @jax.jit
    def train(state):
        return jax.lax.scan(lambda state, _: step(state, BATCH), state, length=4)

    ends = []
    for stored in (1.0, 100.0, jnp.nan, jnp.inf, 1e30):
        network = network_of(stored)
        after, info = train(init_state(network, optimizer))
        moves = trainable(network)
        assert np.all(info.finite)
        assert leaves_where(after.network, jax.tree.map(jnp.invert, moves)) == leaves_where(
            network, jax.tree.map(jnp.invert, moves)
        )
        memory = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(after.opt_state)]
        ends.append((info.loss.tolist(), leaves_where(after.network, moves), memory))
    assert all(end == ends[0] for end in ends[1:])
    assert ends[0][1] != leaves_where(network_of(), trainable(network_of()))
    assert train._cache_size() == 1


def test_a_line_search_is_told_what_the_step_does():
    """The loss it has found is that of the next step, though decay pulls at what is frozen."""
    optimizer = WANT_THE_LOSS["decayed lbfgs"]
    step, state = jax.jit(make_train_step(loss, optimizer)), init_state(network_of(), optimizer)
    losses = []
    for _ in range(4):
        foretold = float(optax.tree.get(state.opt_state, "value"))
        state, info = step(state, BATCH)
        losses.append(float(info.loss))
        assert np.isinf(foretold) or foretold == pytest.approx(losses[-1], rel=1e-5)
    assert losses[-1] < 0.8 * losses[0]


def witness():
    """An optimizer that goes down the gradient, and keeps by how much what it was told disagrees."""

    def update(updates, state, params, *, value, grad, value_fn, grad_fn, obj_fn, **extra_args):
        apart = jax.tree.map(lambda one, two: jnp.max(jnp.abs(one - two)), grad, grad_fn(params, 0))
        apart = jnp.stack([value_fn(params) - value, obj_fn(params) - value, *jax.tree.leaves(apart)])
        return jax.tree.map(lambda g: -0.1 * g, grad), jnp.maximum(state, jnp.max(jnp.abs(apart)))

    return optax.GradientTransformationExtraArgs(lambda params: jnp.zeros(()), update)


def noisy(params, batch, model_state, key):
    kept = jax.random.bernoulli(key, 0.7, batch[0].shape)
    return loss(params, (batch[0] * kept, batch[1])) + model_state, model_state + 1.0


def drawn(key, data):
    rows = jax.random.randint(key, (4,), 0, 6)
    return data[0][rows], data[1][rows]


def test_sessions_and_populations_tell_the_loss_of_the_very_step(key):
    """Same batch, same noise, same model state; nothing of it is kept twice."""
    optimizer = witness()
    step, start = make_train_step(noisy, optimizer, stateful=True), init_state(network_of(), optimizer, 0.0)
    session, population = (make(step, drawn, chunk=4) for make in (make_session, make_population))
    after, report = session.run(key, start, BATCH, 4)
    assert float(after.opt_state[1].inner_state) < 1e-5 and float(after.model_state) == 4
    states, found = population.run(jnp.stack([key, key]), stack([start, start]), BATCH, 4)
    np.testing.assert_allclose(found.losses, np.stack([report.losses] * 2), rtol=1e-5)
    assert np.all(states.opt_state[1].inner_state < 1e-5)
    assert session.compilations() == population.compilations() == 1


def test_levenberg_tells_the_loss_too():
    optimizer = optax.chain(levenberg(), witness())
    step = make_levenberg_step(lambda params, batch: (apply(params, batch[0]) - batch[1]).ravel(), optimizer)
    state, _ = jax.jit(step)(init_state(network_of(), optimizer), BATCH)
    assert float(state.opt_state[1].inner_state[1]) < 1e-5


def test_accumulated_losses_are_means(key):
    """The loss handed on is the mean over the batches, and the function is shifted to it."""

    def update(updates, state, params, *, value, value_fn, **extra_args):
        return updates, jnp.stack([value, value_fn(params)])

    recorder = optax.GradientTransformationExtraArgs(lambda params: jnp.zeros(2), update)
    optimizer = accumulate(recorder, TWO)
    step, state = jax.jit(make_train_step(loss, optimizer)), init_state(network_of(), optimizer)
    batches = [drawn(each, BATCH) for each in jax.random.split(key, 2)]
    losses = []
    for batch in batches:
        state, info = step(state, batch)
        losses.append(float(info.loss))
    assert losses[0] != losses[1]
    np.testing.assert_allclose(state.opt_state[1].inner_state.inner, np.mean(losses), rtol=1e-6)


def test_the_loss_elsewhere_is_that_of_a_step(key):
    """Held entries do not move, leaves that are hidden stay, and half precision stays so."""
    params = {"a": jnp.ones(3, jnp.float16), "b": jnp.full(2, 2.0), "c": jnp.full((), 3.0)}
    moves = {"a": jnp.array([True, False, True]), "b": True, "c": True}

    def total(params):
        assert params["a"].dtype == jnp.float16
        return sum(jnp.sum(leaf.astype(jnp.float32)) for leaf in params.values())

    told = offers(total, total(params), params, params, moves)
    given = {"a": jnp.full(3, 5.0), "b": optax.MaskedNode(), "c": jnp.full((), 7.0)}
    assert float(told["value_fn"](given)) == 5 + 1 + 5 + 2 + 2 + 7
    slopes = told["grad_fn"](given, 0)
    assert slopes["a"].tolist() == [1, 0, 1] and float(slopes["c"]) == 1 and slopes["b"] == optax.MaskedNode()


def on_the_host():
    def update(updates, state, params):
        return jax.tree.map(lambda u: u * (1.0 if float(jnp.sum(u)) > 0 else 0.5), updates), state

    return optax.GradientTransformation(optax.init_empty_state, update)


REFUSED = {
    "inside a chain": (optax.chain(optax.clip(1.0), contrib.sam(optax.sgd(0.1), NORMALIZED)), r"\*\*extra_args"),
    "two sets": (optax.lookahead(optax.sgd(0.1), 2, 0.5), "any pytree"),
    "example by example": (
        contrib.differentially_private_aggregate(1.0, 0.1, key=jax.random.key(0)),
        "batch dimension",
    ),
    "half a leaf": (optax.stateless(lambda updates, params: jax.tree.map(lambda u: u[:1], updates)), "of the shapes"),
    "on the host": (on_the_host(), "numbers on the host"),
    "more than there is": (
        optax.GradientTransformationExtraArgs(
            optax.init_empty_state, lambda updates, state, params, *, curvature, **extra_args: (updates, state)
        ),
        "wants more than.*'curvature'",
    ),
    "a line search for some leaves": (
        optax.partition({"x": optax.lbfgs(), "y": optax.sgd(0.1)}, {"bias": "x", "first": "x", "second": "y"}),
        "mask_compatible_extra_args=True",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_says_so(name):
    optimizer, words = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=f"(?s)^`optimizer` cannot take this step: .*{words}"):
        jax.jit(make_train_step(loss, optimizer))(init_state(network_of(fixed=()), optimizer), BATCH)


def test_typed_keys_in_the_memory_of_an_optimizer():
    optimizer = optax.chain(optax.sgd(0.1), optax.add_noise(0.1, 0.5, jax.random.key(1)))
    state = init_state(network_of(), optimizer)
    after, info = jax.jit(make_train_step(loss, optimizer))(state, BATCH)
    assert bool(info.finite) and dataclasses.replace(after, opt_state=None).step == 1
