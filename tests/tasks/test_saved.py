"""Saved networks: the round trip of every form, whole files or none, and refusals that name the file."""

import io
import json
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import away_from_zero, same_bits

from maskprune import choose, disable, init_network, models
from maskprune.removal.compaction import compact_params


HEADER = {"format": "maskprune-fcn-1", "layers": ["conv1", "conv2"], "about": {}}


def sample(widths=(3, 2), kernel: int | tuple[int, ...] = 3, **options):
    model = models.fcn(widths, kernel=kernel, **options)
    return model, away_from_zero(3, jax.eval_shape(model.init, jax.random.key(0)))


def compacted(masks):
    model, params = sample()
    network = init_network(params, model.groups)
    return model, compact_params(disable(network, choose(network, masks)))


def round_trip(folder: Path, model, params) -> None:
    apply, found = models.load(models.save(folder / "net.npz", params))
    assert jax.tree.structure(found) == jax.tree.structure(params)
    assert same_bits(found, params)
    x = jnp.asarray(np.random.default_rng(1).uniform(size=(1, 5, 6, params["conv1"]["kernel"].shape[2])), jnp.float32)
    assert same_bits(apply(found, x), jax.jit(model.apply)(params, x))


@pytest.mark.parametrize(
    ("widths", "kernel", "options"),
    [((3, 2), 3, {}), ((2, 3), (1, 5, 3), {}), ((4,), 3, {"inputs": 2, "outputs": 3}), ((), 3, {}), ((2,) * 10, 1, {})],
)
def test_round_trip(tmp_path, widths, kernel, options):
    round_trip(tmp_path, *sample(widths, kernel, **options))


@pytest.mark.parametrize("masks", [{"conv1": [0]}, {"conv1": [0, 2], "conv2": [1]}, {"conv2": [0, 1]}])
def test_round_trip_of_compacted_networks(tmp_path, masks):
    round_trip(tmp_path, *compacted(masks))


def test_facts_are_kept_and_nothing_else_is_written(tmp_path):
    path = models.save(tmp_path / "net.npz", sample()[1], about={"score": 0.5, "task": "sobel"})
    assert [file.name for file in tmp_path.iterdir()] == ["net.npz"]
    with np.load(path, allow_pickle=False) as file:
        assert json.loads(str(file["header"]))["about"] == {"score": 0.5, "task": "sobel"}


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = models.save(tmp_path / "net.npz", sample()[1])
    before = path.read_bytes()
    with pytest.raises(TypeError, match="`params` is"):
        models.save(path, {"conv1": {"kernel": np.array([object()])}})
    assert [file.name for file in tmp_path.iterdir()] == ["net.npz"]
    assert path.read_bytes() == before
    models.save(path, compacted({"conv1": [0]})[1])
    assert models.load(path)[1]["conv1"]["kernel"].shape == (3, 3, 1, 2)


def packed(header=HEADER, **changes) -> bytes:
    """A saved network of one mask, with some arrays replaced, or left out where None."""
    arrays = {f"conv{n}/kernel": np.ones((3, 3, 1, 1), np.float32) for n in (1, 2)}
    arrays |= {f"conv{n}/bias": np.ones(1, np.float32) for n in (1, 2)}
    arrays |= {"header": None if header is None else np.array(json.dumps(header))}
    arrays |= {name.replace("_", "/"): array for name, array in changes.items()}
    file = io.BytesIO()
    np.savez(file, **{name: array for name, array in arrays.items() if array is not None})
    return file.getvalue()


def npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.ones(3))
    return file.getvalue()


def zipped(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


NOT_SAVED = {
    "empty": b"",
    "text": b"not a network at all",
    "a lone array": npy(),
    "half a file": packed()[:-200],
    "a broken archive": packed()[:900] + b"\xff" * 40 + packed()[940:],
    "another archive": zipped("readme.txt", b"hello"),
    "a broken member": zipped("header.npy", b"\x93NUMPY\x01\x00nonsense"),
    "object header": packed(header=None, header_=np.array([{}], object)),
    "pickled objects": packed(conv1_kernel=np.array([{"a": 1}], object)),
}
WRONG = {
    "no header": (packed(header=None), "header"),
    "another format": (packed(header={**HEADER, "format": "other-2"}), "header does not say maskprune-fcn-1"),
    "a list as header": (packed(header=["maskprune-fcn-1"]), "header"),
    "no layers": (packed(header={**HEADER, "layers": []}), "header"),
    "layers by other names": (packed(header={**HEADER, "layers": ["a", "b"]}), "header"),
    "layers as a number": (packed(header={**HEADER, "layers": 2}), "header"),
    "missing kernel": (packed(conv2_kernel=None), "no array `conv2/kernel`"),
    "missing bias": (packed(conv1_bias=None), "no array `conv1/bias`"),
    "broken chain": (packed(conv2_kernel=np.ones((3, 3, 2, 1), np.float32)), "do not form a chain"),
    "flat kernel": (packed(conv1_kernel=np.ones((3, 3), np.float32)), "do not form a chain"),
    "even kernel": (packed(conv1_kernel=np.ones((2, 2, 1, 1), np.float32)), "do not form a chain"),
    "wide bias": (packed(conv2_bias=np.ones(2, np.float32)), "do not form a chain"),
    "text for numbers": (packed(conv1_bias=np.array(["a"])), "`conv1/bias`"),
}


def refusal(folder: Path, content: bytes) -> str:
    path = folder / "odd file.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        models.load(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("content", NOT_SAVED.values(), ids=NOT_SAVED.keys())
def test_refuses_what_is_no_saved_network(tmp_path, content):
    assert "pickle=True" not in refusal(tmp_path, content)


@pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=WRONG.keys())
def test_refuses_a_network_that_does_not_fit_together(tmp_path, content, message):
    assert message in refusal(tmp_path, content)


def test_the_untouched_sample_loads(tmp_path):
    """Otherwise the refusals above would prove nothing."""
    (tmp_path / "net.npz").write_bytes(packed())
    apply, params = models.load(tmp_path / "net.npz")
    assert apply(params, jnp.zeros((1, 2, 2, 1))).shape == (1, 2, 2, 1)


def test_a_missing_file_stays_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        models.load(tmp_path / "none.npz")
