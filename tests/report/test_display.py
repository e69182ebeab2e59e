"""The terminal: what is said of a round, and that quiet is quiet."""

import jax
import numpy as np
import optax
import pytest

import maskprune
from maskprune import record
from maskprune.report.display import Display


@pytest.fixture(scope="module")
def found():
    model = maskprune.models.fcn((3, 2))
    optimizer = optax.sgd(0.1)
    report = maskprune.SessionReport(np.zeros(4, np.float32), True, "", 0.1)
    scores = iter([1.0, 0.99, 0.5])
    return list(
        maskprune.minimize(
            jax.random.key(1),
            maskprune.init_state(maskprune.init_network(model.init(jax.random.key(0)), model.groups), optimizer),
            train=lambda key, state: (state, report),
            evaluate=lambda state: {"score": next(scores), "relative_rmse": 0.1},
            optimizer=optimizer,
            selector=maskprune.select.sequential(),
            limits=maskprune.Limits(rounds=2),
        )
    )


def show_all(show, found):
    with show:
        show.say("pictures [from] a folder")
        watch = show.session(show.upcoming, 4)
        assert watch(found[0].state, np.ones(4, np.float32)) == ""
        assert watch(found[0].state, np.full((2, 4), np.nan, np.float32)) == ""  # members that have died
        show.end()
        progress = show.counting("pictures")
        progress(1, 2)
        progress(2, 2)
        for each in found:
            show.verdict(each, record.history_row(each, size=record.fcn_size, spent=0))


def test_a_verdict_says_the_mask_the_blocks_and_the_reason(found, capsys):
    show_all(Display(), found)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "pictures [from] a folder"  # brackets of a name are no markup
    assert "trained" in said[1] and "conv1 ■■■  conv2 ■■" in said[1]
    assert "conv1[0]" in said[2] and "kept" in said[2] and "conv1 □■■  conv2 ■■" in said[2]
    assert "conv1[1]" in said[3] and "refused" in said[3] and "0.5000 stays below 0.9500" in said[3]
    assert len(said) == 4


def test_a_reason_is_no_markup(found, capsys):
    said = "best of 2: 0.9 stays below 1; layer[bold]: training failed"
    with Display() as show:
        show.verdict(found[1]._replace(reason=said), record.history_row(found[1], size=record.fcn_size, spent=0))
    assert said in capsys.readouterr().out


def test_the_next_round_says_how_many_are_left(found):
    show = Display(quiet=True)
    show_all(show, found)
    assert show.upcoming.startswith(f"round 3 (at most {found[-1].left} to go")


def test_quiet_says_nothing(found, capsys):
    show_all(Display(quiet=True), found)
    assert capsys.readouterr().out == ""
