"""Blank pictures: black, white, grey, a single dot, against each other, in whatever measures, teaches or chooses."""

import itertools
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskprune import conv2d, data, losses, metrics, models, select
from maskprune.masks.network import init_network
from maskprune.train import curvature


def blank(level, size=16):
    return np.full((2, size, size, 1), level, np.float32)


def dot(size=16):
    picture = blank(0.0, size)
    picture[:, 3, 5] = 1.0
    return picture


BLANK = {"black": blank(0.0), "white": blank(1.0), "grey": blank(0.3), "dot": dot(), "faint": blank(1e-30)}
PAIRS = list(itertools.product(BLANK, BLANK))
LOSSES = [losses.mse, losses.mae, losses.soft_f1, partial(losses.soft_f1, ceiling=float("inf"))]
# What a score may be, worst and best; more than one number where a score is several.
RANGES = {
    metrics.soft_f1: (0, 1),
    metrics.mae: (0, 1),
    metrics.mse: (0, 1),
    metrics.relative_rmse: (0, np.inf),
    metrics.r2: (-np.inf, 1),
    metrics.psnr: (0, 100),
    metrics.ssim: (-1, 1),
    metrics.uiqi: (-1, 1),
    metrics.precision_recall_f1: (0, 1),
}
LOWER = (metrics.mae, metrics.mse, metrics.relative_rmse)


def test_every_public_score_is_in_the_list():
    found = {name for name in vars(metrics) if callable(getattr(metrics, name)) and not name.startswith("_")}
    helpers = {"picture_sums", "scores_from_sums", "f1_of", "PrecisionRecallF1", "Average", "NamedTuple", "Callable"}
    helpers |= {"crop_border", "overlap", "picture_total", "centred", "Literal", "Positive", "strict"}
    assert found - helpers == {score.__name__ for score in RANGES}


@pytest.mark.parametrize("score", RANGES, ids=lambda score: score.__name__)
def test_scores_are_finite_and_best_for_the_picture_itself(score):
    low, high = RANGES[score]
    for one, other in PAIRS:
        found, same = (np.asarray(score(BLANK[one], BLANK[each])) for each in (other, one))
        assert np.isfinite(found).all() and (low <= found).all() and (found <= high).all(), (one, other)
        if score is metrics.precision_recall_f1 and one in ("grey", "faint"):
            continue  # nothing is above the threshold, so nothing can be told apart
        np.testing.assert_allclose(same, 0 if score in LOWER else high, atol=1e-6, err_msg=one)


@pytest.mark.parametrize("loss", LOSSES, ids=["mse", "mae", "soft_f1", "soft_f1_unbounded"])
def test_losses_and_their_first_and_second_slopes_are_finite(loss):
    """Second ones where float32 holds them: that of a share grows with the inverse square of the brightness."""
    first = jax.jit(jax.value_and_grad(loss))
    second = jax.jit(lambda o, t: jax.jvp(lambda o: jax.grad(loss)(o, t), (o,), (jnp.ones_like(o),)))
    for one, other in PAIRS:
        given = [jnp.asarray(BLANK[each]) for each in (one, other)]
        found = first(*given), () if "faint" in (one, other) else second(*given)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found)), (one, other)
        assert 0 <= float(found[0][0]) <= 1 and (one != other or found[0][0] == 0)


@pytest.mark.parametrize(
    "target",
    [data.sobel(), data.canny(), data.threshold(), data.local_mean(), data.otsu(), data.adaptive()],
    ids=["sobel", "canny", "threshold", "local-mean", "otsu", "adaptive"],
)
@pytest.mark.parametrize("level", [0, 128, 255])
def test_targets_of_blank_pictures_are_blank(target, level):
    found = target(np.full((32, 32), level, np.uint8))
    inside = np.asarray(found, np.float64)[8:-8, 8:-8]
    assert np.isfinite(found).all() and np.ptp(inside) == 0


MODEL = models.fcn((3, 2), kernel=3, convolution=partial(conv2d, way="xla"))


def selectors():
    seen = lambda params, batch: MODEL.activations(params, batch[0])
    loss = lambda params, batch: losses.soft_f1(MODEL.apply(params, batch[0]), batch[1])
    residuals = lambda params, batch: (MODEL.apply(params, batch[0]) - batch[1]).reshape(-1)
    measure = lambda network, batch: curvature.gauss_newton(residuals, network, batch).matrix
    return {
        **{f"activation-{kind}": select.activation(seen, kind) for kind in ("mean", "std", "zeros")},
        **{f"taylor-{order}": select.taylor(loss, order) for order in (1, 2)},
        "fisher": select.fisher(loss),
        "ablation": select.ablation(loss),
        "information": select.information(seen, lambda batch: batch[1][..., 0]),
        "redundancy": select.redundancy(seen),
        "surgeon": select.surgeon(measure),
        "standardized": select.standardize(select.activation(seen)),
    }


@pytest.mark.rotating
@pytest.mark.parametrize("name", selectors())
def test_selectors_that_see_blank_pictures_give_finite_numbers(name, key):
    """Of a network as drawn, and of one whose masks are all dead."""
    drawn, score = MODEL.init(key), jax.jit(selectors()[name])
    dead = jax.tree.map(lambda leaf: -jnp.abs(leaf) if leaf.ndim == 1 else 0 * leaf, drawn)
    pairs = [("black", "black"), ("white", "black"), ("dot", "dot"), ("grey", "dot")]
    for params, (one, other) in itertools.product((drawn, dead), pairs):
        batch = (BLANK[one][:, :8, :8], BLANK[other][:, :8, :8])
        with jax.debug_nans(True):  # no program on the way puts out a NaN either
            found = score(key, init_network(params, MODEL.groups), batch)
        assert all(np.isfinite(values).all() for values in found.values()), (one, other)


CHILD = """
import dataclasses, tempfile
from pathlib import Path
import jax
jax.config.update("jax_debug_nans", True)
jax.config.update("jax_debug_infs", True)
import maskprune
from maskprune.app import minimizing, protocol
from maskprune.app.setup import SELECTORS, load_data, make_repair, make_selector, set_up

pictures, folder = protocol.Pictures(size=64, limit=4), Path(tempfile.mkdtemp())
tiny = protocol.Recipe(first_steps=4, steps=4, final_steps=2, crop=24, batch=2, border=4)
recipe = protocol.fill_in(tiny, "quick", pictures)
setup = set_up(load_data(pictures), maskprune.models.fcn((3, 2), kernel=3), recipe)
state = setup.start(jax.random.key(0))
dead = maskprune.zero_weights(state.network, maskprune.choose(state.network, {"conv1": range(3)}), part="all")
less = maskprune.disable(state.network, maskprune.choose(state.network, {"conv1": [0]}))
for name in SELECTORS:
    selector, key = make_selector(name, setup), jax.random.key(1)
    for network in (state.network, dead, less)[: 1 if SELECTORS[name].trains else 3]:
        selector(key, network, setup.sample(name))
for name in ("bias", "merge", "least-squares", "second-order"):
    remove = make_repair(name, setup)
    for network in (state.network, dead):
        remove(network, maskprune.choose(network, {"conv1": [1]}), setup.task.sample)
maskprune.models.save(folder / "start.npz", state.network.params)
given = {"recipe": dataclasses.replace(tiny, first_steps=None), "start_from": folder / "start.npz", "quiet": True}
minimizing.main(minimizing.Config(pictures, folder / "out", max_rounds=3, **given))
print("clean", sorted(each.name for each in (folder / "out").iterdir()))
"""


@pytest.mark.slow
def test_nothing_here_relies_on_a_nan():
    """Every selector, every repair, a whole run and its export under `jax_debug_nans` and `jax_debug_infs`."""
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root / "experiments"), str(root)])
    found = subprocess.run(
        [sys.executable, "-c", CHILD], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr[-3000:]
    assert "clean" in found.stdout and "report.html" in found.stdout
