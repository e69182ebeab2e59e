"""A run is told again what it was told: to the bit, from any moment on, and never anything else."""

import dataclasses
import errno
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import linear_draw as draw
from toys import linear_loss as loss

from maskprune.base import checkpoints
from maskprune.masks.alterations import disable
from maskprune.masks.groups import Group, Groups, Slice
from maskprune.masks.network import choose, init_network
from maskprune.minimizer.answers import ANSWERS, REACHED, STATES, Memory
from maskprune.minimizer.progress import digest
from maskprune.train.population import make_population, stack
from maskprune.train.session import make_session, stagnation
from maskprune.train.step import init_state, make_train_step


DATA = jnp.array([[1.0, -2.0, 0.5, 3.0], [0.0, 1.0, -1.0, 2.0], [2.0, 0.0, 1.0, -1.0]])
GROUPS = Groups((Group("g", 4, (Slice("kernel", 1, (0, 1, 2, 3), "out"), Slice("bias", 0, (0, 1, 2, 3), "out"))),))
ABOUT = {"config": {"task": "toy"}, "data": "d", "versions": {"jax": "1"}}
OPTIMIZER = optax.adam(0.05)
STEP = make_train_step(loss, OPTIMIZER)
SESSION = make_session(STEP, draw, chunk=5)
TOGETHER = make_population(STEP, draw, chunk=5)
KEY = jax.random.key(3)


class Pulled(BaseException):
    """The plug, in the middle of a session."""


def start(seed=0, mask=None):
    params = {"kernel": jax.random.normal(jax.random.key(seed), (3, 4)), "bias": jnp.full(4, 0.1)}
    network = init_network(params, GROUPS)
    return init_state(network if mask is None else disable(network, choose(network, {"g": [mask]})), OPTIMIZER)


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def remember(folder, about=ABOUT, **options):
    return Memory.open(folder, about, **{"every": 0.0, "say": lambda text: None, **options})


def pull_after(looks, memory):
    """A watch during which the plug is pulled."""
    left = iter(range(looks))

    def watch(state, losses):
        memory.flush()  # every look is saved, however slow the disk
        if next(left, None) is None:
            raise Pulled
        return ""

    return watch


def told(report):
    """A report without its times, of which no two runs have the same."""
    return bits([np.asarray(each) for name, each in report._asdict().items() if "seconds" not in name])


def never(*arguments, **options):
    raise AssertionError("this was known already")


def test_a_session_is_told_again_without_training(tmp_path):
    with remember(tmp_path) as memory:
        once = memory.session(SESSION).run(KEY, start(), DATA, 20)
    assert bits(once[0]) == bits(SESSION.run(KEY, start(), DATA, 20)[0])
    with remember(tmp_path) as memory:
        again = memory.session(SESSION._replace(run=never)).run(KEY, start(), DATA, 20)
        assert bits(again[0]) == bits(once[0]) and told(again[1]) == told(once[1])
        for other in [(jax.random.key(4), start(), DATA, 20), (KEY, start(1), DATA, 20), (KEY, start(), DATA, 21)]:
            with pytest.raises(AssertionError, match="known"):
                memory.session(SESSION._replace(run=never)).run(*other)


@pytest.mark.parametrize("looks", [1, 2, 3])
def test_a_session_goes_on_where_it_was_stopped(tmp_path, looks):
    with pytest.raises(Pulled), remember(tmp_path) as memory:
        memory.session(SESSION).run(KEY, start(), DATA, 20, watch=pull_after(looks, memory))
    seen = []
    with remember(tmp_path) as memory:
        state, report = memory.session(SESSION).run(
            KEY, start(), DATA, 20, watch=lambda state, losses: seen.append(len(losses)) or ""
        )
    whole, expected = SESSION.run(KEY, start(), DATA, 20)
    assert bits(state) == bits(whole) and told(report) == told(expected)
    assert seen == list(range(5 * (looks + 1), 21, 5))  # from where it stood, with all losses
    assert not list((tmp_path / REACHED).iterdir())  # it is done


def test_a_session_that_may_end_early_ends_where_it_would_have(tmp_path):
    watch = lambda: stagnation(improvement=0.3, patience=2, every=5)
    whole, expected = SESSION.run(KEY, start(), DATA, 500, watch=watch())
    assert expected.stopped and len(expected.losses) < 500
    looks = len(expected.losses) // 5
    for at in (1, looks - 1):
        folder, end = tmp_path / str(at), watch()
        with pytest.raises(Pulled), remember(folder) as memory:
            pull = pull_after(at, memory)
            memory.session(SESSION).run(
                KEY, start(), DATA, 500, watch=lambda *seen, pull=pull, end=end: pull(*seen) or end(*seen)
            )
        with remember(folder) as memory:
            state, report = memory.session(SESSION).run(KEY, start(), DATA, 500, watch=watch())
        assert bits(state) == bits(whole) and told(report) == told(expected)


def spoiled():
    """Three states, of which the second one meets a loss that is not finite."""
    states = [start(0), start(1, mask=2), start(2)]
    network = states[1].network
    params = {**network.params, "kernel": network.params["kernel"].at[0, 0].set(3e38)}
    states[1] = dataclasses.replace(states[1], network=dataclasses.replace(network, params=params))
    return stack(states)


@pytest.mark.parametrize("looks", [1, 3])
def test_a_population_goes_on_with_one_member_lost(tmp_path, looks):
    states = spoiled()
    keys = jax.random.split(KEY, 3)
    whole, expected = TOGETHER.run(keys, states, DATA, 20)
    assert expected.finite.tolist() == [True, False, True] and expected.taken[1] < 20
    with pytest.raises(Pulled), remember(tmp_path) as memory:
        memory.population(TOGETHER).run(keys, states, DATA, 20, watch=pull_after(looks, memory))
    with remember(tmp_path) as memory:
        state, report = memory.population(TOGETHER).run(keys, states, DATA, 20)
    assert bits(state) == bits(whole) and told(report) == told(expected)
    with remember(tmp_path) as memory:
        state, report = memory.population(TOGETHER._replace(run=never)).run(keys, states, DATA, 20)
    assert bits(state) == bits(whole) and told(report) == told(expected)


def test_scores_are_told_again_with_their_bits(tmp_path):
    found = {"score": 0.1 + 0.2, "single": np.float32(0.1), "bad": float("nan"), "flags": jnp.arange(3) / 7}
    for function in (lambda state: found, never):
        with remember(tmp_path) as memory:
            answer = memory.recalling("evaluate", function)(start())
        assert answer["score"] == found["score"] and np.float32(answer["single"]) == found["single"]
        assert np.isnan(answer["bad"]) and bits(answer["flags"]) == bits(found["flags"])
    with remember(tmp_path) as memory, pytest.raises(AssertionError, match="known"):
        memory.recalling("another name", never)(start())


def test_who_is_asked_to_stop_saves_first(tmp_path):
    asked = []
    with pytest.raises(KeyboardInterrupt), remember(tmp_path, every=1e9, asked_to_stop=lambda: bool(asked)) as memory:
        memory.session(SESSION).run(KEY, start(), DATA, 20, watch=lambda state, losses: asked.append(1) or "")
    (reached,) = (tmp_path / REACHED).iterdir()
    assert reached.name.endswith("-000000000010")  # the chunk that was under way was finished
    with remember(tmp_path) as memory:
        assert bits(memory.session(SESSION).run(KEY, start(), DATA, 20)) != []


def test_another_run_is_refused_and_left_alone(tmp_path):
    with remember(tmp_path) as memory:
        memory.session(SESSION).run(KEY, start(), DATA, 5)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for change, said in [
        ({"config": {"task": "other"}}, "task is 'toy', not 'other'"),
        ({"data": "e"}, "another data"),
    ]:
        with pytest.raises(ValueError, match=said):
            remember(tmp_path, {**ABOUT, **change})
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_finished_run_keeps_digests_only(tmp_path):
    with remember(tmp_path) as memory:
        memory.session(SESSION).run(KEY, start(), DATA, 5)
        assert not memory.finished
        memory.finish({"network": "n"})
        assert memory.finished
    with remember(tmp_path) as memory:
        assert memory.finished
    assert [path.name for path in tmp_path.iterdir()] == [ANSWERS]


def ask(folder, say=lambda text: None):
    """A short run: a session in two parts, of which the second begins where the first ended, and their scores."""
    with remember(folder, say=say) as memory:
        session = memory.session(SESSION)
        evaluate = memory.recalling("evaluate", lambda state: {"score": jnp.sum(state.network.params["kernel"])})
        first, one = session.run(KEY, start(), DATA, 20, until=10)
        second, two = session.run(KEY, first, DATA, 20)
        scores = [evaluate(first)["score"], evaluate(second)["score"]]
    return bits([first, second]) + told(one) + told(two) + bits(scores)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The folder of such a run that was stopped in mid-session, and what it would have given."""
    folder = tmp_path_factory.mktemp("kept")
    expected = ask(folder)
    lines = (folder / ANSWERS).read_bytes().splitlines(keepends=True)
    (folder / ANSWERS).write_bytes(b"".join(lines[:-1]))
    with remember(folder) as memory, pytest.raises(Pulled):
        memory.session(SESSION).run(jax.random.key(8), start(), DATA, 50, watch=pull_after(5, memory))
    return folder, expected


def damage(folder, expected, tmp_path, changes):
    """Asks again after each change of one file: the same answers, or a sentence."""
    refused = 0
    for number, (path, content) in enumerate(changes):
        copy = tmp_path / str(number)
        shutil.copytree(folder, copy)
        (copy / path).write_bytes(content)
        try:
            assert ask(copy) == expected, (path, number)
        except ValueError as error:
            assert "altered" in str(error) or "another" in str(error), error
            refused += 1
        shutil.rmtree(copy)
    return refused


def flips(folder, count, seed):
    rng, files = np.random.default_rng(seed), sorted(path for path in folder.rglob("*") if path.is_file())
    lengths = np.array([path.stat().st_size for path in files])
    for at in rng.integers(lengths.sum(), size=count):
        number = int(np.searchsorted(np.cumsum(lengths), at, side="right"))
        content = bytearray(files[number].read_bytes())
        content[int(at - lengths[:number].sum())] ^= int(rng.choice([1, 4, 32, 128, 255]))
        yield files[number].relative_to(folder), bytes(content)


def cuts(folder, each):
    rng = np.random.default_rng(1)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for length in {0, len(content) - 1, *map(int, rng.integers(len(content), size=each))} - {-1}:
            yield path.relative_to(folder), content[:length]


@pytest.mark.rotating
def test_altered_bytes_are_found_or_harmless(kept, tmp_path):
    damage(*kept, tmp_path, flips(kept[0], 60, seed=0))


@pytest.mark.rotating
def test_files_cut_short_are_found_or_harmless(kept, tmp_path):
    damage(*kept, tmp_path, cuts(kept[0], 1))


@pytest.mark.slow
def test_two_thousand_altered_bytes(kept, tmp_path):
    damage(*kept, tmp_path, flips(kept[0], 2000, seed=1))


@pytest.mark.slow
def test_many_cuts_of_every_file(kept, tmp_path):
    damage(*kept, tmp_path, cuts(kept[0], 40))


def test_a_sound_state_of_another_session_is_not_taken(kept, tmp_path):
    """Nothing that orbax checks itself is wrong with it."""
    copy = shutil.copytree(kept[0], tmp_path / "copy")
    one, other = sorted((copy / STATES).iterdir())[:2]
    manifest = (one / checkpoints.MANIFEST).read_bytes()
    shutil.rmtree(one)
    shutil.copytree(other, one)
    (one / checkpoints.MANIFEST).write_bytes(manifest)
    said = []
    assert ask(copy, said.append) == kept[1] and "altered" in said[0]
    shutil.rmtree(one)
    shutil.copytree(other, one)  # with its own manifest
    said = []
    assert ask(copy, said.append) == kept[1] and "another session" in said[0]


def test_missing_files_cost_their_sessions_only(kept, tmp_path):
    folder, expected = kept
    for path in sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file()):
        if path.name != ANSWERS:
            copy = shutil.copytree(folder, tmp_path / "copy")
            (copy / path).unlink()
            assert ask(copy) == expected, path
            shutil.rmtree(copy)


def test_an_older_save_serves_where_the_newest_is_damaged(tmp_path):
    with pytest.raises(Pulled), remember(tmp_path) as memory:
        memory.session(SESSION).run(KEY, start(), DATA, 30, watch=pull_after(4, memory))
    older, newest = sorted((tmp_path / REACHED).iterdir())
    manifest = newest / checkpoints.MANIFEST
    manifest.write_bytes(manifest.read_bytes().replace(b"float32", b"float64", 1))
    said, seen = [], []
    with remember(tmp_path, say=said.append) as memory:
        state, _ = memory.session(SESSION).run(
            KEY, start(), DATA, 30, watch=lambda s, losses: seen.append(len(losses)) or ""
        )
    assert bits(state) == bits(SESSION.run(KEY, start(), DATA, 30)[0])
    assert seen[0] == int(older.name.rpartition("-")[2]) and "altered" in said[0]


def test_a_disk_that_takes_nothing_costs_nothing_that_was_there(tmp_path, monkeypatch):
    first = ask(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    said = []
    with remember(tmp_path, say=said.append) as memory:

        def full(path, arrays, about):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(checkpoints, "save", full)
        state, _ = memory.session(SESSION).run(jax.random.key(9), start(), DATA, 20)
        memory.flush()
        assert bits(state) == bits(SESSION.run(jax.random.key(9), start(), DATA, 20)[0])
        assert len(said) == 1 and "No space left" in said[0] and "goes on" in said[0]
    monkeypatch.undo()
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert ask(tmp_path) == first


def test_the_clock_goes_on_and_what_is_known_takes_no_time(tmp_path):
    with remember(tmp_path) as memory:
        memory.recalling("slow", lambda number: {"answer": number})(1)
        memory.flush()
    rows = [json.loads(line) for line in (tmp_path / ANSWERS).read_text().splitlines()]
    row = next(row for row in rows if row.get("name") == "slow")
    with remember(tmp_path) as memory:
        memory._known[row["asked"]]["at"] = 1000.0
        assert memory.clock() < 1000
        memory.recalling("slow", never)(1)
        assert 1000 <= memory.clock() < 1100


def test_digests_tell_apart_what_differs():
    state = start()
    trees = [
        (state, 1), (state, 1.0), (state, None), (start(1), 1), (start(0, mask=1), 1), {"a": KEY}, {"b": KEY},
        {"a": jax.random.key(4)}, {"a": jax.random.key(3, impl="rbg")}, {"a": np.zeros((2, 3))},
        {"a": np.zeros((3, 2))}, {"a": np.zeros((2, 3), np.float32)}, {"a": np.array(-0.0)}, {"a": np.array(0.0)}, "x",
    ]  # fmt: skip
    found = [digest("name", tree) for tree in trees] + [digest("other", trees[0])]
    assert len({*found}) == len(found) and found[0] == digest("name", (start(), 1))


@pytest.mark.parametrize(
    "arrays", [{}, {"empty": np.zeros((0, 3))}, {"a": np.float32(1), "b": jnp.arange(3, dtype=jnp.bfloat16)}]
)
def test_a_checkpoint_gives_back_what_it_took(tmp_path, arrays):
    checkpoints.save(tmp_path / "one", arrays, {"text": "x"})
    checkpoints.save(tmp_path / "one", arrays, {"text": "y"})
    found, about = checkpoints.load(tmp_path / "one")
    assert about == {"text": "y"} and bits(found) == bits(arrays)
    assert [each.dtype for each in found.values()] == [np.asarray(each).dtype for each in arrays.values()]
    manifest = json.loads((tmp_path / "one" / checkpoints.MANIFEST).read_bytes())
    manifest["arrays"].append(["more", "float32", [7]])  # sound by itself, and not what the files hold
    manifest["check"] = checkpoints._check({name: value for name, value in manifest.items() if name != "check"})
    (tmp_path / "one" / checkpoints.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(checkpoints.CheckpointError, match=r"not the .* bytes of its manifest"):
        checkpoints.load(tmp_path / "one")
    with pytest.raises(checkpoints.CheckpointError, match="at most"):
        checkpoints.load(checkpoints.save(tmp_path / "two", {"a": np.zeros(100)}, {}), most=799)


def test_states_lie_where_the_page_says(tmp_path):
    ask(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {ANSWERS, STATES, REACHED}
    assert len(list((tmp_path / STATES).iterdir())) == 2


def test_a_run_of_other_precision_is_refused_in_a_sentence(tmp_path):
    with Memory.open(tmp_path / "32", {"config": 1}):
        pass
    with jax.enable_x64(True):
        with pytest.raises(ValueError, match="another bits: None, not 64"):
            Memory.open(tmp_path / "32", {"config": 1})
        with Memory.open(tmp_path / "64", {"config": 1}) as memory:
            assert memory.recalling("evaluate", lambda state: {"score": 0.1})(jnp.ones(2)) == {"score": 0.1}
    with pytest.raises(ValueError, match="another bits: 64, not None"):
        Memory.open(tmp_path / "64", {"config": 1})
