"""Nothing is neither offered nor refused: what becomes of every axis of a leaf, and the true reason where it stays."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskprune import choose, compact, disable, effective_params, init_network, trace


X = jax.ShapeDtypeStruct((5, 3), jnp.float32)
TOKENS = jax.ShapeDtypeStruct((2, 5), jnp.int32)


@pytest.fixture
def draw(rng):
    return lambda **shapes: {name: jnp.asarray(rng.normal(size=s), jnp.float32) for name, s in shapes.items()}


def exact(apply, params, groups, x, chosen):
    """Whether the network without these masks computes what the masked one does."""
    network = init_network(params, groups)
    masked = disable(network, choose(network, chosen))
    small_apply, small = compact(apply, masked, x)
    np.testing.assert_allclose(small_apply(small, x), apply(effective_params(masked), x), rtol=1e-5, atol=1e-5)
    return {name: leaf.shape for name, leaf in small.items()}


def disentangled(p, x):
    """Attention by content and by relative place: each of the two kernels makes channels, and reads the other's."""
    q, k, table = x @ p["q"], x @ p["k"], p["table"]
    scores = q @ k.T + q @ (table @ p["k"]).T + (k @ (table @ p["q"]).T).T
    return jnp.tanh(scores) @ (x @ p["v"]) @ p["o"]


def test_two_kernels_that_read_each_other_are_one_group(draw, rng):
    params = draw(q=(3, 4), k=(3, 4), v=(3, 2), o=(2, 2), table=(5, 3))
    groups = trace(disentangled, params, X)
    assert {(piece.leaf, piece.axis, piece.role) for piece in groups["q"].slices} == {("q", 1, "out"), ("k", 1, "out")}
    x = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
    assert exact(disentangled, params, groups, x, {"q": [0, 2]})["k"] == (3, 2)
    assert "it meets axis 0 of argument 1" in groups.refused["table[0]"]
    assert "multiplied with `q[0]`" in groups.refused["table[1]"] or "with `k[0]`" in groups.refused["table[1]"]


def test_tied_weights_make_and_read(draw, rng):
    apply = lambda p, x: jax.nn.relu(x @ p["e"]) @ p["e"].T
    params, x = draw(e=(3, 6)), jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
    groups = trace(apply, params, x)
    assert exact(apply, params, groups, x, {"e": [0, 3]}) == {"e": (3, 4)}
    assert set(groups.refused) == {"e[0]"}


def test_a_leaf_that_nothing_uses_is_no_mask_and_is_listed(draw):
    params = {**draw(a=(3, 4), z=(4, 2), aux=(4, 6), dead=(4, 5), one=()), "order": jnp.arange(3)}

    def apply(p, x):
        hidden = jax.nn.relu(x @ p["a"])
        jnp.tanh(hidden @ p["dead"])  # its result is dropped
        return hidden @ p["z"]

    groups = trace(apply, params, X)
    assert groups.names == ("a",) and {piece.leaf for piece in groups["a"].slices} == {"a", "z", "dead"}
    unused = {what for what, why in groups.refused.items() if why == "no given function uses it"}
    assert unused == {"aux", "one", "order", "dead[1]"}


def test_dead_code_inside_of_a_compiled_function(draw):
    inner = jax.jit(lambda p, h: (h @ p["z"], h @ p["aux"]))
    apply = lambda p, x: inner(p, jax.nn.relu(x @ p["a"]))[0]
    groups = trace(apply, draw(a=(3, 4), z=(4, 2), aux=(4, 6)), X)
    assert groups.names == ("a",) and groups.refused["aux[1]"] == "no given function uses it"


def test_leaves_that_are_not_floating_point(draw):
    params = {**draw(a=(3, 4), z=(4, 2)), "order": jnp.arange(4), "phase": jnp.ones(4, jnp.complex64)}
    apply = lambda p, x: ((x @ p["a"])[:, p["order"]] * p["phase"].real[None]) @ p["z"]
    refused = trace(apply, params, X).refused
    assert refused["order"] == "it holds int32, which is not floating point"
    assert "complex64" in refused["phase"] and "indexed by data" in refused["a[1]"]


def test_rows_that_read_codes_and_constants_are_refused(draw):
    apply = lambda p, t: jax.nn.relu(jax.nn.one_hot(t, 6) @ p["table"]) @ p["z"]
    groups = trace(apply, draw(table=(6, 4), z=(4, 2)), TOKENS)
    assert groups.names == ("table",)
    assert "no parameter makes what it reads" in groups.refused["table[0]"]


def test_positions_of_one_axis_have_reasons_of_their_own(draw):
    """Four channels go to the output, four are read on."""
    apply = lambda p, x: ((x @ p["a"])[:, :4], jax.nn.relu(x @ p["a"])[:, 4:] @ p["z"])
    groups = trace(apply, draw(a=(3, 8), z=(4, 2)), X)
    assert groups["a"].size == 4
    assert groups.refused["a[1]"] == "positions 0 to 3: its channels are the output of the network"


def test_windows_are_accounted_for_and_do_not_flood_the_table(draw):
    conv = lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    apply = lambda p, x: conv(jax.nn.relu(conv(x, p["a"])), p["z"])
    groups = trace(apply, draw(a=(3, 3, 2, 4), z=(3, 3, 4, 2)), jax.ShapeDtypeStruct((1, 8, 8, 2), jnp.float32))
    windows = [f"{leaf}[{axis}]" for leaf in "az" for axis in (0, 1)]
    assert all("slides over" in groups.refused[window] for window in windows)
    assert set(groups.refused) == {*windows, "a[2]", "z[3]"}
    assert str(groups).splitlines()[2:] == ["z       kept  its channels are the output of the network"]


def embedding(p, tokens):
    return jnp.sort(p["table"][tokens] + p["place"][None], axis=-1) @ p["z"]


def test_every_axis_of_a_layer_has_its_own_reason(draw):
    groups = trace(embedding, draw(table=(9, 4), place=(5, 4), z=(4, 2)), TOKENS)
    refused = groups.refused
    assert "indexed by data" in refused["table[0]"] and "sort" in refused["table[1]"]
    assert "it meets axis 1 of argument 1" in refused["place[0]"]
    assert set(refused["table"].split("; ")) == {refused["table[0]"], refused["table[1]"]}
    with pytest.raises(KeyError, match=r"Nothing is refused of `tabel`.*did you mean `table"):
        _ = refused["tabel"]


def wrapped(inner):
    """The same in a function that is compiled, differentiated anew, or repeated."""
    return lambda p, x: jax.lax.scan(lambda c, _: (jax.checkpoint(jax.jit(inner))(p, c), None), x, None, 2)[0]


def sorted_and(p, x):
    return jnp.sort(x @ p["a"], -1) + x @ p["b"]


MEETS = {
    "the input": (lambda p, x: (x + x @ p["a"]) @ p["z"], "a[1]", "it meets axis 1 of argument 1 (test_account.py"),
    "the input, moved": (
        lambda p, x: (jnp.tanh(x).T[None].sum(0).T * 2 + x @ p["a"]) @ p["z"],
        "a[1]",
        "it meets axis 1 of argument 1",
    ),
    "what a reader reads": (lambda p, x: x @ p["a"], "a[0]", "it is multiplied with axis 1 of argument 1"),
    "another leaf": (lambda p, x: sorted_and(p, x) @ p["z"], "b[1]", "it meets `a[1]` (test_account.py"),
    "another leaf's cause": (lambda p, x: sorted_and(p, x) @ p["z"], "b[1]", "which stays: these channels are sorted"),
    "a chain": (
        lambda p, x: (x @ p["c"] + sorted_and(p, x)) @ p["z"],
        "c[1]",
        "which stays: these channels are sorted",
    ),
    "what a primitive makes": (
        lambda p, x: (jnp.fft.fft(x.T).real.T + x @ p["a"]) @ p["z"],
        "a[1]",
        "it meets what `fft` makes",
    ),
    "an input joined": (
        lambda p, x: jnp.concatenate([x, x], 1) @ p["wide"],
        "wide[0]",
        "it is multiplied with axis 1 of argument 1",
    ),
    "inside of transformations": (
        wrapped(lambda p, x: jnp.tanh(x + x @ p["a"])),
        "a[0]",
        "it is multiplied with axis 1 of argument 1",
    ),
    "the output": (lambda p, x: x @ p["a"], "a[1]", "the output of the network"),
}


@pytest.mark.parametrize(("apply", "axis", "why"), MEETS.values(), ids=MEETS.keys())
def test_a_reason_names_what_stays(draw, apply, axis, why):
    params = draw(a=(3, 3), b=(3, 3), c=(3, 3), z=(3, 2), wide=(6, 2))
    found = trace(apply, params, X).refused[axis]
    assert why in found and "channels that stay" not in found


PACKAGE = """
import functools, jax, jax.numpy as jnp

def dense(p, name, x):
    return x @ p[name]

def network(p, x):
    return jnp.sort(dense(p, "a", x), axis=-1) @ p["z"]   # line 8

@jax.jit
def compiled(p, x):
    hidden = jax.nn.relu(dense(p, "a", x))
    return jnp.sort(hidden, axis=-1) @ p["z"]   # line 13

@functools.lru_cache
def nothing(): ...
"""


@pytest.mark.parametrize(("function", "line"), [("network", 8), ("compiled", 13)])
@pytest.mark.parametrize("home", ["site-packages", "work"])
def test_the_line_of_a_packaged_network_is_its_own(draw, tmp_path, monkeypatch, function, line, home):
    name = f"networks_in_{home.replace('-', '_')}"
    (tmp_path / home / name).mkdir(parents=True)
    (tmp_path / home / name / "net.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path / home)
    packaged = getattr(importlib.import_module(f"{name}.net"), function)
    why = trace(lambda p, x: packaged(p, x), draw(a=(3, 4), z=(4, 2)), X).refused["a[1]"]
    assert f"({name + '/' if home == 'site-packages' else ''}net.py:{line})" in why


def test_protecting_a_layer_leaves_what_it_reads_alone(draw):
    apply = lambda p, x: jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["b"]) @ p["z"]
    groups = trace(apply, draw(a=(3, 4), b=(4, 5), z=(5, 2)), X, protect=["b"])
    assert groups.names == ("a",) and groups.refused["b[1]"] == "protected by `b`"
    assert groups.refused["z[0]"] == "protected by `b`"
