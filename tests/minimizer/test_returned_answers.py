"""What functions of the user's give back: taken where it can be, and else refused by the name of the function."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskprune import select, strategies
from maskprune.lab.worth import worth
from maskprune.masks.groups import Group, Groups, Slice
from maskprune.masks.network import count_enabled, init_network
from maskprune.minimizer.answers import Memory
from maskprune.minimizer.loop import Limits, Rules, minimize
from maskprune.train import curvature
from maskprune.train.first_session import train_start
from maskprune.train.halving import trained
from maskprune.train.session import SessionReport, make_session
from maskprune.train.step import init_state, make_train_step


OPTIMIZER = optax.sgd(0.1)
GROUPS = Groups((Group("g", 3, (Slice("w", 0, (0, 1, 2), "out"),)),))
REPORT = SessionReport(np.zeros(4, np.float32), True, "", 0.0)
SEVERAL = (None, 3, "text", [1.0], (1, 2, 3), object())


def start():
    return init_state(init_network({"w": np.ones(3, np.float32)}, GROUPS), OPTIMIZER)


def run(*, train=lambda key, state: (state, REPORT), evaluate=lambda state: {"score": 1.0}, **rest):
    settings = {"optimizer": OPTIMIZER, "selector": select.sequential(), "limits": Limits(rounds=1)} | rest
    return list(minimize(jax.random.key(0), start(), train=train, evaluate=evaluate, **settings))


def proposing(*answers):
    def plan(view):
        yield from answers

    return plan


@pytest.mark.parametrize("losses", [[0.5, 0.25], np.ones(2), jnp.ones(2), [jnp.float32(1), 2], (1, 2)])
def test_losses_stand_for_a_report(losses):
    rounds = run(train=lambda key, state: (state, losses))
    assert [row.steps for row in rounds] == [0, 2] and rounds[1].accepted
    failed = run(train=lambda key, state: (state, [1.0, np.nan]))
    assert failed[1].reason == "training failed: a loss was not finite"
    assert run(train=lambda key, state: [state, []])[1].steps == 0


@pytest.mark.parametrize("score", [np.float32(1), np.float64(1), np.array(1), jnp.float32(1), jnp.bfloat16(1), 1])
def test_any_real_number_is_a_score(score):
    assert run(evaluate=lambda state: {"score": score})[0].score == 1.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        *[({"train": lambda key, state, answer=each: answer}, "`train` returned") for each in SEVERAL],
        ({"train": lambda key, state: state}, "`train` returned a TrainState: .*`SessionReport`.* losses"),
        ({"train": lambda key, state: (state.network, REPORT)}, "`train` returned a Network: .*`TrainState`"),
        ({"train": lambda key, state: (state, 0.5)}, "`train` returned a tuple of"),
        ({"train": lambda key, state: (state, {"loss": 1})}, "`train` returned a tuple of"),
        ({"train": lambda key, state: (state, [[0.5]])}, "`train` returned a tuple of"),
        *[({"evaluate": lambda state, answer=each: answer}, "`evaluate` returned") for each in (*SEVERAL, {})],
        *[({"evaluate": lambda state, answer=each: {"score": answer}}, '"score"') for each in (*SEVERAL[2:], 1j, True)],
        ({"evaluate": lambda state: {"accuracy": 0.5}}, "`evaluate` returned {'accuracy': 0.5}: .*\"score\""),
        *[({"selector": lambda key, net, batch, answer=each: answer}, "`selector` returned") for each in SEVERAL],
        ({"selector": lambda key, net, batch: {"g": ["a"] * 3}}, "`selector` returned an? .*array.*`g`"),
        ({"selector": lambda key, net, batch: {"g": [1j] * 3}}, "`selector` returned an? .*array.*`g`"),
        ({"selector": select.reverse(lambda key, net, batch: [1])}, "`selector` returned"),
        ({"selector": select.ensemble([lambda key, net, batch: 1])}, "`selector` returned 1"),
        ({"selector": select.activation(lambda params, batch: 5)}, "`activations` returned 5"),
        *[({"plan": lambda view, answer=each: answer}, "`plan` returned") for each in SEVERAL],
        *[
            ({"plan": proposing(each)}, "`plan` returned .*`Proposal`")
            for each in (*SEVERAL, strategies.Proposal([], 0))
        ],
        *[({"remove": lambda net, chosen, batch, answer=each: answer}, "`remove` returned") for each in SEVERAL],
        ({"train_many": lambda keys, states, share: []}, "`train_many` returned .* each of 1 states"),
        ({"train_many": lambda keys, states, share: states}, "`train_many` returned a TrainState"),
        ({"train_many": lambda keys, states, share: None}, "`train_many` returned nothing"),
    ],
)
def test_what_a_search_cannot_take_is_refused_by_name(options, words):
    with pytest.raises(TypeError, match=words):
        run(**options)


def test_the_control_is_taken_alike():
    calls = iter([(start(), REPORT), None])
    with pytest.raises(TypeError, match="`train` returned nothing"):
        run(train=lambda key, state: next(calls), rules=Rules(control=True))


def test_a_plan_that_says_nothing_ends_the_search():
    assert run(plan=proposing())[-1].stop == "the plan has ended"


def test_a_state_with_other_masks_is_none_of_a_session():
    other = Groups((Group("h", 3, (Slice("w", 0, (0, 1, 2), "out"),)),))
    state = init_state(init_network({"w": np.ones(3, np.float32)}, other), OPTIMIZER)
    with pytest.raises(TypeError, match="other groups"):
        trained((state, REPORT), start())


@pytest.mark.parametrize(
    ("draw", "train", "trouble", "name"),
    [
        (lambda key: None, None, None, "draw"),
        (lambda key: start(), lambda key, state, share: state, None, "train"),
        (lambda key: start(), lambda key, state, share: (state, REPORT), lambda state: True, "trouble"),
    ],
)
def test_starts_are_taken_alike(key, draw, train, trouble, name):
    with pytest.raises(TypeError, match=f"`{name}` returned"):
        train_start(key, draw, train or (lambda *_: None), trouble=trouble or (lambda state: ""))


def test_the_WORTH_a_mask_is_taken_alike(key):
    chosen = {"g": np.array([True, False, False])}
    options = {"train": lambda key, state: (state, []), "evaluate": lambda state: 1.0, "optimizer": OPTIMIZER}
    with pytest.raises(TypeError, match="`evaluate` returned 1"):
        worth(key, start(), chosen, alteration=lambda network, chosen: network, **options)
    with pytest.raises(TypeError, match="`alteration` returned nothing"):
        worth(key, start(), chosen, alteration=lambda network, chosen: None, **options)


LOSSES = [
    lambda params, batch: params["w"],
    lambda params, batch: params["w"].sum(keepdims=True),
    lambda params, batch: jnp.sum(params["w"]).astype(jnp.int32),
    lambda params, batch: jnp.sum(params["w"]) + 1j,
    lambda params, batch: (jnp.sum(params["w"]), {}),
    lambda params, batch: {"loss": jnp.sum(params["w"])},
    lambda params, batch: None,
    lambda params, batch: "text",
]


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_is_one_real_number(key, loss):
    state = start()
    with pytest.raises(TypeError, match=r"`loss` returned .*one number"):
        make_train_step(loss, OPTIMIZER)(state, None)
    with pytest.raises(TypeError, match=r"`loss` returned .*one number"):
        curvature.hessian(loss, state.network, None)
    for selector in (select.ablation(loss), select.taylor(loss), select.fisher(loss)):
        with pytest.raises(TypeError, match=r"`loss` returned .*one number"):
            selector(key, state.network, np.ones(2))


@pytest.mark.parametrize(
    "after",
    [lambda value, old: value, lambda value, old: (value, None), lambda value, old: (value, {**old, "n": old["m"]}),
     lambda value, old: (value, {"m": old["m"][None]}), lambda value, old: (old, value)],
)  # fmt: skip
def test_a_stateful_loss_gives_the_state_back(after):
    state = dataclasses.replace(start(), model_state={"m": jnp.zeros(2)})
    loss = lambda params, batch, model_state, key: after(jnp.sum(params["w"]), model_state)
    with pytest.raises(TypeError, match="`loss` returned"):
        make_train_step(loss, OPTIMIZER, stateful=True)(state, None)


def test_a_session_keeps_the_form_of_a_state_and_knows_its_watch(key):
    state = dataclasses.replace(start(), model_state=jnp.zeros(2))
    loss = lambda params, batch, model_state, key: (jnp.sum(params["w"]), model_state.astype(jnp.float16))
    with pytest.raises(TypeError, match=r"`step` returned .*model_state` is float32\[2\]"):
        make_session(make_train_step(loss, OPTIMIZER, stateful=True), lambda key, data: None).run(key, state, None, 1)
    session = make_session(make_train_step(lambda params, batch: jnp.sum(params["w"]), OPTIMIZER), lambda *_: None)
    assert session.run(key, start(), None, 1, watch=lambda state, losses: None)[1].stopped == ""
    with pytest.raises(TypeError, match="`watch` returned True"):
        session.run(key, start(), None, 1, watch=lambda state, losses: True)


# Memory


def counting(calls):
    def train(key, state):
        calls.append(key)
        moved = jax.tree.map(lambda leaf: np.asarray(leaf, float) + 1.0, state.network.params)  # a NumPy loop
        return dataclasses.replace(state, network=dataclasses.replace(state.network, params=moved)), [0.5, 0.25]

    return train


def test_a_loop_of_ones_own_is_remembered(key, tmp_path):
    calls, told = [], []
    for _ in range(2):
        with Memory.open(tmp_path, {"config": 1}, say=pytest.fail) as memory:
            long, short = (memory.training(name, counting(calls)) for name in ("long", "short"))
            told.append([long(key, start()), short(key, start()), short(jax.random.fold_in(key, 1), start())])
    assert len(calls) == 3
    for (one, report), (other, again) in zip(*told, strict=True):
        assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all() and a.dtype == b.dtype, one, other))
        assert report.losses.tolist() == again.losses.tolist() == [0.5, 0.25] and again.finite


def test_a_search_with_a_loop_of_ones_own_goes_on(tmp_path):
    calls, ends = [], []
    for rounds in (1, 2):
        with Memory.open(tmp_path, {"config": 1}, say=pytest.fail) as memory:
            ends.append(run(train=memory.training("train", counting(calls)), limits=Limits(rounds=rounds))[-1])
    assert len(calls) == 2 and count_enabled(ends[-1].state.network) == {"g": 1}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((1, 2), "`train` returned .*`Memory.training`"),
        ({"score": object()}, "'score'"),
        ({"score": 1j}, "'score'"),
    ],
)
def test_what_a_memory_cannot_keep_is_refused_by_name(tmp_path, answer, words):
    with Memory.open(tmp_path, {"config": 1}) as memory, pytest.raises(TypeError, match=words):
        memory.recalling("train", lambda state: answer)(1)


def test_a_memory_keeps_numbers_of_every_kind(tmp_path):
    found = {"a": 1, "b": np.float32(0.1), "c": jnp.bfloat16(0.5), "d": np.arange(3), "e": None, "f": "text"}
    for _ in range(2):
        with Memory.open(tmp_path, {"config": 1}) as memory:
            told = memory.recalling("evaluate", lambda state: found)(1)
            assert told["c"] == 0.5 and told["d"].tolist() == [0, 1, 2] and told["e"] is None and told["f"] == "text"


def test_a_loop_that_changes_the_form_of_a_state_is_refused(key, tmp_path):
    train = lambda key, state: (dataclasses.replace(state, opt_state=()), [0.5])
    with Memory.open(tmp_path, {"config": 1}) as memory, pytest.raises(TypeError, match=r"`train` returned .*form"):
        memory.training("train", train)(key, dataclasses.replace(start(), opt_state={"m": jnp.zeros(3)}))
