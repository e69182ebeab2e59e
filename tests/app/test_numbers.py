"""Numbers that are not finite, in every kind of session: what is kept, what is said, and who is left alone."""

import csv
import json
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import same_bits

from maskprune import models, record, select
from maskprune.app.outcome import dead_masks
from maskprune.app.whole_search import Lengths, search
from maskprune.masks.alterations import disable
from maskprune.masks.groups import Group, Groups, Slice
from maskprune.masks.network import choose, count_enabled, init_network, list_masks
from maskprune.minimizer.loop import minimize
from maskprune.minimizer.rounds import Rules
from maskprune.minimizer.strategies import Move, Proposal
from maskprune.report import page
from maskprune.report.wording import ending
from maskprune.select.repair import least_squares
from maskprune.tasks.data.split import Dataset, Split
from maskprune.train.population import make_population, stack, unstack
from maskprune.train.session import make_session, of_length, part_of
from maskprune.train.step import init_state, make_train_step


SIZE, CHUNK, STEPS = 4, 10, 25
OPTIMIZER = optax.adam(0.05)
GROUPS = Groups((Group("g", SIZE, (Slice("w", 0, tuple(range(SIZE)), "out"),)),))
TARGET = jnp.array([3.0, 0.1, 2.0, 1.0])
NEVER = jnp.zeros(2, jnp.uint32)
HUGE = 1e30  # finite, but its square is not


def draw(key, data):
    """The target with noise; in the one step whose key is `data[1]` a value that no loss survives."""
    target, bad, value = data
    noisy = target + 0.1 * jax.random.normal(key, (SIZE,))
    return jnp.where(jnp.all(jax.random.key_data(key) == bad), value, noisy)


def key_of(key, step):
    """The key by which a session draws the batch of a step."""
    return jax.random.key_data(jax.random.split(jax.random.fold_in(key, step))[0])


def data(bad=NEVER, value=math.nan):
    return TARGET, bad, jnp.float32(value)


STEP = make_train_step(lambda params, batch: jnp.sum(jnp.square(params["w"] - batch)), OPTIMIZER)
SESSION = make_session(STEP, draw, chunk=CHUNK)


def start(key=None):
    key = jax.random.key(3) if key is None else key
    return init_state(init_network({"w": jax.random.uniform(key, (SIZE,))}, GROUPS), OPTIMIZER)


def evaluate(state):
    found = np.where(state.network.enabled["g"], np.asarray(state.network.params["w"]), 0)
    return {"score": float(1 - np.sum((found - TARGET) ** 2) / np.sum(TARGET**2))}


class Trainer:
    """Sessions of which the ones named `(call, place)` meet a bad batch at a step. Calls count from 0."""

    def __init__(self, *broken, at=7, value=math.nan):
        self.broken, self.at, self.value, self.calls = set(broken), at, value, 0

    def __call__(self, keys, states, *, steps, share=1.0, rate=1.0):
        found, until = [], part_of(steps, share)
        for place, (key, state) in enumerate(zip(keys, states, strict=True)):
            bad = key_of(key, self.at) if (self.calls, place) in self.broken else NEVER
            found.append(SESSION.run(key, state, data(bad, self.value), steps, until=until, rate=rate))
        self.calls += 1
        return found


class Book:
    upcoming = ""

    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)

    def verdict(self, found, row):
        self.lines.append(found.reason)


def whole(train, *, show=None, lengths=Lengths(100, STEPS, STEPS), **rules):  # noqa: B008
    return search(
        jax.random.key(0), start, train=train, evaluate=evaluate, trouble=lambda state: "", optimizer=OPTIMIZER,
        selector=lambda network: select.magnitude(), lengths=lengths, show=show or Book(), rules=Rules(**rules),
        size=lambda network: {"parameters": sum(count_enabled(network).values())},
    )  # fmt: skip


def rounds(train, *, evaluate=evaluate, selector=None, state=None, **given):
    sessions = of_length(train, STEPS)
    single = lambda key, state: sessions([key], [state])[0]
    return list(
        minimize(
            jax.random.key(1), TRAINED if state is None else state, train=single, train_many=sessions,
            evaluate=evaluate, optimizer=OPTIMIZER, selector=selector or select.magnitude(), **given,
        )
    )  # fmt: skip


TRAINED, _ = SESSION.run(jax.random.key(5), start(), data(), 200)


@pytest.mark.parametrize("value", [math.nan, math.inf, HUGE])
@pytest.mark.parametrize("at", [0, CHUNK - 1, CHUNK, STEPS - 1])
def test_a_session_keeps_the_state_before_the_bad_step(at, value):
    key = jax.random.key(2)
    before, _ = SESSION.run(key, start(), data(), STEPS, until=at)
    found, said = SESSION.run(key, start(), data(key_of(key, at), value), STEPS)
    assert not said.finite and len(said.losses) == at + 1 and not np.isfinite(said.losses[-1])
    assert said.stopped == f"the loss or an update was not finite at step {at}" and same_bits(found, before)


@pytest.mark.parametrize("options", [{}, {"at_once": 2}, {"invariant": True}], ids=["all", "pairs", "invariant"])
def test_a_member_of_a_population_likewise_and_the_others_are_untouched(options):
    keys = jax.random.split(jax.random.key(4), 3)
    states = stack([start(key) for key in keys])
    together = make_population(STEP, draw, chunk=CHUNK, **options)
    well, _ = together.run(keys, states, data(), STEPS)
    before, _ = together.run(keys, states, data(), STEPS, until=13)
    ill, said = together.run(keys, states, data(key_of(keys[1], 13), HUGE), STEPS)
    expected = [unstack(well)[0], unstack(before)[1], unstack(well)[2]]
    assert [same_bits(*pair) for pair in zip(unstack(ill), expected, strict=True)] == [True] * 3
    assert said.stopped == ("", "the loss or an update was not finite at step 13", "")
    assert said.taken.tolist() == [STEPS, 14, STEPS]


def test_a_rate_too_large_is_stopped_at_the_step_that_overflows():
    step = make_train_step(lambda params, batch: jnp.sum(jnp.square(params["w"] - batch)), optax.sgd(1.0))
    session, state = make_session(step, draw), init_state(start().network, optax.sgd(1.0))
    found, said = session.run(jax.random.key(0), state, data(), 100, rate=1e6)
    last = int(found.step)
    assert not said.finite and last < 100 and f"at step {last}" in said.stopped
    assert np.isfinite(found.network.params["w"]).all() and np.isfinite(said.losses[:-1]).all()


def test_a_first_session_that_fails_is_drawn_again_and_told():
    show = Book()
    found = whole(Trainer((0, 0)), show=show)
    assert show.lines[0] == ("A start was drawn again: after 8 steps the loss or an update was not finite at step 7.")
    assert np.isfinite(found.rows[0]["score"]) and not found.interrupted


def test_a_last_session_that_fails_is_not_kept_and_told():
    lengths = Lengths(100, STEPS, STEPS)
    calls = Trainer()
    clean = whole(calls, lengths=lengths._replace(last=0))
    show = Book()
    found = whole(Trainer((calls.calls, 0), value=HUGE), show=show, lengths=lengths)
    assert found.rows[-1]["verdict"] == "final" and same_bits(found.state.network.params, clean.state.network.params)
    reason = "training failed: the loss or an update was not finite at step 7; not kept"
    assert found.rows[-1]["reason"] == reason and show.lines[-1] == f"last session: {reason}"


@pytest.mark.parametrize("value", [math.nan, HUGE])
def test_a_round_that_fails_is_refused_and_steps_back(value):
    zero, first, *_ = rounds(Trainer((0, 0), value=value))
    assert not first.accepted and first.state is zero.state is TRAINED and first.chosen == {"g": [1]}
    assert first.reason == "training failed: the loss or an update was not finite at step 7" and first.steps == 8


@pytest.mark.parametrize("racing", [False, True])
def test_a_rival_that_fails_is_named_and_the_best_of_the_others_is_judged(racing):
    rules = Rules(candidates=3, racing=racing, threshold=0.9)
    ill, well = (rounds(Trainer(*broken, at=2), rules=rules)[1] for broken in ([(0, 2)], []))
    assert ill.chosen == well.chosen and ill.accepted and same_bits(ill.state, well.state)
    assert ill.reason == f"{well.reason}; g[2]: training failed: the loss or an update was not finite at step 2"
    assert [rival.trouble != "" for rival in ill.rivals] == [rival.chosen == {"g": [2]} for rival in ill.rivals]


def test_a_control_that_fails_stays_as_it_was():
    calls = Trainer((1, 0))  # a candidate, its control, and so on
    zero, first, second, *_ = rounds(calls, rules=Rules(control=True, threshold=0.9))
    said = "the control stays as it was: training failed: the loss or an update was not finite at step 7"
    assert first.accepted and first.reason.endswith(f"; {said}") and first.reference == zero.reference
    assert "control" not in second.reason


def test_a_control_whose_score_is_no_number_stays_as_it_was():
    looks = iter([1.0, 1.0, math.nan, *[1.0] * 50])
    _, first, second, *_ = rounds(Trainer(), evaluate=lambda state: {"score": next(looks)}, rules=Rules(control=True))
    assert first.accepted and first.reason.endswith("the control stays as it was: the score is nan")
    assert first.reference == second.reference == 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_refused(bad):
    broken = lambda state: evaluate(state) if list_masks(state.network.enabled)["g"] != [0, 2, 3] else {"score": bad}
    zero, first, second, *_ = rounds(Trainer(), evaluate=broken)
    assert not first.accepted and first.reason == f"the score is {bad}" and first.state is zero.state
    assert second.chosen != first.chosen


def test_a_network_without_a_score_is_not_minimized():
    with pytest.raises(ValueError, match="scores nan: train it first"):
        rounds(Trainer(), evaluate=lambda state: {"score": math.nan})


@pytest.mark.parametrize(
    ("bad", "order"), [(math.nan, [0, 2, 3, 1]), (math.inf, [0, 2, 3, 1]), (-math.inf, [1, 0, 2, 3])]
)
def test_masks_without_a_number_have_a_stated_place_and_are_named(bad, order):
    def selector(key, network, batch):
        return {"g": jnp.arange(4.0).at[1].set(bad)}

    found = rounds(Trainer(), selector=selector, evaluate=lambda s: {"score": float(np.all(s.network.enabled["g"]))})
    assert [each.chosen["g"] for each in found[1:]] == [[number] for number in order]
    assert all(each.reason.endswith("; the selector gave no finite number for g[1]") for each in found[1:])
    assert select.unscored(selector(None, TRAINED.network, None), TRAINED.network) == {"g": [1]}


def test_what_a_selector_says_of_disabled_masks_is_not_told():
    selector = lambda key, network, batch: {"g": jnp.where(network.enabled["g"], jnp.arange(4.0), jnp.nan)}
    found = rounds(Trainer(), selector=selector, rules=Rules(threshold=0.1))
    assert sum(each.accepted for each in found) > 2 and not any("selector" in each.reason for each in found)


def test_a_probe_that_fails_goes_last():
    probe = select.probe(partial(Trainer((0, 1)), steps=STEPS), evaluate, OPTIMIZER, racing=False)
    assert np.asarray(probe(jax.random.key(0), TRAINED.network, None)["g"]).argmax() == 1


def dense(params, batch):
    hidden = jax.nn.relu(batch @ params["a"]["kernel"])
    return {"a": hidden}


def test_a_repair_that_is_not_finite_is_left_out():
    slices = (Slice("a/kernel", 1, (0, 1, 2), "out"), Slice("b/kernel", 0, (0, 1, 2), "in"))
    params = {"a": {"kernel": np.eye(3, dtype=np.float32)}, "b": {"kernel": np.ones((3, 1), np.float32)}}
    network = init_network(params, Groups((Group("a", 3, slices),)))
    chosen, remove = choose(network, {"a": [1]}), least_squares(dense)
    batch = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    fine = remove(network, chosen, batch)
    assert not same_bits(fine.params, network.params) and np.isfinite(fine.params["b"]["kernel"]).all()
    for bad in (np.nan, np.inf, 1e30):
        batch[0, 0] = bad
        after = jax.jit(remove)(network, chosen, batch)
        assert same_bits(after.params, network.params) and list_masks(after.enabled) == {"a": [0, 2]}


def test_a_move_without_a_session_is_judged_by_its_score():
    def plan(view):
        yield Proposal([Move({"g": [0]})], 1, times=0)
        return "done"

    never = lambda keys, states, **_: [
        (state, SESSION.run(key, state, data(), 0)[1]) for key, state in zip(keys, states, strict=True)
    ]
    broken = lambda state: {"score": 1.0 if np.all(state.network.enabled["g"]) else math.nan}
    found = list(
        minimize(jax.random.key(0), TRAINED, train=lambda key, state: (state, None), train_many=never, plan=plan,
                 evaluate=broken, optimizer=OPTIMIZER, selector=select.magnitude())
    )  # fmt: skip
    assert found[1].reason == "the score is nan" and found[1].state is TRAINED


def test_a_dead_output_is_told_with_the_verdict():
    flat = lambda state: {"score": 0.0, "flat": 1.0} if not np.all(state.network.enabled["g"]) else {"score": 1.0}
    assert rounds(Trainer(), evaluate=flat)[1].reason == "0.0000 stays below 0.9500: its output is the same everywhere"
    part = lambda state: flat(state) | {"flat": 0.9}
    assert rounds(Trainer(), evaluate=part)[1].reason == "0.0000 stays below 0.9500"


def test_dead_masks_of_the_result_are_named():
    model = models.fcn((3, 2), kernel=3)
    params = model.init(jax.random.key(0))
    bias = {"conv1": [1.0, -9.0, -9.0], "conv2": [1.0, -9.0]}
    params |= {name: params[name] | {"bias": jnp.array(bias[name])} for name in bias}
    network = init_network(params, model.groups)
    network = disable(network, choose(network, {"conv1": [2]}))
    pictures = np.zeros((2, 8, 8, 1), np.uint8)
    found = dead_masks(model, network, Dataset(*[Split(pictures, pictures, ("a", "b"))] * 2, "", True, "", {}, (), ""))
    assert found == {"conv1": [1], "conv2": [1]}
    assert ending({"dead_masks": found})[-1].startswith("Dead: conv1[1], conv2[1] put out 0")
    assert not any("Dead" in line for line in ending({"dead_masks": {}}))


def test_files_and_report_say_it_in_words_and_json_is_finite(tmp_path):
    broken = [(2, 0)]
    found = whole(Trainer(*broken, at=3))
    row = dict(found.rows[1], score=math.nan)
    rows = [found.rows[0], row, *found.rows[2:]]
    record.write_csv(tmp_path / "history.csv", rows)
    with open(tmp_path / "history.csv") as file:
        read = list(csv.DictReader(file))
    assert read[1]["verdict"] == "refused" and read[1]["reason"].endswith("not finite at step 3")
    result = {"task": "t", "final_score": math.nan, "metrics": {"final": {"f1": math.inf, "mae": 0.1}}, "rows": rows}
    record.write_json(tmp_path / "result.json", result)
    refuse = lambda word: pytest.fail(f"{word} is not JSON")
    again = json.loads((tmp_path / "result.json").read_text(), parse_constant=refuse)
    assert again["final_score"] is None and again["rows"][1]["score"] is None
    text = page.write_report(tmp_path, result, rows, {}).read_text()
    assert "not finite at step 3" in text
