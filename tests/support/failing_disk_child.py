"""Run with `failing_disk.c` loaded first: a short run on a disk of which every call that writes fails in turn.

    python failing_disk_child.py FOLDER KIND STRIDE

KIND is "once" or "lasting"; only every STRIDE-th pair of call and error is tried. Prints what was found as JSON.
"""

import ctypes
import errno
import json
import os
import shutil
import sys
from pathlib import Path


sys.path.append(str(Path(__file__).parents[1] / "minimizer"))
import test_answers

from maskprune.minimizer.answers import ANSWERS


ERRORS = [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS, errno.EDQUOT]
DISK = ctypes.CDLL(None)


def main(root: Path, lasting: int, stride: int) -> dict:
    expected = test_answers.ask(root / "plain")
    good = root / "good"
    with test_answers.remember(good) as memory:  # the first half is safe already
        memory.session(test_answers.SESSION).run(
            test_answers.KEY, test_answers.start(), test_answers.DATA, 20, until=10
        )
    folder, tried, told, calls = root / "tried", 0, 0, ctypes.c_long
    DISK.count_calls.restype = calls
    DISK.fail_below(str(folder).encode(), calls(-1), 0, 0)
    shutil.copytree(good, folder)
    DISK.fail_below(str(folder).encode(), calls(-1), 0, 0)
    assert test_answers.ask(folder) == expected
    total = DISK.count_calls()
    for number in range(0, total * len(ERRORS), stride):
        when, code = divmod(number, len(ERRORS))
        shutil.rmtree(folder)
        shutil.copytree(good, folder)
        said: list[str] = []
        DISK.fail_below(str(folder).encode(), calls(when), ERRORS[code], lasting)
        try:
            found = test_answers.ask(folder, said.append)
        except (OSError, ValueError) as error:  # only while it is opened, before anything is computed
            found = None
            said.append(str(error))
        happened = DISK.count_calls() > when
        DISK.fail_below(str(folder).encode(), calls(-1), 0, 0)
        where = f"call {when} of {total}, {errno.errorcode[ERRORS[code]]}"
        assert found in (None, expected), where
        assert not happened or said or not lasting, f"{where}: nobody was told"
        assert all(
            any(reason in text for reason in (os.strerror(ERRORS[code]), "cannot be", "altered", "damaged"))
            for text in said
        ), (where, said)
        check_good(folder, good, where)
        assert test_answers.ask(folder) == expected, f"{where}: afterwards"
        tried, told = tried + 1, told + bool(said)
    return {"calls": total, "tried": tried, "told": told}


def check_good(folder: Path, good: Path, where: str) -> None:
    """What was safe before is safe still: the first half is told again without training."""
    for path in good.rglob("*"):
        if path.is_file() and path.name != ANSWERS:
            assert (folder / path.relative_to(good)).read_bytes() == path.read_bytes(), f"{where}: {path.name}"
    with test_answers.remember(folder) as memory:
        session = memory.session(test_answers.SESSION._replace(run=test_answers.never))
        session.run(test_answers.KEY, test_answers.start(), test_answers.DATA, 20, until=10)


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2] == "lasting"), int(sys.argv[3]))))
