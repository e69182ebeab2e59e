"""Plans on networks whose scores are known: what they propose, what they find, and why they end."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import linear_draw, linear_loss, same_bits

from maskprune import select, strategies
from maskprune.masks.alterations import disable, freeze
from maskprune.masks.groups import Group, Groups, Slice
from maskprune.masks.network import choose, count_enabled, effective_params, init_network, list_masks
from maskprune.minimizer.loop import minimize
from maskprune.minimizer.rounds import Limits, Rules
from maskprune.minimizer.strategies.base import Move, alive, apply_move
from maskprune.train.population import make_population, train_many
from maskprune.train.session import SessionReport, make_session, of_length, train_alone
from maskprune.train.step import init_state, make_train_step


OPTIMIZER = optax.adam(0.1)
PLANS = {
    "one_by_one": strategies.one_by_one,
    "bisect": strategies.bisect,
    "beam": strategies.beam(2),
    "grow": strategies.grow,
    "regrow": strategies.regrow,
    "auto": strategies.auto(2),
}


def network(**sizes):
    slices = {name: (Slice(name, 0, tuple(range(size)), "out"),) for name, size in sizes.items()}
    groups = Groups(tuple(Group(name, size, slices[name]) for name, size in sizes.items()))
    return init_network({name: np.arange(1.0, size + 1, dtype=np.float32) for name, size in sizes.items()}, groups)


def idle(keys, states, *, share=1.0, times=1, rate=1.0):
    return [(state, SessionReport(np.zeros(10, np.float32), True, "", 0.0)) for state in states]


def enabled(network):
    return {(name, n) for name, numbers in list_masks(network.enabled).items() for n in numbers}


def needs(*masks):
    """Scores 1 with all of these masks, and half as much for each that is missing."""
    return lambda state: {"score": 0.5 ** len(set(masks) - enabled(state.network))}


def at_least(count):
    """Any so many masks are enough."""
    return lambda state: {"score": 1.0 if len(enabled(state.network)) >= count else 0.1}


def search(start, evaluate, plan, *, rules=None, limits=None, init=None, selector=None):
    return list(
        minimize(
            jax.random.key(0), init_state(start, OPTIMIZER), train=lambda key, state: idle([key], [state])[0],
            train_many=idle, evaluate=evaluate, optimizer=OPTIMIZER, selector=selector or select.sequential(),
            plan=plan, rules=rules or Rules(candidates=4), limits=limits, init=init,
        )
    )  # fmt: skip


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("candidates", [1, 4])
def test_every_plan_keeps_what_a_search_promises(name, candidates):
    start = network(a=4, b=3, c=1)
    start = disable(freeze(start, choose(start, {"a": [2]})), choose(start, {"b": [0]}))
    rounds = search(start, at_least(4), PLANS[name], rules=Rules(candidates=candidates), limits=Limits(rounds=60))
    assert rounds[-1].stop and not any(row.stop for row in rounds[:-1]) and len(rounds) < 60
    held = rounds[0].state
    for row in rounds[1:]:
        counts = count_enabled(row.judged)
        assert min(counts.values()) >= 1 and ("a", 2) in enabled(row.judged) and len(row.rivals) < 8
        assert (row.state is not held) == row.accepted == (row.score >= row.required)
        if row.accepted:
            assert sum(counts.values()) < len(enabled(held.network)) + (not row.chosen)  # or it was trained on
        held = row.state
    assert len(enabled(held.network)) >= 4


@pytest.mark.parametrize("name", ["one_by_one", "bisect", "beam", "auto"])
def test_exactly_the_useless_masks_of_a_teacher_go(name):
    useful = {("a", 1), ("a", 4), ("b", 0)}
    worth = lambda key, network, batch: {
        group.name: np.array([float((group.name, n) in useful) for n in range(group.size)]) for group in network.groups
    }
    rounds = search(network(a=5, b=3), needs(*useful), PLANS[name], selector=worth)
    assert enabled(rounds[-1].state.network) == useful


@pytest.mark.parametrize("enough", range(2, 11))
def test_bisection_finds_how_many_may_go_in_few_rounds(enough):
    rounds = search(network(a=5, b=5), at_least(enough), strategies.bisect, rules=Rules())
    assert len(enabled(rounds[-1].state.network)) == enough
    assert len(rounds) - 1 <= 4  # log2 of 8 masks to spare, and one


def test_bisection_tries_different_sets():
    rounds = search(network(a=5, b=5), at_least(11 - 1), strategies.bisect, rules=Rules(candidates=4))
    for row in rounds[1:]:
        sets = [frozenset(each.chosen.get("a", [])) | {-n for n in each.chosen.get("b", [])} for each in row.rivals]
        assert len({*map(frozenset, sets)}) == len(sets) == 3
    assert rounds[-1].stop == "0 masks may go, 1 may not"


def test_a_beam_goes_where_the_best_of_one_round_does_not_lead():
    """Without mask 0 the score is best, but then nothing else may go; without mask 1 two more may."""
    table = {frozenset(): 1.0, frozenset({0}): 0.99, frozenset({1}): 0.97, frozenset({1, 2}): 0.96}

    def evaluate(state):
        gone = frozenset(range(4)) - {n for _, n in enabled(state.network)}
        return {"score": table.get(gone, 0.0)}

    narrow, wide = (search(network(a=4), evaluate, strategies.beam(width)) for width in (1, 2))
    assert len(enabled(narrow[-1].state.network)) == 3 and len(enabled(wide[-1].state.network)) == 2
    assert all(not row.rivals or row.rivals[0].steps == 10 for row in wide)
    with pytest.raises(ValueError, match="`width` is 0"):
        strategies.beam(0)


def test_growing_ends_as_soon_as_it_is_enough():
    rounds = search(network(a=4, b=4), at_least(5), strategies.grow, rules=Rules(candidates=2))
    assert [len(enabled(row.judged)) for row in rounds] == [8, 2, 3, 4, 5]
    assert [row.accepted for row in rounds] == [True, False, False, False, True]
    assert rounds[-1].stop == "it has grown to what is enough" and rounds[2].regrown and not rounds[2].chosen
    never = search(network(a=3), at_least(3), strategies.grow, rules=Rules())
    assert len(enabled(never[-1].state.network)) == 3 and never[-1].stop == "every mask that may go was refused"


def test_an_exchange_draws_afresh_and_loses_one_mask():
    start = network(a=3, b=3)
    start = disable(start, choose(start, {"a": [0]}))
    draw = lambda key: {"a": np.full(3, 7.0, np.float32), "b": np.full(3, 7.0, np.float32)}
    rounds = search(start, needs(("a", 0), ("b", 1)), strategies.regrow, init=draw, limits=Limits(rounds=1))
    row = rounds[1]
    assert row.accepted is False or row.regrown == {"a": [0]}
    assert sum(map(len, row.chosen.values())) == 2 and len(enabled(row.judged)) == 4
    assert ("a", 0) in enabled(row.judged) and float(effective_params(row.judged)["a"][0]) == 7.0


def test_masks_come_back_as_they_were_where_nothing_draws_them():
    start = disable(network(a=3), choose(network(a=3), {"a": [0]}))
    move = Move({"a": [1]}, regrown={"a": [0]})
    found = apply_move(jax.random.key(0), move, start, remove=disable, init=None)
    assert alive(found) == {("a", 0), ("a", 2)} and float(found.params["a"][0]) == 1.0 and move.saved == 0


def test_auto_asks_for_one_less_until_its_patience_ends():
    rounds = search(network(a=5, b=5), at_least(6), strategies.auto(3), rules=Rules(candidates=2))
    assert len(enabled(rounds[-1].state.network)) == 6
    sizes = [len(enabled(row.judged)) for row in rounds]
    assert sizes[-3:] == [5, 5, 5] and rounds[-1].stop == "every mask that may go was refused"
    with pytest.raises(ValueError, match="`patience` is -1"):
        strategies.auto(-1)


def search_by_long_sessions(passes, size=10, patience=0):
    """Networks of 4 masks or more come near in a session as usual; `passes(enabled)` says which a long one mends.

    Returns the rounds, and those of them that were long sessions.
    """

    def train(keys, states, *, share=1.0, times=1, rate=1.0):
        return [(dataclasses.replace(state, step=np.int32(times)), idle(keys, [state])[0][1]) for state in states]

    def evaluate(state):
        masks = enabled(state.network)
        long = int(state.step) > 2
        return {"score": 1.0 if len(masks) == size or (long and passes(masks)) else 0.87 if len(masks) >= 4 else 0.1}

    one = lambda key, state: train([key], [state])[0]
    rounds = list(
        minimize(
            jax.random.key(0), init_state(network(a=size), OPTIMIZER), train=one, train_many=train,
            evaluate=evaluate, optimizer=OPTIMIZER, selector=select.sequential(),
            plan=strategies.auto(patience), rules=Rules(candidates=3, threshold=0.9),
        )
    )  # fmt: skip
    untrained, settled, *after = rounds[1:]
    assert not untrained.accepted and not settled.chosen and settled.accepted
    return rounds, [len(enabled(row.judged)) for row in after if not row.chosen]


@pytest.mark.parametrize("least", [4, 5, 6, 9, 12, 13])
def test_auto_finds_the_smallest_size_of_its_path_that_a_long_session_mends(least):
    rounds, long = search_by_long_sessions(lambda masks: len(masks) >= least, size=14)
    assert len(enabled(rounds[-1].state.network)) == least
    assert long[0] == 4 and len(set(long)) <= 6  # of ten sizes


def test_auto_tries_the_siblings_of_a_network_that_is_not_mended():
    rounds, _ = search_by_long_sessions(lambda masks: ("a", 5) in masks and len(masks) >= 4)
    path = [row.chosen["a"] for row in rounds[3:9]]
    assert path == [[number] for number in range(6)]  # the path loses what is needed
    assert rounds[3].reason == "0.8700 stays below 0.9000, but is near" and not rounds[9].reason.endswith("near")
    assert enabled(rounds[-1].state.network) == {("a", number) for number in (5, 7, 8, 9)}


def test_of_several_that_pass_the_one_that_saves_most_is_judged():
    def plan(view):
        verdict = yield strategies.Proposal([Move({"a": [0]}), Move({"a": [1, 2]}), Move({"a": [0, 1, 2]})], 3)
        assert verdict.winner is verdict.found[1] and verdict.accepted
        return "that was all"

    rounds = search(network(a=5), at_least(3), plan)
    assert rounds[1].chosen == {"a": [1, 2]} and rounds[1].stop == "that was all"


def test_a_plan_of_ones_own_is_a_few_lines():
    def from_the_end(view):
        for number in itertools.count():
            masks = [("a", n) for n in reversed(range(5))]
            chosen = view.first(view.state.network, masks[number:], 1)
            if not chosen:
                break
            yield strategies.Proposal([Move(chosen)], 1)
        return "all were asked"

    rounds = search(network(a=5), needs(("a", 4), ("a", 1)), from_the_end)
    assert [row.chosen["a"][0] for row in rounds[1:]] == [4, 3, 2, 1, 0] and rounds[-1].stop == "all were asked"


@pytest.mark.parametrize("many", [False, True])
def test_sessions_of_a_length_may_be_longer_and_gentler(many):
    step = make_train_step(linear_loss, OPTIMIZER)
    start = init_state(init_network({"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}, Groups(())), OPTIMIZER)
    data = jnp.ones((3, 2))
    made = train_many(make_population(step, linear_draw), data) if many else None
    sessions = of_length(made or train_alone(make_session(step, linear_draw), data), 5)
    train = lambda **how: sessions([jax.random.key(0)], [start], **how)[0]
    still, report = train(rate=0.0)
    assert same_bits(still.network.params, start.network.params) and len(report.losses) == 5
    longer, report = train(times=3)
    assert len(report.losses) == 15 and int(longer.step) == 15
    half, whole = (np.asarray(train(rate=rate)[0].network.params["bias"]) for rate in (0.5, 1.0))
    assert np.all(np.abs(half) < np.abs(whole))


def test_without_sessions_of_its_own_a_longer_one_is_several():
    asked = []

    def train(key, state):
        asked.append(int(state.step))
        return idle([key], [state])[0]

    def plan(view):
        verdict = yield strategies.Proposal([Move({"a": [0]})], 1, times=3, rate=0.5)
        return f"{len(verdict.winner.report.losses)} steps"

    rounds = list(
        minimize(
            jax.random.key(0), init_state(network(a=3), OPTIMIZER), train=train, evaluate=at_least(1),
            optimizer=OPTIMIZER, selector=select.sequential(), plan=plan,
        )
    )  # fmt: skip
    assert rounds[-1].stop == "30 steps" and asked == [0, 0, 0]


def test_a_round_without_a_session_judges_the_network_as_it_is():
    def plan(view):
        verdict = yield strategies.Proposal([Move({"a": [0]})], 1, times=0)
        return f"{verdict.winner.worth}"

    never = lambda key, state: pytest.fail("it was trained")
    rounds = list(
        minimize(
            jax.random.key(0), init_state(network(a=3), OPTIMIZER), train=never, evaluate=at_least(2),
            optimizer=OPTIMIZER, selector=select.sequential(), plan=plan,
        )
    )  # fmt: skip
    assert rounds[-1].stop == "1.0" and rounds[1].accepted and rounds[1].steps == 0


def test_auto_takes_what_nobody_misses_without_a_step():
    rounds = search(network(a=5, b=5), at_least(7), strategies.auto(0), rules=Rules(candidates=2))
    assert [(len(enabled(row.judged)), row.accepted) for row in rounds[1:4]] == [(9, True), (8, True), (7, True)]
    assert not rounds[4].accepted and rounds[5].chosen == {} and rounds[5].accepted  # what is left is trained on


def test_plans_follow_one_another():
    rounds = search(
        network(a=4), at_least(2), strategies.chain(strategies.bisect, strategies.one_by_one), rules=Rules()
    )
    assert rounds[-1].stop == "every mask that may go was refused" and len(enabled(rounds[-1].state.network)) == 2
