"""Every network of the zoo, masked and compacted: the same numbers, fewer of them.

By default every different network is tried with one index set, in float64, where a wrong index cannot hide; the other
checks go over a part of the zoo each. `pytest -m slow tests/zoo` goes over everything, with twenty index sets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

import jax
import numpy as np
import pytest

from maskprune import make_plan, trace
from zoo import check
from zoo.networks import ALL, BY_ID


SETS = 20
# Flax's recurrent cells start from float32 zeros whatever the parameters are, and their scans refuse float64.
SINGLE = {"gru-nnx", "lstm-linen", "gru-linen", "bidirectional_lstm-linen", "conv_lstm-linen"}
LARGE = {
    "densenet121-linen",
    "resnet50-linen",
    "resnet56-plain",
    "mobilenet_v2-nnx",
    "resnet18-linen",
    "densenet-linen",
}
NO_MASKS = {"weight_norm-plain"}

NAMES = [name for name in BY_ID if name not in NO_MASKS]
STYLES = ("plain", "linen", "nnx", "equinox", "haiku")
FIVE = ("mlp", "cnn", "residual")
AGAIN = {f"{network}-{style}" for network in FIVE for style in STYLES[1:]}  # tested below to have the same masks
BATCH_NORM = [entry.id for entry in ALL if entry.style != "equinox"]


def marked(names: list[str], broken: Mapping[str, str] = MappingProxyType({})) -> list[object]:
    """Test cases, of which the largest and the repeated are slow and the broken expected to fail."""
    marks = {name: [pytest.mark.slow] for name in LARGE | AGAIN}
    marks |= {name: [pytest.mark.xfail(strict=True, reason=reason)] for name, reason in broken.items()}
    return [pytest.param(name, marks=marks.get(name, [])) for name in names]


@pytest.fixture(autouse=True)
def users_settings() -> Iterator[None]:
    """The networks add vectors to arrays, as people do."""
    with jax.numpy_rank_promotion("allow"):
        yield


def precision(name: str) -> tuple[bool, float]:
    """Whether a network runs in float64, and how far two ways to compute it may differ."""
    return (False, 2e-5) if name in SINGLE else (True, 1e-12)


@pytest.mark.rotating
@pytest.mark.parametrize("name", marked(NAMES))
def test_masked_is_compacted(name):
    double, tolerance = precision(name)
    case = check.load(name)
    check.check_cost(case, check.index_set(0, case.groups))
    check.check_account(case)
    with jax.enable_x64(double):
        runs = check.Runs(case, double=double)
        check.check_equal(case, check.index_set(0, case.groups), runs, tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", marked(NAMES))
def test_many_index_sets(name):
    double, tolerance = precision(name)
    case = check.load(name)
    with jax.enable_x64(double):
        runs = check.Runs(case, double=double)
        for seed in range(1, SETS):
            check.check_equal(case, check.index_set(seed, case.groups), runs, tolerance)


def check_float32(name, seeds):
    case = check.load(name)
    runs = check.Runs(case, double=False)
    for seed in seeds:
        enabled = check.index_set(seed, case.groups)
        plan = make_plan(case.groups, enabled)
        found = check.compiled(case.shrunk(plan))(*runs.ordinary.cut(plan).args)
        check.check_close(runs.masked(enabled, runs.ordinary), found, 2e-5)


SOME = ["resnet18-nnx", "unet-plain", "vit-plain", "lstm_scan-plain", "vit-equinox", "separable-haiku"]


@pytest.mark.rotating
@pytest.mark.parametrize("name", SOME)
def test_float32(name):
    check_float32(name, [2])


@pytest.mark.slow
@pytest.mark.parametrize("name", marked(NAMES))
def test_float32_everywhere(name):
    check_float32(name, range(3))


def check_empty(name, seed):
    """A group of which nothing is left: a residual branch disappears, a chain is cut."""
    double, tolerance = precision(name)
    case = check.load(name)
    enabled = check.without_a_group(seed, case.groups)
    plan = make_plan(case.groups, enabled)
    with jax.enable_x64(double):
        runs = check.Runs(case, double=double)
        found = check.compiled(case.shrunk(plan))(*runs.ordinary.cut(plan).args)
        check.check_close(runs.masked(enabled, runs.ordinary), found, tolerance)


# In the last two, channels are seen as a grid: all rows going looks like all columns going, and columns must stay.
EMPTIED = ["residual-nnx", "unet-plain", "llama-plain", "squeezenet-linen", "gru_scan-plain", "maxout-plain"]
EMPTIED += ["convnet_groupnorm-equinox"]


@pytest.mark.parametrize("name", EMPTIED)
def test_a_whole_group_goes(name):
    check_empty(name, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", marked(NAMES))
def test_any_whole_group_goes(name):
    check_empty(name, 1)


def check_gradients(name):
    double, tolerance = precision(name)
    case = check.load(name)
    draw = check.wide(case.ordinary) if double else case.ordinary
    with jax.enable_x64(double):
        check.check_gradients(case, check.index_set(3, case.groups), draw, 10 * tolerance)


@pytest.mark.rotating
@pytest.mark.parametrize(
    "name", ["cnn-equinox", "siamese-plain", "vit_fused_qkv-plain", "lstm-haiku", "custom_vjp_activation-plain"]
)
def test_gradients(name):
    check_gradients(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", marked([name for name in NAMES if name != "tied_while-plain"]))  # JAX has none for it
def test_gradients_everywhere(name):
    check_gradients(name)


def check_training(name):
    case = check.load(name)
    if case.built.train_apply is None:
        pytest.skip("no running statistics")
    with jax.enable_x64(True):
        check.check_training(case, check.index_set(4, case.groups), check.wide(case.ordinary), 1e-10)


@pytest.mark.rotating
@pytest.mark.parametrize("name", ["residual-linen", "residual-nnx", "cnn-haiku", "preact_resnet-plain"])
def test_batch_norm_in_training(name):
    check_training(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", marked(BATCH_NORM))
def test_batch_norm_in_training_everywhere(name):
    check_training(name)


@pytest.mark.rotating
@pytest.mark.parametrize("name", ["cnn-linen", "mlp-equinox", "gated_cnn-linen"])
def test_adam(name):
    case = check.load(name)
    with jax.enable_x64(True):
        check.check_adam(case, check.index_set(5, case.groups), check.wide(case.ordinary), 1e-9)


def check_second_round(name, seed):
    double, tolerance = precision(name)
    case = check.load(name)
    with jax.enable_x64(double):
        draw = check.wide(case.ordinary) if double else case.ordinary
        check.check_second_round(case, seed, draw, tolerance)


@pytest.mark.parametrize("name", ["residual-equinox", "shufflenet_v1-plain", "vit-linen", "gru_scan-plain"])
def test_second_round(name):
    check_second_round(name, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", marked(NAMES))
def test_second_round_everywhere(name):
    check_second_round(name, 1)


SIZES = {  # id: shapes of other inputs, larger and smaller
    "unet-plain": [(1, 24, 8, 1), (3, 8, 32, 1)],
    "resnet18-linen": [(3, 16, 48, 3)],
    "espcn-plain": [(1, 5, 9, 3)],
    "lstm_scan-plain": [(5, 3, 4)],
    "mlp-haiku": [(1, 6), (11, 6)],
}


@pytest.mark.rotating
@pytest.mark.parametrize("name", SIZES)
def test_other_sizes(name, rng):
    case = check.load(name)
    enabled = check.index_set(1, case.groups)
    plan = make_plan(case.groups, enabled)
    small_apply, runs = check.compiled(case.shrunk(plan)), check.Runs(case, double=False)
    for shape in [case.built.inputs[0].shape, *SIZES[name]]:
        draw = case.ordinary._replace(inputs=(rng.normal(size=shape).astype(np.float32),))
        check.check_close(runs.masked(enabled, draw), small_apply(*draw.cut(plan).args), 2e-5)


@pytest.mark.parametrize("name", ["cnn-nnx", "transformer-haiku", "tied_while-plain"])
def test_under_vmap(name):
    """Of parameters, as in a population, and of inputs at once."""
    case = check.load(name)
    enabled = check.index_set(2, case.groups)
    plan = make_plan(case.groups, enabled)
    stack = lambda draw: jax.tree.map(lambda x: np.stack([x, x[::-1]]) if x.ndim else np.stack([x, x]), draw)
    both = stack(case.ordinary)
    run = check.masked(case.built.apply, case.groups)
    expected = check.compiled(jax.vmap(lambda *args: run(enabled, *args)))(*both.args)
    members = [jax.tree.map(lambda x: np.asarray(x[0]), both), jax.tree.map(lambda x: np.asarray(x[1]), both)]
    small = jax.tree.map(lambda *x: np.stack(x), *(member.cut(plan) for member in members))
    check.check_close(expected, check.compiled(jax.vmap(case.shrunk(plan)))(*small.args), 2e-5)


@pytest.mark.parametrize("name", ["vgg_raw_einsum-plain", "swin-plain", "resnet18-nnx"])
def test_effective_params_are_zero_where_the_slices_say(name):
    case = check.load(name)
    enabled = check.index_set(3, case.groups)
    found = check.compiled(lambda *args: check.effective(case.groups, *args))(enabled, case.built.params)
    assert check.difference(check.zeroed(case.groups, enabled, case.built.params), found) == 0


SUMMED, COMPARED = "are summed while a disabled one", "are compared by a maximum while a disabled one"
REFUSED = {  # id: {layer: what the reason says}, "" for anything
    "lenet-plain": {"dense3": "the output of the network"},
    "cbam-plain": {"convs/0": COMPARED, "gates/1/second": COMPARED},
    "weight_standardized-plain": {"stem": SUMMED, "norm": SUMMED},
    "weight_norm-plain": {"": ""},
    "mlp_mixer-equinox": {"stem": SUMMED, "norm": "it meets `stem/weight[0]` (equinox_nets.py"},
    "mlp_mixer-linen": {"Conv_0": SUMMED},
    "decoder-linen": {"Embed_0/embedding[0]": "indexed by data", "positions[1]": "it meets axis 1 of argument 1"},
    "shufflenet_v2-linen": {"ShuffleUnit_1/ConvNorm_2/Conv_0": "only go all together"},
    "scanned_mlp-linen": {"ScanCheckpointScannedMlpBlock_0/Mlp_0/Dense_0": "a loop runs over these"},
    "perceiver-plain": {"latents[0]": COMPARED},
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    refused = check.load(name).groups.refused
    for layer, why in REFUSED[name].items():
        assert any(what.startswith(layer) and why in found for what, found in refused.items())
    offered = {group.name for group in check.load(name).groups}
    assert not offered & set(REFUSED[name])
    assert all(why.strip() for why in refused.values())


@pytest.mark.parametrize("name", sorted(NO_MASKS))
def test_networks_without_masks(name):
    """Weights divided by their own length: a disabled mask would divide by zero. It is said of every layer."""
    case = check.load(name)
    assert len(case.groups) == 0
    check.check_account(case)


@pytest.mark.parametrize("network", FIVE)
def test_five_styles_have_the_same_masks(network):
    found = {style: check.removed_by_each_mask(check.load(f"{network}-{style}")) for style in STYLES}
    assert all(each == found["plain"] for each in found.values()), found
    assert len(found["plain"]) >= 2


def test_the_zoo_is_large_and_its_names_are_unique():
    assert len(BY_ID) == len(ALL) >= 60
    assert {entry.style for entry in ALL} == set(STYLES)


def test_abstract_arguments_give_the_same_masks():
    built = BY_ID["residual-nnx"].build()
    params, state, inputs = jax.eval_shape(lambda: (built.params, built.model_state, built.inputs))
    assert trace(built.apply, params, *inputs, model_state=state) == check.load("residual-nnx").groups
