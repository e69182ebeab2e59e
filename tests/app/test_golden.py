"""What earlier formats wrote keeps loading: one folder of `golden/` for every format that was ever released.

A new format gets a folder of its own: `python tests/app/test_golden.py NAME` writes one. Old ones stay as they are.
"""

import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from maskprune import models
from maskprune.base.ledger import Ledger
from maskprune.masks.groups import Group, Groups, Slice
from maskprune.masks.network import init_network
from maskprune.minimizer.answers import Memory
from maskprune.minimizer.progress import digest
from maskprune.train.population import Population, PopulationReport, stack
from maskprune.train.session import Session, SessionReport
from maskprune.train.step import TrainState


GOLDEN = Path(__file__).parent / "golden"
ABOUT = {"config": {"task": "golden"}, "data": "none", "versions": {}}
GROUPS = Groups((Group("g", 3, (Slice("kernel", 1, (0, 1, 2), "out"),)),))
KEY = jax.random.key(5)


class Stopped(BaseException):
    pass


def state(step):
    """A state of numbers that no library computes: thirds, an empty array, integers and flags."""
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3) / np.float32(3)
    network = init_network({"kernel": kernel + np.float32(step), "none": np.zeros((0,), np.float32)}, GROUPS)
    kept = {"mean": np.float32(0.1)}
    return TrainState(network=network, opt_state=(np.int32(7), None), model_state=kept, step=np.int32(step))


def train(key, begun, data, steps, *, until=None, rate=1.0, watch=None):
    """A session of ten steps a chunk that adds them up."""
    for at in range(int(begun.step) + 10, steps + 1, 10):
        losses = np.arange(int(begun.step), at, dtype=np.float32) / np.float32(7)
        if watch(state(at), losses):
            break
    return state(at), SessionReport(losses, True, "", 1.5, 0.5)


def train_two(keys, begun, data, steps, *, until=None, rates=None, watch=None, alive=None):
    losses = np.array([[0.1, 0.2], [0.3, np.nan]], np.float32)
    fine, taken = np.array([True, False]), np.array([2, 1], np.int32)
    return stack([state(2), state(1)]), PopulationReport(losses, taken, fine, ("", "it was not finite"), 1.5, 0.5, 2)


def never(*arguments, **options):
    raise AssertionError("this was known already")


def stopping(state, losses):
    if len(losses) == 30:
        raise Stopped
    return ""


def ask(folder, session, population, evaluate, watch):
    """One answer of every kind, and a session that is stopped or gone on with."""
    with Memory.open(folder, ABOUT, every=0.0, say=pytest.fail) as memory:
        slow = lambda seen, losses: memory.flush() or (watch(seen, losses) if watch else "")
        told = [
            memory.session(Session(session, never, never)).run(KEY, state(0), None, 20),
            memory.population(Population(population, never, never)).run(KEY, stack([state(0), state(0)]), None, 2),
            memory.recalling("evaluate", evaluate)(state(0)),
        ]
        return told, memory.session(Session(train, never, never)).run(KEY, state(0), None, 50, watch=slow)[0]


def write(folder):
    """A memory and a network as this version writes them."""
    with pytest.raises(Stopped):
        ask(folder / "memory", train, train_two, lambda state: {"score": 0.1, "bad": float("nan")}, stopping)
    kernel = lambda *shape: np.arange(np.prod(shape), dtype=np.float32).reshape(shape) / np.float32(9)
    params = {name: {"kernel": kernel(3, 3, 1, 1), "bias": kernel(1)} for name in ("conv1", "conv2")}
    models.save(folder / "network.npz", params, about={"score": 0.5})


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.iterdir() if path.is_dir()))
def test_what_was_written_then_is_read_now(name, tmp_path):
    copy = shutil.copytree(GOLDEN / name / "memory", tmp_path / "memory")
    (one, two, scores), after = ask(copy, never, never, never, None)
    assert digest("one", one) == digest(
        "one", (state(20), SessionReport(np.arange(20, dtype=np.float32) / np.float32(7), True, "", 1.5, 0.5))
    )
    assert digest("two", two) == digest("two", train_two(None, None, None, 2))
    assert scores["score"] == 0.1 and np.isnan(scores["bad"])
    assert digest("after", after) == digest("after", state(50))
    assert Ledger.read(GOLDEN / name / "memory" / "answers.jsonl").damaged == []
    _, params = models.load(GOLDEN / name / "network.npz")
    np.testing.assert_array_equal(params["conv2"]["kernel"].reshape(-1), np.arange(9, dtype=np.float32) / np.float32(9))


if __name__ == "__main__":
    write(GOLDEN / sys.argv[1])
