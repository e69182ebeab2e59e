"""A finished run as one page that a person enjoys reading: the answer first, then what it means, then the evidence.

``write_report`` turns a result, its history and its pictures (plain dictionaries, lists and ``PIL.Image``) into PNG
files and one HTML file that needs nothing else: pictures are inside it, there is no script and no network, and every
value is escaped, file names included. Anything may be missing, since a run can be interrupted. This file must not know
how the numbers came about: it imports nothing from maskprune
but its own wording and how files are written, and neither jax nor flax.
"""

import base64
import io
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from PIL import Image

from maskprune.base.files import replace_file
from maskprune.report import wording as wording


_CAPTIONS = {
    "masks": (
        "What is left",
        "Every mask as its kernels: red is negative, green is positive, brighter is larger. Crossed-out masks are"
        " disabled; a kernel with a single stroke reads a disabled mask and contributes nothing.",
    ),
    "comparison": (
        "Before and after",
        "Target and outputs share one scale, so they should look alike; outputs above 1 are shown as 1. The error has a"
        " scale of its own: what it shows may be far too faint to see in the outputs.",
    ),
    "activations": (
        "What each mask sees",
        "One picture on its way through the network. Maps that look alike are masks doing the same work; empty ones do"
        " nothing for this picture.",
    ),
    "score_history": (
        "How the search went",
        "Each round disables a mask and trains on. A dot is a round whose score held, with the number of masks left;"
        " a cross is one whose score fell below the required line, and was undone.",
    ),
    "score_against_size": (
        "What size costs",
        "From left to right the network shrinks. The smallest useful network is where the line ends and only crosses"
        " go on.",
    ),
}

_COLUMNS = ("number", "verdict", "reason", "chosen", "score", "required", "masks", "enabled", "steps", "seconds")

_USE_IT = """\
import numpy as np, maskprune
apply, params = maskprune.models.load("network.npz")
output = apply(params, picture[None, :, :, None])   # picture: float32[H, W] in [0, 1]
"""


class Plate(NamedTuple):
    """A picture with its words; ``uri`` holds the whole PNG file."""

    title: str
    caption: str
    uri: str
    width: int
    height: int


def write_report(
    folder: Path, result: Mapping[str, Any], history: Sequence[Mapping[str, Any]], pictures: Mapping[str, Image.Image]
) -> Path:
    """Writes ``pictures/NAME.png`` for every picture, and ``report.html``, which contains them all.

    Each file is written under another name first and then moved, so a reader never meets half a file. Equal arguments
    give equal bytes.

    Args:
        folder: where to write; made if it does not exist.
        result: the run's summary. Missing keys and None are shown as unknown.
        history: one row per round with ``number``, ``verdict``, ``reason``, ``chosen``, ``score``, ``required``,
            ``enabled``, ``steps`` and ``seconds``, each optional.
        pictures: name to picture, in the order to show them. The names ``masks``, ``comparison``, ``activations``,
            ``score_history`` and ``score_against_size`` come with a caption.

    Returns:
        The path of ``report.html``.

    Raises:
        ValueError: two picture names that would be the same file.
    """
    plates = write_plates(folder, {name: (*_words_of(name), picture) for name, picture in pictures.items()})
    return replace_file(folder / "report.html", _page(result, history, plates))


def write_plates(folder: Path, pictures: Mapping[str, tuple[str, str, Image.Image]]) -> list[Plate]:
    """Writes `pictures/NAME.png` for every name and its (title, caption, picture), and gives them back for a page.

    Raises:
        ValueError: two names that would be the same file.
    """
    files, plates = _file_names(pictures), []
    for name, (title, caption, picture) in pictures.items():
        png = _png(picture)
        replace_file(folder / "pictures" / files[name], png)
        uri = "data:image/png;base64," + base64.b64encode(png).decode()
        plates.append(Plate(title, caption, uri, *picture.size))
    return plates


def render(
    template: str, values: Mapping[str, Any], *, filters: Mapping[str, Callable[..., Any]] | None = None
) -> bytes:
    """A page from `templates/`, with every value escaped; `filters` are more of them than the usual ones."""
    read = lambda name: (resources.files("maskprune.report") / "templates" / name).read_text("utf8")
    # autoescape for everything: the choice by file ending would leave an .html.j2 template unescaped
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(read),
        autoescape=True,
        finalize=lambda value: wording.printable(value) if type(value) is str else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=wording.number, decimals=wording.decimals, duration=wording.duration)
    environment.filters.update(filters or {})
    return environment.get_template(template).render(values).encode("utf8", "replace")


def _file_names(names: Mapping[str, Any]) -> dict[str, str]:
    # a name may come from a user's file: keep letters, digits, - and _, so that it can neither climb nor hide
    files = {name: (re.sub(r"[^\w-]+", "_", name)[:80] or "_") + ".png" for name in names}
    if len({file.lower() for file in files.values()}) < len(files):
        raise ValueError(f"pictures has names that would be the same file: {sorted(files.items())}; rename one")
    return files


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=3)  # 2.5 times as fast as 6, and no larger for these pictures
    return buffer.getvalue()


def _words_of(name: str) -> tuple[str, str]:
    return _CAPTIONS.get(name, (name.replace("_", " "), ""))


def _page(result: Mapping[str, Any], history: Sequence[Mapping[str, Any]], plates: Sequence[Plate]) -> bytes:
    rows = [dict.fromkeys(_COLUMNS) | dict(row) for row in history]
    return render(
        "report.html.j2",
        {
            "task": result.get("task"),
            "version": result.get("maskprune"),
            "headline": wording.headline(result),
            "meaning": wording.meaning(result),
            "ending": wording.ending(result),
            "layers": wording.layers(result.get("enabled")),
            "tables": [("Size", wording.sizes(result)), ("Quality", wording.qualities(result))],
            "plates": plates,
            "rounds": [(row, wording.layers(row["enabled"], row["chosen"])) for row in rows],
            "use_it": _USE_IT,
            "facts": wording.facts(result),
            "settings": list(wording.flattened(result.get("config"))),
        },
    )
