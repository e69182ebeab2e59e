"""The search on networks whose scores are known: what is tried, what is kept, what is compared, and when it ends."""

import itertools
import math

import jax
import numpy as np
import optax
import pytest

from maskprune import select, strategies
from maskprune.masks.alterations import disable, freeze
from maskprune.masks.groups import Group, Groups, Slice
from maskprune.masks.network import choose, count_enabled, init_network, list_masks
from maskprune.minimizer.loop import Limits, Rules, minimize
from maskprune.train.session import SessionReport
from maskprune.train.step import init_state


OPTIMIZER = optax.adam(0.1)
STEPS = 10


def network(sizes):
    slices = {name: (Slice(name, 0, tuple(range(size)), "out"),) for name, size in sizes.items()}
    groups = Groups(tuple(Group(name, size, slices[name]) for name, size in sizes.items()))
    return init_network({name: np.ones(size, np.float32) for name, size in sizes.items()}, groups)


def state_of(**sizes):
    return init_state(network(sizes), OPTIMIZER)


def idle(key, state):
    """Training that takes steps and moves nothing."""
    return state, SessionReport(np.zeros(STEPS, np.float32), True, "", 0.0)


def enabled(state):
    return {(name, n) for name, numbers in list_masks(state.network.enabled).items() for n in numbers}


def needs(*masks, penalty=0.5):
    """Scores 1 with all of these masks enabled, and `penalty` less for each that is missing."""
    return lambda state: {"score": 1.0 - penalty * len(set(masks) - enabled(state))}


def search(state, *, evaluate, train=idle, selector=None, key=None, **rest):
    key = jax.random.key(0) if key is None else key
    selector = selector or select.sequential()
    return list(minimize(key, state, train=train, evaluate=evaluate, optimizer=OPTIMIZER, selector=selector, **rest))


def tried(rounds):
    """`"a0"` for an accepted mask, `"-a0"` for a refused one."""
    names = lambda row: "".join(f"{name}{n}" for name, numbers in row.chosen.items() for n in numbers)
    return [("" if row.accepted else "-") + names(row) for row in rounds[1:]]


def test_refusing_everything_returns_the_very_same_object():
    state = state_of(a=3, b=2)
    rounds = search(state, evaluate=needs(*enabled(state)))
    assert all(row.state is state for row in rounds)
    assert tried(rounds) == ["-a0", "-a1", "-a2", "-b0", "-b1"]
    assert [row.stop for row in rounds] == [""] * 5 + ["every mask that may go was refused"]
    assert [row.number for row in rounds] == list(range(6))
    assert rounds[1].reason == "0.5000 stays below 0.9500" and rounds[1].metrics == {"score": 0.5}


@pytest.mark.parametrize(("least", "left"), [(0, (0, 0)), (1, (1, 1)), (2, (2, 2)), (3, (3, 2))])
def test_accepting_everything_leaves_the_fewest_allowed(least, left):
    rounds = search(state_of(a=4, b=2), evaluate=needs(), rules=Rules(min_enabled=least))
    assert tuple(count_enabled(rounds[-1].state.network).values()) == ((4, 2) if least > 3 else left)
    assert all(row.accepted for row in rounds) and rounds[-1].stop == "no group has a mask to spare"
    assert all(row.stop == "" for row in rounds[:-1])


@pytest.mark.parametrize("selector", [select.sequential(), select.random(), select.magnitude(), select.cosine()])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_exactly_the_useless_masks_of_a_teacher_go(selector, count):
    useful = {("a", 1), ("a", 4), ("b", 0)}
    rounds = search(state_of(a=5, b=3), evaluate=needs(*useful), selector=selector, rules=Rules(count=count))
    assert enabled(rounds[-1].state) == useful
    assert rounds[-1].stop and rounds[-1].score <= 1.0


def test_refused_masks_wait_for_the_next_acceptance():
    evaluate = needs(("a", 0), ("a", 2))
    assert tried(search(state_of(a=4), evaluate=evaluate)) == ["-a0", "a1", "-a0", "-a2", "a3", "-a0", "-a2"]
    never = search(state_of(a=4), evaluate=evaluate, rules=Rules(retry="never"))
    assert tried(never) == ["-a0", "a1", "-a2", "a3"]
    assert never[-1].stop == "every mask that may go was refused"


def by_count(*scores):
    """The score follows from how many masks are gone."""
    return lambda state: {"score": scores[6 - len(enabled(state))]}


@pytest.mark.parametrize(
    ("reference", "scores", "gone", "references"),
    [
        ("initial", (1.0, 0.95, 0.91, 0.89, 0.0), 2, [1.0, 1.0, 1.0]),
        ("previous", (1.0, 0.95, 0.9, 0.82, 0.75, 0.5), 4, [1.0, 0.95, 0.9, 0.82, 0.75]),  # it compounds
        ("best", (1.0, 0.95, 1.2, 1.1, 1.07), 3, [1.0, 1.0, 1.2, 1.2]),
        ("initial", (1.0, 0.95, 1.2, 1.1, 0.92, 0.8), 4, [1.0] * 5),
    ],
)
def test_the_reference_by_hand(reference, scores, gone, references):
    rounds = search(state_of(a=6), evaluate=by_count(*scores), rules=Rules(threshold=0.9, reference=reference))
    assert [row.accepted for row in rounds[: gone + 2]] == [True] * (gone + 1) + [False]
    assert [row.reference for row in rounds[1 : gone + 2]] == references
    assert [row.required for row in rounds[1 : gone + 2]] == [0.9 * value for value in references]
    assert len(enabled(rounds[-1].state)) == 6 - gone


def ageing(failing=()):
    """Training that adds 1 to every weight, enabled or not; the calls in `failing` break after that."""
    calls = itertools.count()

    def train(key, state):
        params = jax.tree.map(lambda leaf: leaf + 1, state.network.params)
        moved = init_state(state.network.__class__(**{**vars(state.network), "params": params}), OPTIMIZER)
        fine = next(calls) not in failing
        return moved, SessionReport(np.zeros(STEPS), fine, "" if fine else "it broke", 0.0)

    return train


def age(state):
    return float(state.network.params["a"][-1]) - 1


def test_control_trains_the_reference_too_and_judges_by_its_new_score():
    # Each session adds 0.1; each of the 4 masks is worth 0.05, and the last may not go.
    evaluate = lambda state: {"score": 1.0 + 0.1 * age(state) - 0.05 * (4 - len(enabled(state)))}
    rounds = search(
        state_of(a=4),
        evaluate=evaluate,
        train=ageing(),
        rules=Rules(control=True, threshold=0.9),
        limits=Limits(rounds=3),
    )
    assert [row.reference for row in rounds] == pytest.approx([1.0, 1.1, 1.2, 1.3])
    assert [row.score for row in rounds] == pytest.approx([1.0, 1.05, 1.1, 1.15])
    assert [row.accepted for row in rounds] == [True, True, True, False]  # 1.15 < 0.9 * 1.3
    assert [row.steps for row in rounds] == [0, 20, 20, 20]
    without = search(state_of(a=4), evaluate=evaluate, train=ageing(), rules=Rules(threshold=0.9))
    assert all(row.accepted and row.reference == 1.0 for row in without)  # more training passes for fewer masks


def test_control_steps_back_with_the_candidate():
    evaluate = lambda state: {"score": 1.0 + 0.1 * age(state) - 0.9 * (4 - len(enabled(state)))}
    rounds = search(state_of(a=4), evaluate=evaluate, train=ageing(), rules=Rules(control=True))
    assert [row.reference for row in rounds[1:]] == pytest.approx([1.1] * 4)


def test_a_control_whose_training_failed_sets_no_reference():
    evaluate = lambda state: {"score": 1.0 + 0.1 * age(state)}
    rules, limits = Rules(control=True), Limits(rounds=2)
    rounds = search(state_of(a=4), evaluate=evaluate, train=ageing(failing=(1,)), rules=rules, limits=limits)
    assert [row.reference for row in rounds] == pytest.approx([1.0, 1.0, 1.1])  # the second control starts over
    assert [row.steps for row in rounds] == [0, 2 * STEPS, 2 * STEPS]


def test_a_tie_reaches_the_threshold_of_one():
    rounds = search(state_of(a=3), evaluate=needs(("a", 1), penalty=1e-9), rules=Rules(threshold=1.0))
    assert tried(rounds) == ["a0", "-a1", "a2"]
    assert enabled(rounds[-1].state) == {("a", 1)}


def test_two_at_once_and_one_when_every_pair_is_refused():
    rounds = search(state_of(a=6), evaluate=needs(("a", 0), ("a", 2), ("a", 4)), rules=Rules(count=2))
    assert tried(rounds)[:4] == ["-a0a1", "-a2a3", "-a4a5", "-a0"]
    assert tried(rounds)[4] == "a1" and enabled(rounds[-1].state) == {("a", 0), ("a", 2), ("a", 4)}


def test_several_at_once_spare_the_last_of_each_group():
    rounds = search(state_of(a=2, b=2, c=1), evaluate=needs(), rules=Rules(count=4))
    assert tried(rounds) == ["a0b0"]
    assert enabled(rounds[-1].state) == {("a", 1), ("b", 1), ("c", 0)}


def test_frozen_and_disabled_masks_are_never_chosen():
    start = network({"a": 4, "b": 2})
    start = disable(freeze(start, choose(start, {"a": [0, 3], "b": [1]})), choose(start, {"a": [1]}))
    rounds = search(init_state(start, OPTIMIZER), evaluate=needs())
    assert tried(rounds) == ["a2", "b0"] and rounds[-1].stop == "no group has a mask to spare"


@pytest.mark.parametrize(
    ("limits", "count", "stop"),
    [
        (Limits(rounds=0), 0, "the limit of 0 rounds is reached"),
        (Limits(rounds=2), 2, "the limit of 2 rounds is reached"),
        (Limits(steps=25), 3, "the limit of 25 steps is reached"),
        (Limits(steps=30), 3, "the limit of 30 steps is reached"),
        (Limits(seconds=0.0), 0, "the limit of 0 seconds is reached"),
        (Limits(masks=3), 3, "the target of 3 masks is reached"),
        (Limits(masks=9), 0, "the target of 9 masks is reached"),
        (Limits(rounds=99, steps=9999, seconds=1e9, masks=0), 5, "no group has a mask to spare"),
    ],
)
def test_limits_end_the_search_and_say_so(limits, count, stop):
    rounds = search(state_of(a=6), evaluate=needs(), limits=limits)
    assert len(rounds) == count + 1
    assert [row.stop for row in rounds] == [""] * count + [stop]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_refused_and_the_search_goes_on(bad):
    evaluate = lambda state: {"score": 1.0 if ("a", 0) in enabled(state) else bad}
    rounds = search(state_of(a=3), evaluate=evaluate)
    assert rounds[1].reason == f"the score is {bad}" and tried(rounds) == ["-a0", "a1", "-a0", "a2"]


def test_a_training_that_fails_is_refused_and_the_search_goes_on():
    rounds = search(state_of(a=3), evaluate=needs(), train=ageing(failing=(0,)))
    assert tried(rounds) == ["-a0", "a1", "a0"]
    assert rounds[1].reason == "training failed: it broke" and rounds[1].state is rounds[0].state


def test_what_is_left_to_try_counts_down_and_comes_back_with_an_acceptance():
    refused = search(state_of(a=3, b=2), evaluate=needs(*[("a", n) for n in range(3)], ("b", 0), ("b", 1)))
    assert [found.left for found in refused] == [5, 4, 3, 2, 1, 0]
    assert [bool(found.stop) for found in refused] == [False] * 5 + [True]
    accepted = search(state_of(a=3), evaluate=needs(("a", 0)))  # a0 is refused, a1 goes, a0 is refused again, a2 goes
    assert [found.left for found in accepted] == [3, 2, 2, 1, 0]


def test_the_score_of_the_network_held_is_told_beside_that_of_the_candidate():
    evaluate = needs(("a", 0), ("a", 2), penalty=0.25)
    better = lambda state: {"score": evaluate(state)["score"] + 0.01 * (4 - len(enabled(state)))}
    rounds = search(state_of(a=4), evaluate=better)
    assert [row.accepted for row in rounds] == [True, False, True, False, False, True, False, False]
    assert [row.score for row in rounds] == pytest.approx([1.0, 0.76, 1.01, 0.77, 0.77, 1.02, 0.78, 0.78])
    assert [row.held_score for row in rounds] == pytest.approx([1.0, 1.0, 1.01, 1.01, 1.01, 1.02, 1.02, 1.02])
    assert rounds[-1].held_score == better(rounds[-1].state)["score"]


# Scores that may be negative, such as minus a loss


@pytest.mark.parametrize("shift", [-10.0, -1.0, 0.0, 10.0])
@pytest.mark.parametrize("plan", [strategies.one_by_one, strategies.auto()])
def test_a_drop_means_the_same_wherever_scores_begin(shift, plan):
    useful = {("a", 1), ("a", 3)}
    evaluate = lambda state: {"score": shift + needs(*useful, penalty=0.25)(state)["score"]}
    rounds = search(state_of(a=5), evaluate=evaluate, rules=Rules(drop=0.125), plan=plan)
    assert enabled(rounds[-1].state) == useful
    assert rounds[1].required == shift + 1.0 - 0.125


@pytest.mark.parametrize(("drop", "gone"), [(0.0, 0), (0.24, 0), (0.25, 1), (0.75, 3)])
def test_a_drop_is_in_units_of_the_score(drop, gone):
    every = [("a", number) for number in range(5)]
    rounds = search(state_of(a=5), evaluate=needs(*every, penalty=0.25), rules=Rules(drop=drop))
    assert len(enabled(rounds[-1].state)) == 5 - gone


@pytest.mark.parametrize("score", [-0.31, -3e-5])
@pytest.mark.parametrize("reference", ["initial", "previous", "best"])
def test_no_share_is_taken_of_what_is_negative(score, reference):
    with pytest.raises(ValueError, match=r"scores -.*, and a share .* `Rules\(drop=...\)`"):
        search(state_of(a=3), evaluate=lambda state: {"score": score}, rules=Rules(reference=reference))


def test_a_control_that_falls_below_zero_sets_no_reference():
    evaluate = lambda state: {"score": 1.0 if len(enabled(state)) < 4 else 1.0 - 1.5 * age(state)}
    rounds = search(state_of(a=4), evaluate=lambda s: evaluate(s), train=ageing(), rules=Rules(control=True))
    assert rounds[1].reference == 1.0


def test_a_share_and_a_drop_are_not_given_both():
    with pytest.raises(ValueError, match=r"`threshold` is 0\.9 and `drop` 0\.1: give one"):
        Rules(threshold=0.9, drop=0.1)
    for bad in (-0.1, math.nan):
        with pytest.raises(ValueError, match="`drop`"):
            Rules(drop=bad)
