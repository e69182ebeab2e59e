"""Every export is read back, at other sizes than it was written with, and computes what the function computes."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from toys import needs_onnx
from zoo.entry import pictures, randomize

import maskprune as mp
import maskprune.nnx
from maskprune.conv import OWN
from maskprune.removal.export import PROGRAMS, programs
from maskprune.removal.export.symbolic import find_free


def small_fcn():
    """A compacted FCN of the blocked form."""
    model = mp.models.fcn((3, 4), kernel=3)
    params = randomize(2, model.init(jax.random.key(0)))
    network = mp.init_network(params, model.groups)
    network = mp.disable(network, mp.choose(network, {"conv1": [1], "conv2": [0, 3]}))
    plan = mp.make_plan(network.groups, network.enabled)
    return *mp.compact(model.apply, network, pictures(0, 1, 8, 8, 1)), plan


def small_unet():
    """A strided convolution and one back, joined with a skip; batch norm; a global gate."""
    module = Joined(nnx.Rngs(0))
    apply, params, state = maskprune.nnx.from_module(module)
    params, state = randomize(5, (params, state))
    x = pictures(8, 2, 12, 12, 3)
    groups = mp.trace(apply, params, x, model_state=state)
    network = mp.init_network(params, groups)
    network = mp.disable(network, mp.choose(network, {group.name: [0] for group in groups if group.size > 1}))
    small_apply, small_params = mp.compact(apply, network, x, model_state=state)
    return small_apply, small_params, mp.make_plan(groups, network.enabled).cut(state, state=True), x


class Joined(nnx.Module):
    def __init__(self, rngs):
        self.norm, self.gate = nnx.BatchNorm(4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)
        self.first = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.down = nnx.Conv(4, 5, (3, 3), strides=2, rngs=rngs)
        self.up = nnx.ConvTranspose(5, 3, (2, 2), strides=(2, 2), rngs=rngs)
        self.last = nnx.Conv(7, 2, (1, 1), rngs=rngs)

    def __call__(self, x):
        skip = nnx.relu(self.norm(self.first(x)))
        skip = skip * nnx.sigmoid(self.gate(skip.mean((1, 2))))[:, None, None, :]
        deep = self.up(nnx.max_pool(nnx.relu(self.down(skip)), (2, 2), (1, 1), "SAME"))
        return self.last(jnp.concatenate([skip, deep], axis=-1))


@pytest.fixture(params=sorted(PROGRAMS))
def ending(request):
    if request.param == ".onnx":
        needs_onnx()
    return request.param


def test_a_program_takes_pictures_of_any_size(ending, tmp_path):
    apply, params, _ = small_fcn()
    found = mp.export(apply, params, tmp_path / f"net{ending}", inputs=[pictures(1, 1, 8, 8, 1)])
    assert found.shapes == ("(n, h, w, 1)",) and found.note == "" and found.difference < 1e-5
    program = mp.load_program(found.path)
    for shape in ((1, 8, 8, 1), (2, 13, 7, 1), (3, 1, 40, 1)):
        x = pictures(3, *shape)
        np.testing.assert_allclose(program(x), apply(params, x), rtol=1e-5, atol=1e-5)


@pytest.mark.rotating
def test_what_cannot_stay_free_is_said(ending, tmp_path):
    apply, params, state, x = small_unet()
    found = mp.export(apply, params, tmp_path / f"net{ending}", inputs=[x], model_state=state)
    assert found.shapes == ("(n, 2*h, 2*w, 3)",) and "multiples of 2" in found.note
    program, y = mp.load_program(found.path), pictures(9, 1, 8, 20, 3)
    np.testing.assert_allclose(program(y), apply(params, state, y), rtol=1e-4, atol=1e-4)


def test_a_flattened_picture_fixes_its_size(ending, tmp_path):
    params = randomize(0, {"a": jnp.ones((24, 3))})
    apply = lambda params, x: x.reshape(x.shape[0], -1) @ params["a"]
    found = mp.export(apply, params, tmp_path / f"net{ending}", inputs=[pictures(1, 2, 4, 3, 2)])
    assert found.shapes == ("(n, 4, 3, 2)",) and found.note.startswith("all sizes but the batch are fixed")
    x = pictures(2, 5, 4, 3, 2)
    np.testing.assert_allclose(mp.load_program(found.path)(x), apply(params, x), rtol=1e-5, atol=1e-5)


def test_several_inputs_and_outputs(ending, tmp_path):
    apply = lambda params, a, b: {"sum": a @ params + b["c"], "mean": jnp.mean(a)}
    inputs = [pictures(1, 2, 3), {"c": pictures(2, 2, 4)}]
    params = pictures(0, 3, 4)
    found = mp.export(apply, params, tmp_path / f"net{ending}", inputs=inputs)
    assert found.shapes == ("(n, 3)", "(n, 4)")
    back = mp.load_program(found.path)(pictures(3, 5, 3), {"c": pictures(4, 5, 4)})
    expected = apply(params, pictures(3, 5, 3), {"c": pictures(4, 5, 4)})
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.rotating
def test_the_users_shapes_are_taken(ending, tmp_path):
    apply, params, _ = small_fcn()
    x = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    found = mp.export(apply, params, tmp_path / f"net{ending}", inputs=[x], shapes=["n, 8, 2*w, 1"])
    assert found.shapes == ("(n, 8, 2*w, 1)",) and found.difference is None
    assert mp.load_program(found.path)(np.zeros((2, 8, 6, 1), np.float32)).shape == (2, 8, 6, 1)
    with pytest.raises(Exception, match=r"(?i)dimension|shape|divisible"):
        mp.load_program(found.path)(np.zeros((2, 7, 6, 1), np.float32))
    with pytest.raises(ValueError, match="2 entries for 1 input"):
        mp.export(apply, params, found.path, inputs=[x], shapes=["n", "m"])
    with pytest.raises(ValueError, match="does not run on the shapes n, 8, 8, 2"):
        mp.export(apply, params, found.path, inputs=[x], shapes=["n, 8, 8, 2"])


def test_the_convolution_is_that_of_xla(tmp_path):
    apply, params, _ = small_fcn()
    x = pictures(1, 1, 8, 8, 1)
    text = str(jax.make_jaxpr(programs.portable(apply, params))(x))
    assert not any(name in text for name in OWN) and text.count("conv_general_dilated") == 3
    assert "HIGHEST" in text
    wrong = dict(params, conv1={**params["conv1"], "kernel": params["conv1"]["kernel"] * 1.01})
    assert np.abs(programs.portable(apply, wrong)(x) - programs.portable(apply, params)(x)).max() > 1e-4


def test_a_program_that_computes_otherwise_is_removed(ending, tmp_path, monkeypatch):
    save, load = PROGRAMS[ending]
    monkeypatch.setitem(PROGRAMS, ending, (save, lambda path: lambda *inputs: load(path)(*inputs) + 0.01))
    apply, params, _ = small_fcn()
    with pytest.raises(mp.ExportError, match=r"other numbers.*by 0\.01"):
        mp.export(apply, params, tmp_path / f"net{ending}", inputs=[pictures(1, 1, 8, 8, 1)])
    assert not list(tmp_path.iterdir())


def test_inputs_of_one_size_share_their_symbols():
    free = find_free(lambda a, b, c: (a + b, c), [pictures(0, 2, 8, 8, 1)] * 2 + [pictures(0, 3, 6, 8, 1)])
    assert free.shapes == ("(n, h, w, 1)", "(n, h, w, 1)", "(n2, h2, w, 1)")
    assert find_free(lambda x: x.reshape(4), [pictures(0, 2, 2)]).note.startswith("all sizes are fixed")
    note = find_free(lambda x: x.reshape(x.shape[0], 4, 4), [pictures(0, 2, 4, 4, 1)]).note
    assert note.startswith("all sizes but the batch are fixed")
    with pytest.raises(ValueError, match="does not run on these inputs"):
        find_free(lambda x: x @ jnp.ones((3, 2)), [pictures(0, 2, 2)])


UNUSUAL = {
    "dilated": lambda x: lax.conv_general_dilated(
        x, pictures(1, 3, 3, 4, 6), (2, 1), "SAME", rhs_dilation=(2, 2), dimension_numbers=("NHWC", "HWIO", "NHWC")
    ),
    "depthwise": lambda x: lax.conv_general_dilated(
        x, pictures(1, 3, 3, 1, 8), (1, 1), [(0, 2), (1, 0)], feature_group_count=4,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    ),
    "negative padding": lambda x: lax.conv_general_dilated(
        x, pictures(1, 3, 3, 4, 2), (1, 1), [(-1, 2), (1, 0)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    ),
    "transposed": lambda x: lax.conv_transpose(x, pictures(1, 4, 3, 4, 2), (2, 3), "SAME"),
    "transposed, valid": lambda x: lax.conv_transpose(x, pictures(1, 2, 3, 4, 2), (3, 2), "VALID"),
    "max pool": lambda x: lax.reduce_window(x, -np.inf, lax.max, (1, 3, 2, 1), (1, 2, 1, 1), "SAME"),
    "min pool": lambda x: lax.reduce_window(x, np.inf, lax.min, (1, 3, 2, 1), (1, 2, 2, 1), "VALID"),
    "average pool": lambda x: nnx.avg_pool(x, (3, 3), (2, 2), "SAME"),
    "pixel shuffle": lambda x: x.reshape(*x.shape[:3], 2, 2, 1).transpose(0, 1, 3, 2, 4, 5).reshape(
        x.shape[0], 2 * x.shape[1], 2 * x.shape[2], 1
    ),
    "pads and slices": lambda x: lax.slice_in_dim(
        lax.rev(jnp.pad(x, ((0, 0), (1, 2), (0, 1), (0, 0)), constant_values=2.0), (2,)), 0, 4, 2, axis=3
    ),
    "softmax, sums": lambda x: jax.nn.softmax(x, axis=-1) * jnp.sum(x, axis=(1, 2), keepdims=True),
    "activations": lambda x: jnp.concatenate(
        [jax.nn.gelu(x), jax.nn.silu(x), jax.nn.softplus(x), jax.nn.elu(x), jax.nn.hard_swish(x), jnp.abs(x) ** 1.5], -1
    ),
    "norm": lambda x: (x - x.mean((1, 2), keepdims=True)) * lax.rsqrt(x.var((1, 2), keepdims=True) + 1e-5),
    "attention": lambda x: jnp.einsum("nhwc,nhvc->nhwv", x, x),
    "comparisons": lambda x: jnp.where((x > 0) & ~(x >= 1) | (x == -1), jnp.clip(x, 0.2, 0.8), jnp.round(x * 3)),
    "take": lambda x: jnp.take(x, np.array([3, 1, 1]), axis=3),
    "take along the first": lambda x: (
        jnp.take(np.arange(10.0, dtype=np.float32).reshape(5, 2), jnp.abs(x[:, 0, 0, :1]).astype(int), axis=0)
        + x.mean()
    ),
    "strided slices": lambda x: x[:, ::2, 1::3] * x[:, :1, :1, 2:3],
    "largest": lambda x: jnp.argmax(x, axis=-1).astype(jnp.float32) + jnp.cumsum(x, axis=3)[..., -1],
}  # fmt: skip


@pytest.mark.rotating
@pytest.mark.parametrize("name", UNUSUAL)
def test_onnx_covers(name, tmp_path):
    """One file each, at a free size, run at another size than it was written for."""
    needs_onnx()
    function = UNUSUAL[name]
    found = mp.export(lambda params, x: function(x), {}, tmp_path / "net.onnx", inputs=[pictures(3, 2, 8, 8, 4)])
    assert "(n, h, w, 4)" in found.shapes, found
    for shape in ((1, 16, 24, 4), (3, 13, 7, 4)):  # odd ones too: sizes are divided and rounded up inside the graph
        x = pictures(4, *shape)
        np.testing.assert_allclose(mp.load_program(found.path)(x), function(x), rtol=1e-4, atol=2e-5)


def test_onnx_fixes_sizes_where_that_helps(tmp_path):
    """A gather at places that depend on the size: constants, once the size is fixed."""
    needs_onnx()
    function = lambda params, x: x + lax.top_k(lax.iota(jnp.float32, x.shape[1]), 1)[0][0]
    found = mp.export(function, {}, tmp_path / "net.onnx", inputs=[pictures(3, 2, 8, 8, 1)])
    assert found.shapes == ("(n, 8, 8, 1)",) and "fixed: the primitive `top_k`" in found.note


def test_onnx_names_what_it_does_not_cover(tmp_path):
    pytest.importorskip("onnx")
    apply = lambda params, x: lax.scan(lambda c, x: (c + x, c), jnp.zeros(3), x)[1]
    with pytest.raises(mp.ExportError, match=r"the primitive `scan` \(at test_export.py:\d+\)"):
        mp.export(apply, {}, tmp_path / "net.onnx", inputs=[pictures(1, 2, 3)])
    assert not list(tmp_path.iterdir())


# Weights alone


@pytest.fixture(params=[".safetensors", ".orbax"])
def arrays_ending(request):
    if request.param == ".safetensors":
        pytest.importorskip("safetensors")
    return request.param


def test_weights_come_back(arrays_ending, tmp_path):
    _, params, plan = small_fcn()
    state = {"norm": [jnp.ones(3), jnp.arange(2)]}
    path = mp.export(None, params, tmp_path / f"net{arrays_ending}", model_state=state, plan=plan).path
    found = mp.load_arrays(path)
    assert found.plan == plan and set(found.model_state["norm"]) == {"0", "1"}
    like = mp.Arrays(params, state)
    found = mp.load_arrays(path, like=like)
    assert jax.tree.structure(found[:2]) == jax.tree.structure(like[:2])
    for a, b in zip(jax.tree.leaves(found[:2]), jax.tree.leaves(like[:2]), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    wide = {**params, "conv1": {**params["conv1"], "bias": jnp.ones(9)}}
    with pytest.raises(ValueError, match=r"`conv1/bias` is to have the shape \(9,\), but .* has \(2,\)"):
        mp.load_arrays(path, like=mp.Arrays(wide, state))
    with pytest.raises(ValueError, match=r"`more` is to have .* lacks it"):
        mp.load_arrays(path, like=mp.Arrays({**params, "more": jnp.ones(1)}, state))
    mp.export(None, {"a": jnp.ones(2)}, path)  # replaces, without a state or a plan
    again = mp.load_arrays(path)
    assert list(again.params) == ["a"] and again.model_state is None and again.plan is None


def test_safetensors_of_others_are_parameters(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    numpy.save_file({"conv/kernel": np.ones((2, 3), np.float32)}, tmp_path / "net.safetensors")
    assert mp.load_arrays(tmp_path / "net.safetensors").params["conv"]["kernel"].shape == (2, 3)
    (tmp_path / "net.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="no safetensors file"):
        mp.load_arrays(tmp_path / "net.safetensors")


def test_paths_that_collide_are_refused(tmp_path):
    with pytest.raises(ValueError, match="same path"):
        mp.export(None, {"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}}, tmp_path / "net.orbax")


# Mistakes


def test_mistakes_are_named(tmp_path):
    apply, params, _ = small_fcn()
    with pytest.raises(ValueError, match=r"ends in none of .stablehlo, .onnx, .safetensors, .orbax"):
        mp.export(apply, params, tmp_path / "net.pt")
    with pytest.raises(ValueError, match="Give `inputs`"):
        mp.export(apply, params, tmp_path / "net.stablehlo")
    with pytest.raises(ValueError, match="is no program"):
        mp.load_program(tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="holds no weights alone"):
        mp.load_arrays(tmp_path / "net.onnx")
    with pytest.raises(FileNotFoundError):
        mp.load_program(tmp_path / "net.stablehlo")


def test_a_damaged_program_is_refused(ending, tmp_path):
    (tmp_path / f"net{ending}").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=rf"net{ending}` is no"):
        mp.load_program(tmp_path / f"net{ending}")


def test_a_missing_package_is_named(ending, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "net.onnx").write_bytes(b"")
    with pytest.raises(ImportError, match=r'pip install "maskprune\[onnx\]"'):
        mp.load_program(tmp_path / "net.onnx")


def test_nothing_optional_is_imported_beforehand():
    code = (
        "import sys, maskprune; print([m for m in ('onnx', 'onnxruntime', 'safetensors', 'flax') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_saved_network_is_exported_in_every_form(tmp_path):
    _, params, _ = small_fcn()
    written = mp.export_saved(mp.models.save(tmp_path / "network.npz", params), tmp_path / "out")
    assert {found.path.name for found in written} >= {"network.stablehlo", "network.orbax"}
    for found in written:
        if found.shapes:
            x = pictures(0, 1, 5, 9, 1)
            back, expected = mp.load_program(found.path)(x), mp.models.load(tmp_path / "network.npz")[0](params, x)
            np.testing.assert_allclose(back, expected, rtol=1e-5, atol=1e-5)
