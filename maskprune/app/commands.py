"""Finding small networks, running and exporting them, and repeating runs, from the command line.

maskprune minimize --task sobel
maskprune apply network.npz photo.jpg edges.png
maskprune apply network.npz photos/ more.png results/
maskprune export network.npz folder/ --formats onnx stablehlo
maskprune reproduce runs/sobel-20261127-130000
"""

from __future__ import annotations

import dataclasses
import io
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from maskprune.app import minimizing
from maskprune.report.terminal import outputs


# jax is imported below, inside functions, so that --help answers at once.

Format = Literal["stablehlo", "onnx", "safetensors", "orbax"]
FORMATS: tuple[Format, ...] = ("stablehlo", "onnx", "safetensors", "orbax")


@dataclasses.dataclass(frozen=True)
class Apply:
    """Run a network on pictures. Colour becomes grey as in training; results are 8-bit grey, cut to [0, 1]."""

    network: tyro.conf.Positional[Path]
    """network.npz of a search, or an exported .stablehlo or .onnx file."""
    paths: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="PICTURE [PICTURE ...] OUT"), tyro.conf.Positional]
    """Pictures of any size, or folders of them; last, the file to write, or for several pictures the folder."""


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a saved network for other programs."""

    network: tyro.conf.Positional[Path]
    """network.npz of a search."""
    folder: tyro.conf.Positional[Path]
    """Where to write network.stablehlo and so on."""
    formats: tuple[Format, ...] | None = None
    """Default: all whose packages are installed."""


@dataclasses.dataclass(frozen=True)
class Reproduce:
    """Do a finished run again, from the options that its folder holds, and compare everything but times."""

    folder: tyro.conf.Positional[Path]
    """Folder of the run."""


class UsageError(ValueError):
    """What was asked for is wrong, whatever the files hold."""


class NoFileError(UsageError, FileNotFoundError):
    """A path that was given does not exist."""


def apply(config: Apply) -> list[Path]:
    """Runs the network on every picture. Returns what was written; pictures that cannot be read are named and skipped.

    Raises:
        ValueError: There is nothing to do, the network is none, or it does not turn one grey picture into another.
        FileNotFoundError: A path does not exist.
    """
    from maskprune.report.wording import printable
    from maskprune.tasks.data.pictures import Skipped, read_picture

    jobs = _jobs(config.paths)
    network = load_network(config.network)
    written, skipped = [], Counter[str]()

    def read(source: Path) -> Any:
        try:
            return read_picture(source)
        except Skipped as error:
            skipped[error.reason] += 1
            print(printable(f"{source}: skipped, {error.reason}"), file=sys.stderr)
            return None

    for source, target in _distinct(jobs, read):
        if (picture := read(source)) is not None:
            _write_picture(target, _run(network, picture, source))
            written.append(target)
    if not written:
        reasons = ", ".join(f"{count} × {reason}" for reason, count in skipped.items())
        raise ValueError(f"None of the pictures could be read: {reasons}.")
    return written


def export(config: Export) -> list[Path]:
    """Writes the formats, each checked by running it. Returns what was written.

    Raises:
        ValueError: The file is no saved network.
        ImportError: A format that was asked for needs a package that is not installed.
    """
    from maskprune.report.wording import printable
    from maskprune.tasks.models.exporting import export_saved

    if config.formats == ():
        raise UsageError(f"--formats is empty: name one or more of {', '.join(FORMATS)}.")
    _check_network(config.network)
    _check_name(config.folder)
    _check_folder(config.folder)
    written = []
    for found in export_saved(config.network, config.folder, config.formats):
        takes = f", takes {', '.join(found.shapes)}" if found.shapes else ""
        print(printable(f"{found.path}{takes}{'; ' + found.note if found.note else ''}"))
        written.append(found.path)
    return written


def load_network(path: Path) -> Callable[[Any], Any]:
    """`network(pictures) -> pictures` from any of the files that hold a whole network.

    Raises:
        ValueError: The file is none of them.
    """
    from maskprune.removal.export import PROGRAMS, load_program
    from maskprune.tasks import models

    _check_network(path)
    if path.suffix in PROGRAMS:
        return load_program(path)
    function, params = models.load(path)
    return lambda pictures: function(params, pictures)


def _check_network(path: Path) -> None:
    if not os.path.isfile(path):
        raise NoFileError(f"`{path}` is no file: give a network.npz, or an exported .stablehlo or .onnx file.")


def _check_name(path: Path) -> None:
    """That the system takes such a name, which may be too long for it."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except (OSError, ValueError) as error:
        raise UsageError(f"`{path}` can be no name of a file ({error}): use another one.") from error


def _check_folder(path: Path) -> None:
    """That there is a folder, or can be one."""
    there = next((each for each in (path, *path.parents) if os.path.lexists(each)), path)
    if not os.path.isdir(there):
        raise UsageError(f"`{path}` is to be a folder, but `{there}` is none: give another one to write to.")


def _jobs(paths: tuple[Path, ...]) -> list[tuple[Path, Path]]:
    """Pairs of a picture and where its result goes."""
    from maskprune.tasks.data.pictures import find_pictures

    if len(paths) < 2:
        raise UsageError("Give at least one picture, and last the file or folder to write.")
    *given, out = paths
    _check_name(out)
    _check_folder(out.parent)
    jobs: list[tuple[Path, Path]] = []
    for path in given:
        if path.is_dir():
            jobs += [(found, out / found.relative_to(path).with_suffix(".png")) for found in find_pictures(path)]
        elif path.exists():
            jobs.append((path, out / f"{path.stem}.png"))
        else:
            raise NoFileError(f"`{path}` does not exist: give pictures or folders of pictures.")
    if not jobs:
        raise ValueError(f"There are no pictures in {', '.join(map(str, given))}.")
    if len(given) == 1 and not given[0].is_dir() and not out.is_dir():
        _check_ending(out) if out.suffix else _check_folder(out)
        return [(given[0], out if out.suffix else out / f"{given[0].stem}.png")]
    if not out.is_dir() and (out.suffix or out.exists()):
        raise UsageError(f"`{out}` is to hold several pictures: give a folder, not a file name.")
    return jobs


def _check_ending(out: Path) -> None:
    from PIL import Image

    known = Image.registered_extensions()
    if out.suffix and known.get(out.suffix.lower()) not in Image.SAVE:
        raise UsageError(f"`{out}` cannot be written as a picture: use an ending such as .png.")


def _distinct(jobs: list[tuple[Path, Path]], read: Callable[[Path], Any]) -> list[tuple[Path, Path]]:
    """The jobs, without those that could not be read where several have one target; two that could are refused."""
    counts = Counter(target for _, target in jobs)
    kept = [(source, target) for source, target in jobs if counts[target] == 1 or read(source) is not None]
    for target, count in Counter(target for _, target in kept).items():
        if count > 1:
            raise UsageError(f"{count} pictures would be written to `{target}`: run them apart, or rename some.")
    return kept


def _run(network: Callable[[Any], Any], picture: Any, source: Path) -> Any:
    import numpy as np

    shape = (1, *picture.shape, 1)
    try:
        output = np.asarray(network(picture.reshape(shape).astype(np.float32) / 255))
    except Exception as error:  # jax and onnxruntime each have their own
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"The network does not run on `{source}`, {picture.shape[1]} × {picture.shape[0]}: {line}"
        ) from error
    if output.ndim != 4 or output.shape[0] != 1 or output.shape[3] != 1:
        raise ValueError(f"The network gives the shape {output.shape} for one grey picture, which is no grey picture.")
    if not np.isfinite(output).all():
        raise ValueError(f"The network is of no use: it gives numbers that are not finite, here for `{source}`.")
    return np.rint(np.clip(output[0, :, :, 0], 0, 1) * 255).astype(np.uint8)


def _write_picture(path: Path, values: Any) -> None:
    from PIL import Image

    from maskprune.base.files import replace_file

    content, kinds = io.BytesIO(), Image.registered_extensions()
    try:
        Image.fromarray(values).save(content, format=kinds[path.suffix.lower()])
    except (ValueError, KeyError) as error:
        raise ValueError(f"`{path}` cannot be written as a picture: use an ending such as .png. ({error})") from error
    replace_file(path, content.getvalue())


def reproduce(config: Reproduce) -> str:
    """Does a run again, in a process of its own. Returns what was compared.

    Raises:
        ValueError: The run is not finished, is none of this program, or the two runs differ: in what.
    """
    from maskprune.app import repeats
    from maskprune.minimizer import answers

    if not os.path.isdir(config.folder):
        raise NoFileError(f"`{config.folder}` is no folder: give that of a finished run.")
    repeats.check_files(config.folder)
    count = repeats.count_answers(config.folder)
    program = answers.read_answers(config.folder / repeats.MEMORY).about.get("program")
    if program != minimizing.PROGRAM:
        raise ValueError(
            f"`{config.folder}` holds a run of {program}, and only those of {minimizing.PROGRAM} can be repeated."
        )
    with tempfile.TemporaryDirectory() as again:
        command = [sys.executable, "-m", "maskprune", minimizing.PROGRAM, "--repeat", config.folder, "--out", again]
        if code := subprocess.run(command, check=False).returncode:
            raise ValueError(f"The run could not be repeated: {program} ended with {code}.")
        if found := repeats.differences(config.folder, again):
            raise ValueError("The runs differ: " + "; ".join(found[:5]) + ("; and so on." if found[5:] else "."))
    return f"The same: {count} answers, the network, the history and the result."


def main(arguments: list[str] | None = None) -> None:
    from maskprune.report.wording import printable

    search = Annotated[minimizing.Config, tyro.conf.subcommand(minimizing.PROGRAM, description=minimizing.__doc__)]
    kinds = search | Apply | Export | Reproduce
    config = tyro.cli(kinds, prog="maskprune", description=__doc__, args=arguments)  # type: ignore[arg-type]
    if isinstance(config, minimizing.Config):
        minimizing.start(config)
        return
    try:
        said = _said(config)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        sentence = printable(f"maskprune: {error}")
        print(sentence, file=sys.stderr)
        end = SystemExit(sentence)
        end.code = 2 if isinstance(error, UsageError | ImportError) else 1  # 2 as for an unreadable command line
        raise end from error
    if said:
        print(printable(said))


def _said(config: Apply | Export | Reproduce) -> str:
    """Does what is asked, and says what came of it."""
    from maskprune.app import record

    if why := record.why_no_device():
        raise UsageError(f"{why}.")
    if isinstance(config, Reproduce):
        return reproduce(config)
    if isinstance(config, Export):
        export(config)
        return ""
    written = apply(config)
    return f"{len(written)} written, the last {written[-1]}" if len(written) > 1 else str(written[0])


def console(arguments: list[str] | None = None) -> None:
    """The command `maskprune`: `main`, whatever becomes of the pipes that it writes to."""
    with outputs():
        main(arguments)
