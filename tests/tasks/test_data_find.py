"""Which files of a folder are taken for pictures."""

import pytest

from maskprune.tasks.data import find_pictures


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def relative(root):
    return [path.relative_to(root).as_posix() for path in find_pictures(root)]


def test_finds_deep_sorted_and_only_pictures(tmp_path):
    touch(tmp_path, "b.PNG", "a/z.jpg", "a/b/c.tiff", "notes.txt", ".hidden.png", ".git/x.png", "new\nline.png")
    assert relative(tmp_path) == ["a/b/c.tiff", "a/z.jpg", "b.PNG", "new\nline.png"]
    assert find_pictures(str(tmp_path)) == find_pictures(tmp_path)


def test_links_neither_loop_nor_double(tmp_path):
    touch(tmp_path, "a/x.png")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "a" / "loop.png").symlink_to(tmp_path)
    (tmp_path / "b.png").symlink_to(tmp_path / "a" / "x.png")
    assert relative(tmp_path) == ["a/x.png"]


def test_voc_root_gives_only_the_photographs(tmp_path):
    touch(tmp_path, "VOC2007/JPEGImages/1.jpg", "VOC2012/JPEGImages/2.jpg", "VOC2012/SegmentationClass/2.png")
    assert relative(tmp_path) == ["VOC2007/JPEGImages/1.jpg", "VOC2012/JPEGImages/2.jpg"]
    assert relative(tmp_path / "VOC2012") == ["JPEGImages/2.jpg"]


@pytest.mark.parametrize("base", ["BSDS500/data/", "data/", ""])
def test_bsds_root_gives_only_the_photographs(tmp_path, base):
    touch(
        tmp_path, base + "images/train/1.jpg", base + "images/val/2.jpg", base + "groundTruth/train/1.png", "cover.png"
    )
    assert relative(tmp_path) == [base + "images/train/1.jpg", base + "images/val/2.jpg"]


def test_a_file_is_no_folder(tmp_path):
    touch(tmp_path, "a.png")
    with pytest.raises(NotADirectoryError, match="root="):
        find_pictures(tmp_path / "a.png")
