"""Saved networks and archives from strangers: loaded exactly, or refused soon, in a sentence and little memory."""

import io
import json
import os
import struct
import zipfile

import jax
import numpy as np
import pytest
from hostile_limits import check_limits, decide, linux
from toys import away_from_zero, same_bits

import maskprune as mp
from maskprune.base.archives import read_npz
from maskprune.tasks.data.sources import open_source


HEADER = {"format": "maskprune-fcn-1", "layers": ["conv1", "conv2"], "about": {}}
PICTURES = np.random.default_rng(0).random((1, 8, 9, 1), np.float32)


def arrays(**changes):
    found = {f"conv{n}/kernel": np.full((3, 3, 1, 1), 0.5 * n, np.float32) for n in (1, 2)}
    found |= {f"conv{n}/bias": np.ones(1, np.float32) for n in (1, 2)}
    return {**found, "header": np.array(json.dumps(HEADER)), **{k.replace("_", "/"): v for k, v in changes.items()}}


def npz(*, method=zipfile.ZIP_STORED, **changes) -> bytes:
    return zipped({f"{name}.npy": npy(array) for name, array in arrays(**changes).items()}, method)


def npy(array) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(array), allow_pickle=True)
    return file.getvalue()


def claiming(shape, descr="<f4", *, data=b"", version=1) -> bytes:
    """An array that claims a shape and holds other bytes."""
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY" + bytes((version, 0)) + len(text).to_bytes(2 if version == 1 else 4, "little") + text + data


def zipped(members, method=zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def replaced(name: str, content: bytes, method=zipfile.ZIP_DEFLATED) -> bytes:
    """A saved network with the bytes of one member replaced."""
    return zipped({f"{each}.npy": npy(array) for each, array in arrays().items()} | {name: content}, method)


def lying(content: bytes, size: int) -> bytes:
    """The same archive, of which the largest member claims another size in memory."""
    content, members = bytearray(content), []
    place = -1
    while (place := content.find(b"PK\x01\x02", place + 1)) >= 0:
        members.append((int.from_bytes(content[place + 24 : place + 28], "little"), place + 24))
    place = max(members)[1]
    content[place : place + 4] = struct.pack("<I", size)
    return bytes(content)


def hostile() -> dict[str, bytes]:
    kernel, rng = "conv1/kernel.npy", np.random.default_rng(0)
    deep = "[" * 100_000
    return {
        "bomb": lying(replaced(kernel, claiming((1 << 28,), data=rng.bytes(1 << 21))), 1 << 30),
        "within": replaced(kernel, claiming((1 << 26,), data=bytes(1 << 28))),
        "terabytes": replaced(kernel, claiming((1 << 20, 1 << 20))),
        "overflow": replaced(kernel, claiming((1 << 40, 1 << 40))),
        "minus": replaced(kernel, claiming((-1, 3))),
        "text": replaced(kernel, claiming((1,), "<U1000000000")),
        "fields": replaced(kernel, claiming((1,), [("a", "<f4")], data=bytes(4))),
        "objects": replaced(kernel, npy(np.array([{"a": 1}, None], object))),
        "long header": replaced(kernel, b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b" " * 20_000_000),
        "nested header": replaced(kernel, b"\x93NUMPY\x01\x00\x00\x20" + b"(" * 8192),
        "code as header": replaced(kernel, claiming("__import__('os').system('touch was-run')")),
        "bzip2": npz(method=zipfile.ZIP_BZIP2),
        "lzma": npz(method=zipfile.ZIP_LZMA),
        "lies": lying(npz(method=zipfile.ZIP_DEFLATED), 0xFFFFFFF0),
        "climbs": zipped({f"../../{name}.npy": npy(array) for name, array in arrays().items()}),
        "names": zipped({f"{i:09999}.npy": npy(1) for i in range(100)}),
        "members": zipped({str(i): b"" for i in range(60_000)}),
        "deep header": npz(header=np.array(deep)),
        "deep about": npz(header=np.array(json.dumps(HEADER)[:-2] + '"x":' + deep)),
        "long number": npz(header=np.array('{"format": ' + "9" * 50_000 + "}")),
        "float64": npz(conv1_kernel=np.ones((3, 3, 1, 1))),
        "float16": npz(conv1_kernel=np.ones((3, 3, 1, 1), np.float16)),
        "complex": npz(conv1_kernel=np.ones((3, 3, 1, 1), np.complex64)),
        "integers": npz(conv1_bias=np.ones(1, np.int32)),
        "backwards": npz(conv1_bias=np.ones(1, ">f4")),
        "scalar": npz(conv1_kernel=np.float32(1)),
        "many axes": npz(conv1_kernel=np.ones((1,) * 30, np.float32)),
        "nan": npz(conv1_kernel=np.full((3, 3, 1, 1), np.nan, np.float32)),
        "infinite": npz(conv2_bias=np.array([np.inf], np.float32)),
        "another member": zipped({f"{name}.npy": npy(array) for name, array in arrays().items()} | {"../../x": npy(1)}),
    }


ODD = {
    "deflated": npz(method=zipfile.ZIP_DEFLATED),
}


@linux
def test_hostile_networks_are_refused_soon(tmp_path):
    made = hostile()
    for name, content in made.items():
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "hole", "wb") as file:
        file.truncate(1 << 40)
    names = [name.encode() for name in (*made, "pipe", "hole")]
    for kind in ("network", "source"):
        found = decide(kind, tmp_path, names)
        check_limits(found)
        for name, one in found.items():
            assert one.what != "kept", f"{kind} {name}"
            assert str(tmp_path) in one.what and one.what.count("\n") == 0 and len(one.what) < 500, one.what
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("name", ODD)
def test_odd_networks_load_exactly(tmp_path, name):
    (tmp_path / "net.npz").write_bytes(ODD[name])
    _, params = mp.models.load(tmp_path / "net.npz")
    written = read_npz(tmp_path / "net.npz")
    for layer, leaves in params.items():
        for leaf, values in leaves.items():
            assert same_bits(values, written[f"{layer}/{leaf}"])
    assert [path.name for path in tmp_path.iterdir()] == ["net.npz"]


def test_a_large_archive_without_compression_is_no_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr("maskprune.base.archives.MOST_BYTES", 1000)
    pictures = np.zeros((4, 20, 20), np.uint8)
    np.savez(tmp_path / "plain.npz", pictures=pictures)
    np.savez_compressed(tmp_path / "packed.npz", pictures=pictures)
    assert len(open_source(tmp_path / "plain.npz").items) == 4
    read_npz(tmp_path / "packed.npz", most_bytes=1728)
    with pytest.raises(ValueError, match=r"would take 1728 bytes .* more than 1727 are refused, .*`numpy.savez`"):
        read_npz(tmp_path / "packed.npz", most_bytes=1727)


def test_a_claim_is_refused_before_memory_is_taken(tmp_path):
    (tmp_path / "net.npz").write_bytes(replaced("conv1/kernel.npy", claiming((1 << 20,), data=bytes(100))))
    with pytest.raises(ValueError, match=r"claims to be float32\[1048576\], and its bytes are others"):
        read_npz(tmp_path / "net.npz")


# Damage: every file that is written tells when its bytes are others


ENDINGS = (".npz", ".stablehlo", ".onnx", ".safetensors", ".orbax")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The same network in every form, by ending."""
    folder = tmp_path_factory.mktemp("net")
    model = mp.models.fcn((2,), kernel=3)
    params = away_from_zero(3, jax.eval_shape(model.init, jax.random.key(0)))
    plan = mp.make_plan(model.groups, mp.init_network(params, model.groups).enabled)
    found = {".npz": mp.models.save(folder / "net.npz", params)}
    for ending in ENDINGS[1:]:
        try:
            extra = {"plan": plan} if ending in (".safetensors", ".orbax") else {"inputs": [PICTURES]}
            found[ending] = mp.export(model.apply, params, folder / f"net{ending}", **extra).path
        except ImportError:
            continue
    return found


def load(path):
    """What a file holds, as arrays, and its plan."""
    if path.suffix == ".npz":
        return mp.models.load(path)[1], None
    if path.suffix in (".safetensors", ".orbax"):
        found = mp.load_arrays(path)
        return found.params, found.plan
    return mp.load_program(path)(PICTURES), None


def damaged(content: bytes, *, flips: int, seed=0):
    rng = np.random.default_rng(seed)
    ends = rng.integers(max(0, len(content) - 100), len(content), flips // 3)
    starts = rng.integers(0, min(len(content), 400), flips // 3)
    for place in (*ends, *starts, *rng.integers(0, len(content), flips - len(ends) - len(starts))):
        changed = bytearray(content)
        changed[place] ^= 1 << int(rng.integers(8))
        yield f"byte {place}", bytes(changed)
    for size in (0, 1, 8, *rng.integers(0, len(content), 12), len(content) - 80, len(content) - 1):
        yield f"cut at {size}", content[:size]


def check_damage(path, whole, *, flips: int) -> int:
    """Damages a file in many ways and puts it right again; how often that was told."""
    told, content, target = 0, path.read_bytes(), next(p for p in (path, *path.parents) if p.suffix in ENDINGS)
    for what, changed in damaged(content, flips=flips):
        path.write_bytes(changed)
        try:
            found = load(target)
        except ValueError as error:
            told += 1
            assert str(target) in str(error) and str(error).count("\n") == 0, what
        else:
            assert same_bits(
                found[0] if isinstance(found, tuple) else found, whole[0] if isinstance(whole, tuple) else whole
            ), what
    path.write_bytes(content)
    return told


@pytest.mark.parametrize("ending", ENDINGS[:-1])
def test_damage_is_told_or_harmless(written, ending):
    if ending not in written:
        pytest.skip("its package is not installed")
    assert check_damage(written[ending], load(written[ending]), flips=90) > 60


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of orbax's own readers, afterwards
def test_damage_of_a_checkpoint_is_told_or_harmless(written):
    whole = load(written[".orbax"])
    files = [path for path in written[".orbax"].rglob("*") if path.is_file()]
    assert sum(check_damage(path, whole, flips=12) for path in files) > 20


def test_what_is_sealed_is_read_by_others(written):
    content = written[".stablehlo"].read_bytes()
    exported = jax.export.deserialize(bytearray(content))
    np.testing.assert_array_equal(jax.jit(exported.call)(PICTURES), load(written[".stablehlo"])[0])
    bare = written[".stablehlo"].with_name("bare.stablehlo")
    bare.write_bytes(content[: content.rindex(b"\nmaskprune")])
    np.testing.assert_array_equal(load(bare)[0], load(written[".stablehlo"])[0])
    onnx = pytest.importorskip("onnx")
    model = onnx.load(written[".onnx"])
    onnx.checker.check_model(model)
    assert [entry.key for entry in model.metadata_props][-1] == "sha256"


def test_a_program_may_not_read_other_files(tmp_path, monkeypatch):
    """An ONNX model may keep its weights in files beside it: ours do not, and a stranger's would read what it likes."""
    onnx = pytest.importorskip("onnx")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_bytes(b"top secret words")
    tensor, value = onnx.TensorProto, onnx.helper.make_tensor_value_info
    for place in ("secret", f"../{tmp_path.name}/secret", str(tmp_path / "secret")):
        weights = tensor(name="w", data_type=tensor.FLOAT, dims=[4], data_location=tensor.EXTERNAL)
        weights.external_data.add(key="location", value=place)
        add = onnx.helper.make_node("Add", ["x", "w"], ["y"])
        ends = [value("x", tensor.FLOAT, [4])], [value("y", tensor.FLOAT, [4])]
        graph = onnx.helper.make_graph([add], "g", *ends, [weights])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
        (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(ValueError, match=r"net.onnx` is no ONNX model that"):
            mp.load_program(tmp_path / "net.onnx")


def test_names_in_safetensors_that_cannot_nest(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    for names in (("a", "a/b"), ("a/b", "a"), ("a/b/c", "a/b")):
        numpy.save_file({name: np.ones(2, np.float32) for name in names}, tmp_path / "net.safetensors")
        with pytest.raises(ValueError, match=r"net.safetensors`: `params/a"):
            mp.load_arrays(tmp_path / "net.safetensors")
