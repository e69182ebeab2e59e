"""The command line: pictures in, pictures out, and sentences for mistakes."""

import jax
import numpy as np
import pytest
from PIL import Image
from toys import needs_onnx

import maskprune as mp
from maskprune.app.commands import main


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    model = mp.models.fcn((2,), kernel=3)
    return mp.models.save(tmp_path_factory.mktemp("net") / "network.npz", model.init(jax.random.key(1)))


@pytest.fixture
def photos(tmp_path, rng):
    folder = tmp_path / "photos" / "deep"
    folder.mkdir(parents=True)
    Image.fromarray(rng.integers(0, 256, (9, 14, 3), np.uint8)).save(folder / "colour.png")
    Image.fromarray(rng.integers(0, 256, (6, 5), np.uint8)).save(folder.parent / "grey.bmp")
    return folder.parent


def expected(network, path):
    apply, params = mp.models.load(network)
    grey = np.asarray(Image.open(path).convert("L"), np.float32) / 255
    return np.rint(np.clip(apply(params, grey[None, :, :, None])[0, :, :, 0], 0, 1) * 255)


@pytest.mark.parametrize("form", ["npz", "stablehlo", "onnx"])
def test_one_picture(form, network, photos, tmp_path, capsys):
    if form == "onnx":
        needs_onnx()
    file = network
    if form != "npz":
        main(["export", str(network), str(tmp_path / "out"), "--formats", form])
        assert "takes (n, h, w, 1)" in capsys.readouterr().out
        file = tmp_path / "out" / f"network.{form}"
    source, target = photos / "deep" / "colour.png", tmp_path / "new" / "edges.png"
    main(["apply", str(file), str(source), str(target)])
    found = np.asarray(Image.open(target))
    assert found.shape == (9, 14) and found.dtype == np.uint8 and found.std() > 0
    np.testing.assert_allclose(found, expected(network, source), atol=1)


def test_folders_keep_their_shape_and_bad_pictures_are_named(network, photos, tmp_path, capsys):
    (photos / "broken.jpg").write_bytes(b"nothing")
    main(["apply", str(network), str(photos), str(tmp_path / "out")])
    assert {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.png")} == {
        "deep/colour.png",
        "grey.png",
    }
    found = capsys.readouterr()
    assert "broken.jpg: skipped, unreadable" in found.err and "2 written" in found.out


def test_every_format_that_is_installed(network, tmp_path):
    main(["export", str(network), str(tmp_path)])
    assert {"network.stablehlo", "network.orbax"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.rotating
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["apply", "{net}", "{photos}/grey.bmp"], "at least one picture, and last"),
        (["apply", "{net}", "{photos}/none.png", "o.png"], "none.png` does not exist"),
        (["apply", "{net}", "{photos}", "o.png"], "give a folder, not a file name"),
        (["apply", "{net}", "{photos}/empty", "{photos}/out"], "no pictures in"),
        (["apply", "{net}", "{photos}/grey.bmp", "{photos}/grey.bmp", "{photos}/out"], "2 pictures would be written"),
        (["apply", "{net}", "{photos}/grey.bmp", "{photos}/o.xyz"], "cannot be written as a picture"),
        (["apply", "{net}", "{net}", "{photos}/o.png"], "None of the pictures could be read: 1 × unreadable"),
        (["apply", "{photos}/gone.npz", "{photos}/grey.bmp", "o.png"], "gone.npz` is no file"),
        (["apply", "{photos}/grey.bmp", "{photos}/grey.bmp", "o.png"], "is not a network saved by maskprune"),
        (["apply", "{wide}", "{photos}/grey.bmp", "o.png"], "does not run on .*grey.bmp`, 5 × 6"),
        (["export", "{photos}/gone.npz", "out"], "gone.npz"),
        (["apply", "{net}", "{photos}/grey.bmp", "x" * 300], "can be no name of a file"),
        (["apply", "{net}", "{photos}/grey.bmp", "x" * 300 + ".png"], "can be no name of a file"),
        (["export", "{net}", "x" * 300], "can be no name of a file"),
        (["reproduce", "gone"], "gone` is no folder"),
    ],
)  # fmt: skip
def test_mistakes_are_sentences(arguments, words, network, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (photos / "empty").mkdir()
    wide = mp.models.save(tmp_path / "wide.npz", mp.models.fcn((2,), inputs=3).init(jax.random.key(0)))
    given = [argument.format(net=network, photos=photos, wide=wide) for argument in arguments]
    with pytest.raises(SystemExit, match=words) as caught:
        main(given)
    assert str(caught.value).startswith("maskprune: ") and not (tmp_path / "o.png").exists()
    bad_files = ("not a network saved", "could be read", "does not run on", "no pictures in")
    assert caught.value.code == (1 if any(each in words for each in bad_files) else 2)


def test_pictures_that_are_skipped_anyway_are_in_nobodys_way(network, tmp_path, rng, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    frames = [Image.fromarray(rng.integers(0, 256, (6, 5), np.uint8)) for _ in range(2)]
    for name in ("anim.gif", "anim.png", "half.gif"):
        frames[0].save(folder / name, save_all=True, append_images=frames[1:])
    frames[0].save(folder / "half.bmp")
    main(["apply", str(network), str(folder), str(tmp_path / "out")])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["half.png"]
    assert capsys.readouterr().err.count(": skipped") == 3
    frames[1].save(folder / "half.png")
    with pytest.raises(SystemExit, match="2 pictures would be written") as caught:
        main(["apply", str(network), str(folder), str(tmp_path / "other")])
    assert caught.value.code == 2 and not (tmp_path / "other").exists()
