"""Words and numbers for ``report``: a run's dictionaries as sentences, rows and squares, with nothing marked up.

Every function is pure and accepts None for anything an interrupted run did not reach. It must not know HTML (escaping
is the template's) nor how a number came about, and imports nothing from maskprune.
"""

import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple


SPACE = "\u202f"  # narrow and unbreakable, between a number and its unit
UNKNOWN = "–"
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

_SIZES = (
    ("masks", "Masks", ""),
    ("parameters", "Parameters", ""),
    ("multiply_adds", "Multiply-adds per pixel", ""),
    ("bytes", "Bytes", ""),
    ("inference_ms", "Time for a picture", "ms"),
)

_QUALITIES = (
    ("f1", "Soft F1 score", ""),
    ("mae", "Mean absolute error", ""),
    ("relative_rmse", "Relative RMSE", ""),
    ("r2", "R²", ""),
    ("psnr", "PSNR", "dB"),
    ("uiqi", "Image quality index", ""),
)


class Change(NamedTuple):
    """One row of the before-and-after table; ``kept`` is the share left, 0–100, where that has a meaning."""

    name: str
    before: str
    after: str
    kept: float | None


class Block(NamedTuple):
    """One mask in a row of masks; ``tried`` marks the ones a round chose."""

    enabled: bool
    tried: bool


class Layer(NamedTuple):
    """A row of masks with its name."""

    name: str
    blocks: Sequence[Block]


def printable(text: str) -> str:
    """Text that a terminal shows and does not obey: control characters, and bytes that are no text, as ``\\x1b``.

    Names of files can hold any of them. Line breaks and spaces stay.
    """
    shown = lambda letter: letter.isprintable() or letter == "\n" or unicodedata.category(letter) == "Zs"
    return "".join(letter if shown(letter) else ascii(letter)[1:-1] for letter in text)


def number(value: Any, digits: int = 3) -> str:
    """A number for people: ``14 000``, ``0.891``, ``1.2·10⁻⁷``; – for None; anything else as it is."""
    value = _python(value)
    if value is None or value == "":
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float) or not math.isfinite(value):
        return str(value)
    if isinstance(value, int) or (value == round(value) and 1e3 <= abs(value) < 1e15):
        return f"{int(value):,}".replace(",", SPACE)
    mantissa, _, power = f"{value:.{digits}g}".partition("e")
    return f"{mantissa}·10{str(int(power)).translate(_RAISED)}" if power else mantissa


def decimals(value: Any) -> str:
    """A score with three decimals, so that a column of them lines up; – for None."""
    value = _python(value)
    return f"{value:.3f}" if isinstance(value, int | float) and not isinstance(value, bool) else number(value)


def percent(share: float) -> str:
    """A share in 0–1 as a whole percentage, with one decimal below one percent."""
    return f"{100 * share:.1f}{SPACE}%" if 0 < share < 0.0095 else f"{100 * share:.0f}{SPACE}%"


def duration(seconds: Any) -> str:
    """Seconds as ``0.8 s``, ``3 min 20 s`` or ``2 h 5 min``; – for None."""
    seconds = _python(seconds)
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return UNKNOWN
    if round(seconds) < 60:
        return f"{seconds:.1f}{SPACE}s" if seconds < 10 else f"{seconds:.0f}{SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{SPACE}min {rest}{SPACE}s"
    return f"{minutes // 60}{SPACE}h {minutes % 60}{SPACE}min"


def headline(result: Mapping[str, Any]) -> list[str]:
    """The answer in up to three parts: masks, work, score; those that are unknown are left out."""
    before, after, parts = total(result.get("masks_before")), total(result.get("masks_after")), []
    if after is not None:
        parts.append(f"{number(after)} of {number(before)} masks" if before else f"{number(after)} masks")
    if (share := _share(result, "multiply_adds")) is not None:
        parts.append(f"{percent(share)} of the multiply-adds")
    if result.get("score_ratio") is not None:
        parts.append(f"score {result['score_ratio']:.2f} of the original")
    return parts or ["No result yet"]


def meaning(result: Mapping[str, Any]) -> str:
    """What the headline says, as one sentence."""
    masks, initial, final = (result.get(name) for name in ("masks_after", "initial_score", "final_score"))
    task = f" ({result['task']})" if result.get("task") else ""
    if not masks or final is None:
        return f"The run ended before a smaller network could be judged{task}."
    if total(masks) == total(result.get("masks_before")):
        return f"No mask could be switched off{task}: the network needs all {number(total(masks))}."
    widths = " + ".join(number(count) for count in masks.values())
    sentence = f"A network with {widths} masks does the job{task} with score {decimals(final)}"
    if initial is not None:
        sentence += f", where the network it came from scored {decimals(initial)}"
    if result.get("multiply_adds_after") is not None and result.get("multiply_adds_before") is not None:
        after, before = number(result["multiply_adds_after"]), number(result["multiply_adds_before"])
        sentence += f", and computes a pixel in {after} multiply-adds instead of {before}"
    return sentence + "."


def ending(result: Mapping[str, Any]) -> list[str]:
    """How the search ended, what it took, and whether the compact network was compared."""
    took = [f"{number(result[name])} {name}" for name in ("rounds", "steps") if result.get(name) is not None] + [
        duration(result[name]) for name in ("seconds",) if result.get(name) is not None
    ]
    lines = ["The run was interrupted; this is how far it came."] if result.get("interrupted") else []
    if result.get("stop"):
        lines.append(f"Why it stopped: {result['stop']}.")
    if took:
        lines.append(f"What it took: {', '.join(took)}.")
    if result.get("verified_max_abs_difference") is not None:
        lines.append(
            "Checked: without its disabled masks the network gives the same output, to within"
            f" {number(result['verified_max_abs_difference'], 2)}."
        )
    if dead := [f"{name}[{i}]" for name, numbers in (result.get("dead_masks") or {}).items() for i in numbers]:
        lines.append(f"Dead: {', '.join(dead)} put out 0 on every picture it was judged by.")
    return lines


def sizes(result: Mapping[str, Any]) -> list[Change]:
    """Before and after of everything that should have become smaller."""
    rows = []
    for name, title, unit in _SIZES:
        before, after = result.get(f"{name}_before"), result.get(f"{name}_after")
        if name == "masks":
            before, after = total(before), total(after)
        if before is None and after is None:
            continue
        kept = 100 * after / before if before and after is not None else None
        rows.append(Change(title, _with_unit(number(before), unit), _with_unit(number(after), unit), kept))
    return rows


def qualities(result: Mapping[str, Any]) -> list[Change]:
    """Before and after of every known measure of quality."""
    metrics = result.get("metrics") or {}
    initial, final = metrics.get("initial") or {}, metrics.get("final") or {}
    rows = [(title, unit, initial.get(name), final.get(name)) for name, title, unit in _QUALITIES]
    return [
        Change(title, _with_unit(_measured(before), unit), _with_unit(_measured(after), unit), None)
        for title, unit, before, after in rows
        if before is not None or after is not None
    ]


def layers(enabled: Mapping[str, Sequence[Any]] | None, chosen: Any = None) -> list[Layer]:
    """Every layer's masks; ``chosen`` is text such as ``conv1[3]``, or several of them."""
    tried = {(name, int(index)) for name, index in re.findall(r"([^\s,;]+)\[(\d+)\]", str(chosen or ""))}
    return [
        Layer(name, [Block(bool(flag), (name, index) in tried) for index, flag in enumerate(flags)])
        for name, flags in (enabled or {}).items()
    ]


def facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the numbers rest on: data, device, precision, versions."""
    data = result.get("data") or {}
    rows = [("Data", data.get("summary")), ("Source", data.get("source"))]
    rows += [(name.capitalize(), result.get(name)) for name in ("task", "seed", "device", "precision", "convolution")]
    if result.get("border") is not None:
        rows.append(("Not scored", f"a frame of {number(result['border'])} pixels"))
    versions = {"maskprune": result.get("maskprune"), **(result.get("versions") or {})}
    rows.append(("Versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)))
    return [(name, str(value)) for name, value in rows if value is not None and value != ""]


def flattened(settings: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as ``optimizer.learning_rate`` and its value, in the order given."""
    for name, value in (settings or {}).items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _plain(value)


def total(counts: Any) -> int | None:
    """The sum over layers of ``{layer: count}``; a plain number is itself, None stays None."""
    if isinstance(counts, Mapping):
        return sum(counts.values()) if all(count is not None for count in counts.values()) else None
    return counts


def _python(value: Any) -> Any:
    # NumPy's scalars and 0-d arrays, which are neither int nor float, as Python's numbers
    return value.item() if hasattr(value, "item") and not getattr(value, "ndim", 0) else value


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value) or UNKNOWN
    return number(value, 6)


def _measured(value: Any) -> str:
    value = _python(value)
    # three significant digits, zeros kept, so that 0.91 beside 0.891 does not look less exact
    return f"{value:#.3g}" if isinstance(value, float) and 1e-4 <= abs(value) < 1e3 else number(value)


def _share(result: Mapping[str, Any], name: str) -> float | None:
    before, after = result.get(f"{name}_before"), result.get(f"{name}_after")
    return after / before if before and after is not None else None


def _with_unit(shown: str, unit: str) -> str:
    return f"{shown}{SPACE}{unit}" if unit and shown != UNKNOWN else shown
