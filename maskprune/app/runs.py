"""The folder of a run: one program at a time works in it, a run is begun in it once, and gone on with.

What a run was begun with and what it was told lie in its `memory`. jax and maskprune are imported inside functions, so
that `--help` answers at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import tempfile
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from maskprune.app.options import Problem, refuse
from maskprune.app.protocol import in_a_sentence


MEMORY = "memory"
OWN = ("out", "quiet", "save_every", "resume", "repeat")  # options that decide nothing about the result


# Sums in a fixed order, and no choice among kernels by how fast they ran this time.
DETERMINISTIC = "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0"


def exact_flags() -> str:
    """XLA's flags with those of `--deterministic`."""
    flags = os.environ.get("XLA_FLAGS", "")
    return flags if DETERMINISTIC in flags else f"{flags} {DETERMINISTIC}".strip()


def compute_exactly(deterministic: bool) -> None:
    """Sets XLA's flags for `--deterministic`. They hold if nothing was computed before."""
    if deterministic:
        os.environ["XLA_FLAGS"] = exact_flags()


def able_to_compute() -> list[Problem]:
    """Whether there is a device, and whether JAX computes in 32 bits there, as all these programs do."""
    import jax.numpy as jnp

    from maskprune import record

    why = record.why_no_device()
    words = "JAX_ENABLE_X64 is set, and these programs compute and save in 32 bits: leave it unset"
    return [(why, why), (jnp.result_type(float) != jnp.float32, words)]


def slower() -> list[str]:
    """What to say where the compiled convolution is not used; nothing where it is."""
    from maskprune import conv

    why = conv.why_not_native()
    return [f"Convolutions take the way {conv.describe_way()}, as {why}: training takes longer."] if why else []


def begun_with(program: str, config: Any) -> Any:
    """The configuration that is meant: with `--resume` or `--repeat` the one that the run there was begun with."""
    folder = config.resume or config.repeat
    if folder is None:  # paths mean the same wherever the run is gone on with
        return dataclasses.replace(restored(type(config), plain(config)), out=config.out)
    option, blank = "--resume" if config.resume else "--repeat", type(config)()
    names = [field.name for field in dataclasses.fields(config)]
    given = {name for name in names if getattr(config, name) != getattr(blank, name)}
    others = sorted(given - {*OWN[1:]} - (set() if config.resume else {"out"}))
    words = ", ".join(f"--{name.replace('_', '-')}" for name in others)
    problems = [
        (config.resume and config.repeat, "--resume and --repeat do not go together"),
        (others, f"{option} takes its options from the folder: leave {words} away"),
        (not os.path.isdir(folder / MEMORY), f"{option} is {folder}, which holds no run of this program"),
    ]
    refuse(program, problems)
    with in_a_sentence(program):
        from maskprune.minimizer.answers import read_answers

        about = read_answers(folder / MEMORY).about
        if about.get("program") != program:
            raise ValueError(f"{option} is {folder}, which holds a run of {about.get('program')}")
        try:
            found = restored(type(config), about["given"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{option} is {folder}, whose answers.jsonl names no options of this program") from error
    out = config.resume or config.out
    return dataclasses.replace(found, out=out, **{name: getattr(config, name) for name in OWN[1:]})


def finished(folder: Path) -> bool:
    """Whether a run was carried through there and written out."""
    from maskprune.minimizer import answers

    there = (folder / MEMORY / answers.ANSWERS).exists()
    return there and answers.has_ended(answers.read_answers(folder / MEMORY))


def results(program: str, folder: Path) -> list[dict[str, Any]]:
    """What the `result.json` of a finished run hold, where all that it left is there and sound."""
    from maskprune.app import repeats

    try:
        return repeats.results(folder)
    except (OSError, ValueError) as error:
        again = f"--repeat {folder} --out ANOTHER does the finished run again"
        raise SystemExit(f"{program}: {error} {again}.") from error


@contextlib.contextmanager
def working_in(program: str, folder: Path, *, resume: bool) -> Iterator[None]:
    """Makes the folder and keeps others out of it; refuses one that holds a run, unless that is gone on with."""
    from maskprune.base import files

    refuse(program, able_to_compute())
    with contextlib.ExitStack() as stack:
        with in_a_sentence(program):
            stack.enter_context(files.claim(folder / MEMORY))
            if not resume and any(path.suffix == ".jsonl" for path in (folder / MEMORY).iterdir()):
                raise ValueError(
                    f"--out is {folder}, which holds a run: --resume {folder} goes on with it, or use another"
                )
            files.drop_drafts(folder)
        yield


@contextlib.contextmanager
def going_on(program: str, folder: Path, say: Callable[[str], None], *, at_once: bool = False) -> Iterator[Any]:
    """A study at work in its folder, alone, until it ends or is interrupted. Gives the `maskprune.Interrupt`.

    Args:
        program: Its name.
        folder: Of the study; it may have been begun before.
        say: Is told of an interruption.
        at_once: Whether a signal ends the program where it stands, since nobody asks the `Interrupt`.
    """
    import maskprune

    with maskprune.Interrupt(at_once=at_once) as interrupt, working_in(program, folder, resume=True):
        try:
            yield interrupt
        except KeyboardInterrupt:
            say("Interrupted. What is finished is kept: the same command goes on from there.")
            raise SystemExit(interrupt.code or 130) from None


def remember(
    program: str,
    config: Any,
    folder: Path,
    *,
    decided: Mapping[str, Any],
    data: str,
    say: Callable[[str], None],
    interrupt: Any,
) -> Any:
    """Opens the memory of a run.

    Args:
        program: Its name.
        config: Its configuration as it was given.
        folder: Of the run.
        decided: The configuration with everything filled in: what must not have changed.
        data: A digest of all that is trained on, judged by and started from.
        say: Is told what goes wrong.
        interrupt: Is asked whether to stop.
    """
    import maskprune

    about = {
        "program": program,
        "given": plain(config),
        "config": {name: value for name, value in plain(decided).items() if name not in OWN},
        "data": data,
        "facts": facts(),
    }
    memory = maskprune.Memory.open(
        folder / MEMORY, about, say=say, every=config.save_every, asked_to_stop=lambda: interrupt.asked
    )
    then, now = memory.about["facts"], about["facts"]
    if changed := [f"{name} was {then.get(name)} and is {now[name]}" for name in now if then.get(name) != now[name]]:
        say(f"{'; '.join(changed)}: the result may not be that of an uninterrupted run to the last bit.")
    return memory


def facts() -> dict[str, str]:
    """What decides the last bits of a result, beside its configuration."""
    import maskprune

    versions = ", ".join(f"{name} {version}" for name, version in maskprune.record.versions().items())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "versions": versions,
        "device": maskprune.record.device(),
        "cores": f"{cores}",  # sums over a picture are divided among them
        "convolution": maskprune.conv.describe_way(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def writing(folder: Path, write: Callable[[Path], Any], say: Callable[[str], None]) -> tuple[Any, bool]:
    """Writes what was found into a folder; where that fails, into one for temporary files.

    Returns:
        What `write(folder)` returned, and whether it is where it should be.
    """
    try:
        return write(folder), True
    except OSError as error:
        say(f"{folder} cannot be written to: {error}. With space again, --resume {folder} writes the result.")
    with in_a_sentence(folder.name):
        other = Path(tempfile.mkdtemp(prefix=f"{folder.name[:100]}-"))
        say(f"Until then it is in {other}.")
        return write(other), False


def plain(value: Any) -> Any:
    """A configuration as JSON can hold it; paths are absolute, so that it means the same from everywhere."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return str(value.absolute()) if isinstance(value, Path) else value


def restored(kind: Any, values: Mapping[str, Any]) -> Any:
    """The inverse of `plain`, for a configuration of this kind. What an older version did not know is the default.

    Raises:
        ValueError: The configuration has entries that this version does not know.
    """
    hints = typing.get_type_hints(kind)
    if unknown := sorted(values.keys() - {field.name for field in dataclasses.fields(kind)}):
        raise ValueError(f"the run was begun by another version, whose option {unknown[0]!r} this one does not have")
    return kind(**{name: _restored(hints[name], value) for name, value in values.items()})


def _restored(hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return restored(hint, value)
    if Path in typing.get_args(hint) and value is not None:
        return Path(value)
    return tuple(value) if isinstance(value, list) else value


def digest_file(path: Path | None) -> str:
    return "" if path is None else hashlib.sha256(path.read_bytes()).hexdigest()
