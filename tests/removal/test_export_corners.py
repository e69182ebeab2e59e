"""Exports of functions with dead parts, small types, free sizes, layers without masks, and of the wrong parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from toys import needs_onnx
from zoo.entry import pictures

import maskprune as mp
from maskprune.removal.export.blame import unfit
from maskprune.removal.export.check import compare
from maskprune.removal.export.write import PROGRAMS


W = {"w": pictures(0, 3, 2)}
X = pictures(1, 5, 3)


@pytest.fixture(params=sorted(PROGRAMS))
def ending(request):
    if request.param == ".onnx":
        needs_onnx()
    return request.param


def export(apply, params, path, *inputs, **options):
    """An export, and the program in it."""
    found = mp.export(apply, params, path, inputs=inputs, **options)
    assert found.path == path and list(path.parent.iterdir()) == [path]
    return found, mp.load_program(path)


def close(found, expected, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=tolerance, atol=tolerance)


# Dead parts


def wasteful(x):
    """Two numbers that no caller reads, made by primitives that ONNX lacks."""
    return x * 2, jax.random.normal(jax.random.fold_in(jax.random.key(0), 1), (3,)), jnp.linalg.eigh(x.T @ x)


@jax.custom_jvp
def with_a_rule(x):
    return wasteful(x)


with_a_rule.defjvp(lambda primals, tangents: (wasteful(*primals), wasteful(*tangents)))


def scanned(x):
    """A loop whose carry and outputs nobody reads, beside one value that counts."""
    total, steps = lax.scan(lambda carry, row: (carry + row, jnp.sort(row)), jnp.zeros(3), x)
    return x * 2, total, steps


DEAD = {
    "plain": wasteful,
    "in a jitted function": jax.jit(wasteful),
    "in a recomputed one": jax.checkpoint(wasteful),
    "in one with a rule": with_a_rule,
    "a loop": scanned,
    "an input": lambda x: jax.jit(lambda a, b: (a * 2, b))(x, jnp.sort(x)),
}


@pytest.mark.parametrize("name", DEAD)
def test_dead_parts_are_not_in_the_way(name, ending, tmp_path):
    if ending == ".stablehlo" and name not in ("in a jitted function", "a loop"):
        pytest.skip("compiling takes its time, and what is dead does not depend on the format")
    function = lambda params, x: DEAD[name](x)[0] @ params["w"]
    _, program = export(function, W, tmp_path / f"net{ending}", X)
    close(program(X[:2]), X[:2] * 2 @ W["w"])
    if ending == ".onnx":
        import onnx

        kinds = {node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node}
        assert kinds <= {"Mul", "MatMul", "Identity", "Shape", "Gather"}  # the last two give the batch a name


def test_a_loop_keeps_what_is_read(tmp_path):
    def function(params, x):
        step = lambda carry, row: ((carry[0] + row, carry[1] * 2.0), carry[0])
        return lax.scan(step, (jnp.zeros(3), 1.0), x)[1] @ params["w"]

    export(function, W, tmp_path / "net.stablehlo", X)


def test_calls_of_python_for_their_effect_are_left_out_and_told(ending, tmp_path):
    def function(params, x):
        jax.debug.callback(lambda _: None, x)
        body = lambda carry, row: (jax.debug.callback(lambda _: None, row), (carry, row))[1]
        rows = jax.jit(lambda x: (jax.debug.callback(lambda _: None, x, ordered=True), x)[1])(x)
        unread = jax.experimental.io_callback(lambda: np.float32(0), jax.ShapeDtypeStruct((), jnp.float32))
        return (rows @ params["w"], lax.scan(body, unread, x))[0]

    found, program = export(function, W, tmp_path / f"net{ending}", X)
    assert "left out" in found.note and "`io_callback` at test_export_corners.py:" in found.note
    close(program(X), X @ W["w"])


def test_calls_of_python_that_are_read_are_refused(ending, tmp_path):
    result = jax.ShapeDtypeStruct((), jnp.float32)
    call = lambda params, x: x @ params["w"] + jax.pure_callback(lambda _: np.float32(0), result, x)
    with pytest.raises(mp.ExportError, match="callback"):
        mp.export(call, W, tmp_path / "new" / f"net{ending}", inputs=[X])
    assert not list(tmp_path.iterdir())


# Small types


def small_network(params, x, dtype):
    conv = lambda x, kernel: lax.conv_general_dilated(
        x, kernel.astype(dtype), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return conv(jnp.tanh(conv(x.astype(dtype), params["a"])), params["b"])


KERNELS = {"a": pictures(2, 3, 3, 3, 4), "b": pictures(3, 3, 3, 4, 2)}


@pytest.mark.parametrize(("kind", "whole"), [("bfloat16", True), ("bfloat16", False), ("float16", True)])
def test_halves_are_right_and_keep_their_types(kind, whole, tmp_path):
    needs_onnx()
    dtype = jnp.dtype(kind)
    cast = (lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)) if whole else lambda tree: tree
    function = lambda params, x: small_network(params, x, dtype).astype(dtype if whole else jnp.float32)
    params, x, y = cast((KERNELS, pictures(4, 2, 6, 6, 3), pictures(5, 1, 5, 8, 3)))
    found, program = export(function, params, tmp_path / "net.onnx", x)
    assert found.shapes == ("(n, h, w, 3)",) and found.difference < 16 * jnp.finfo(dtype).eps
    assert ("computed in float32" in found.note) == (kind == "bfloat16")
    close(program(y), function(params, y), 16 * float(jnp.finfo(dtype).eps))


def test_small_types_come_and_go_as_they_are(ending, tmp_path):
    function = lambda params, x: (x, x * 2, params, x > 0, jnp.argmax(x, axis=1))
    x = jnp.asarray(pictures(0, 4, 3), jnp.bfloat16)
    _, program = export(function, jnp.asarray(pictures(1, 3), jnp.bfloat16), tmp_path / f"net{ending}", x)
    close(program(x), function(jnp.asarray(pictures(1, 3), jnp.bfloat16), x), 0)


def test_a_comparison_knows_rounding_from_a_fault():
    x, params = pictures(0, 3, 8), {"w": pictures(1, 8, 4)}
    half = lambda params, x: (x.astype(jnp.bfloat16) @ params["w"].astype(jnp.bfloat16)).astype(jnp.float32)
    unit = float(jnp.finfo(jnp.bfloat16).eps)
    judge = lambda program: compare("net", program, half, (params, x), tolerance=1e-4, unit=unit)
    assert judge(lambda x: x @ params["w"]) > 1e-4
    scale = float(jnp.abs(half(params, x)).max())
    for wrong in (lambda x: x @ params["w"] + 0.3 * scale, lambda x: x @ params["w"] * jnp.nan):
        with pytest.raises(mp.ExportError, match="other numbers"):
            judge(wrong)
    with pytest.raises(mp.ExportError, match="gives the shapes"):
        judge(lambda x: x @ params["w"][:, :1])


def test_infinities_and_64_bits_are_compared(ending, tmp_path):
    function = lambda params, x, scale: jnp.where(x > 0, x * jnp.full((1, 1), scale), -jnp.inf)
    found, _ = export(function, {}, tmp_path / f"net{ending}", np.asarray(X, np.float64), 2.0)
    assert found.difference == 0


# Free sizes


def attention(params, ids, mask):
    rows = params["e"][ids]
    scores = jnp.where(jnp.tril(jnp.ones((ids.shape[1],) * 2, bool)) & mask, rows @ rows.swapaxes(1, 2), -1e9)
    return jax.nn.softmax(scores) @ rows


def conv3d(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1, 1), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))


IDS = np.arange(12, dtype=np.int32).reshape(2, 6) % 5
TABLE = {"e": pictures(0, 9, 4)}
FREE = {
    "token ids": (lambda p, ids: p["e"][ids], TABLE, [IDS], [IDS[:1, :4]], ("(n, t)",)),
    "one sequence": (lambda p, ids: p["e"][ids], TABLE, [IDS[0]], [IDS[0, :4]], ("(n)",)),
    "a square mask": (attention, TABLE, [IDS, np.eye(6) > 0], [IDS[:, :4], np.eye(4) > 0], ("(n, t)", "(t, t)")),
    "volumes": (
        lambda p, x: conv3d(x, p).mean((1, 2, 3)), pictures(0, 3, 3, 3, 2, 4),
        [pictures(1, 2, 4, 5, 6, 2)], [pictures(2, 1, 5, 4, 7, 2)], ("(n, d, h, w, 2)",),
    ),
    "sounds": (
        lambda p, x: lax.conv_general_dilated(x[..., None], p, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")),
        pictures(0, 5, 1, 4), [pictures(1, 2, 16)], [pictures(2, 1, 11)], ("(n, t)",),
    ),
    "channels first": (
        lambda p, x: lax.conv_general_dilated(x, p, (1, 1), "SAME", dimension_numbers=("NCHW", "HWIO", "NCHW")),
        pictures(0, 3, 3, 3, 4), [pictures(1, 2, 3, 6, 8)], [pictures(2, 1, 3, 5, 7)], ("(n, 3, w, c)",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FREE)
def test_sizes_are_free_at_any_rank(name, ending, tmp_path):
    if ending == ".stablehlo" and name not in ("token ids", "a square mask"):
        pytest.skip("compiling takes its time, and what is tried does not depend on the format")
    function, params, inputs, others, shapes = FREE[name]
    found, program = export(function, params, tmp_path / f"net{ending}", *inputs)
    assert found.shapes == shapes
    close(program(*others), function(params, *others))


FLAT = {"d1": {"kernel": pictures(0, 24, 4), "bias": pictures(1, 4)}}


def flattening(params, x):
    return x.reshape(x.shape[0], -1) @ params["d1"]["kernel"] + params["d1"]["bias"][None]


def deciding(params, x):
    return x * 2 if x.shape[1] > 4 else x


FIXED = {
    "flattened": (flattening, FLAT, [pictures(1, 2, 4, 3, 2)], "(n, 4, 3, 2)",
                  "all sizes but the batch are fixed: `d1/kernel` of shape (24, 4) fits no other size of axes 1 and 2"),
    "positions": (lambda p, ids: p["e"][ids] + p["pos"][None], {**TABLE, "pos": pictures(1, 6, 4)}, [IDS], "(n, 6)",
                  "all sizes but the batch are fixed: `pos` of shape (6, 4) fits no other size of axis 1 of the input"),
    "features": (lambda p, x: x @ p["w"], W, [X[0]], "(3)", "all sizes are fixed: `w` of shape (3, 2) fits no other"),
    "a decision": (deciding, {}, [pictures(0, 2, 6, 3)], "(n, 6, c)",
                   "some sizes are fixed: the code at test_export_corners.py:"),
    "numbers": (lambda p, x: x.reshape(2, 18), {}, [pictures(0, 2, 6, 3)], "(2, 6, 3)",
                "all sizes are fixed: the code at test_export_corners.py:"),
}  # fmt: skip


@pytest.mark.parametrize("name", FIXED)
def test_a_size_that_is_fixed_is_told_with_its_reason(name, tmp_path):
    function, params, inputs, shape, note = FIXED[name]
    found, _ = export(function, params, tmp_path / "net.stablehlo", *inputs)
    assert found.shapes == (shape,) and found.note.startswith(note)


def test_one_input_can_stay_free_beside_another(tmp_path):
    function = lambda params, x, ids: (flattening(params, x), ids * 2)
    found, _ = export(function, FLAT, tmp_path / "net.stablehlo", pictures(1, 2, 4, 3, 2), IDS)
    assert found.shapes == ("(n, 4, 3, 2)", "(n, t)") and "axes 1 and 2 of input 0" in found.note


def test_an_error_of_the_functions_own_blames_no_parameter():
    def function(params, x):
        raise KeyError("mine")

    try:
        function(W, X)
    except KeyError as error:
        found = unfit(error, W)
    assert found.leaves == () and found.place.startswith("test_export_corners.py:") and "mine" in str(found)


# Layers without masks


@pytest.mark.parametrize("name", ["net.stablehlo", "net.onnx", "net.safetensors", "net.orbax"])
def test_a_layer_without_masks_is_written(name, tmp_path):
    if name == "net.onnx":
        needs_onnx()
    if name == "net.safetensors":
        pytest.importorskip("safetensors")
    params = {"a": pictures(0, 3, 0), "b": jnp.zeros((0, 2), jnp.bfloat16), "c": pictures(1, 2)}
    apply = lambda params, x: jnp.tanh(x @ params["a"]) @ params["b"].astype(jnp.float32) + params["c"][None]
    mp.export(apply, params, tmp_path / name, inputs=[X])
    assert list(tmp_path.iterdir()) == [tmp_path / name]
    if name in ("net.stablehlo", "net.onnx"):
        return close(mp.load_program(tmp_path / name)(X), apply(params, X))
    found = mp.load_arrays(tmp_path / name).params
    assert {path: (leaf.shape, leaf.dtype) for path, leaf in found.items()} == {
        path: (leaf.shape, leaf.dtype) for path, leaf in params.items()
    }


@pytest.mark.parametrize("tree", [{}, {"a": jnp.zeros((0, 3))}, {"a": np.ones(2), "b": 1.5}], ids=["no", "empty", "64"])
def test_odd_trees_come_back_from_a_checkpoint(tree, tmp_path):
    mp.export(None, tree, tmp_path / "net.orbax")
    found = mp.load_arrays(tmp_path / "net.orbax").params
    assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, tree)


# Failures leave nothing


def test_what_stood_there_still_stands_where_an_export_fails(ending, tmp_path):
    path = tmp_path / f"net{ending}"
    _, program = export(lambda params, x: x @ params["w"], W, path, X)
    call = lambda params, x: jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)
    for wrong, error in (
        (call, mp.ExportError),
        (lambda params, x: x @ X, ValueError),
        (lambda params, x: (), ValueError),
    ):
        with pytest.raises(error):
            mp.export(wrong, W, path, inputs=[X])
        assert list(tmp_path.iterdir()) == [path]
    np.testing.assert_array_equal(program(X), mp.load_program(path)(X))


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "complex64", "int4"])
def test_types_that_onnx_lacks_here_are_refused(kind, tmp_path):
    needs_onnx()
    with pytest.raises(
        mp.ExportError, match=r"`net.onnx` cannot be written and read back: .*net\.onnx` is no ONNX model"
    ):
        mp.export(lambda params, x: x.astype(kind), {}, tmp_path / "net.onnx", inputs=[X])
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match=r"`net.orbax` cannot be written"):
        mp.export(None, {"a": jnp.ones(3, jnp.uint2)}, tmp_path / "net.orbax")
    assert not list(tmp_path.iterdir())


# Whose parameters


def masked_network():
    apply = lambda params, x: jax.nn.sigmoid(x @ params["a"]) @ params["b"]
    params = {"a": pictures(0, 3, 4), "b": pictures(1, 4, 2)}
    network = mp.init_network(params, mp.trace(apply, params, X))
    return apply, params, mp.disable(network, mp.choose(network, {"a": [1]}))


def test_a_network_is_written_as_it_computes(ending, tmp_path):
    apply, _, network = masked_network()
    found, program = export(apply, network, tmp_path / f"net{ending}", X)
    close(program(X), apply(mp.effective_params(network), X))
    assert "stored" not in found.note


def test_stored_parameters_are_told(tmp_path):
    apply, params, network = masked_network()
    state = mp.init_state(network, optax.sgd(0.1))
    with pytest.warns(UserWarning, match="stored by a network with disabled masks"):
        found = mp.export(apply, state.network.params, tmp_path / "net.stablehlo", inputs=[X])
    assert "stored by a network with disabled masks" in found.note
    assert "stored" in mp.export(None, params, tmp_path / "net.orbax").note  # its arrays, in a tree of one's own
    for right in (mp.effective_params(network), mp.compact(apply, network)[1], {"a": pictures(0, 3, 4)}):
        assert "stored" not in mp.export(None, right, tmp_path / "net.orbax").note
    with pytest.raises(TypeError, match=r"a training state: give its network, `state.network`"):
        mp.export(apply, state, tmp_path / "net.stablehlo", inputs=[X])
