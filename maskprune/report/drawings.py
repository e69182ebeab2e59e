"""Pictures of a network: its masks, what they make of a picture, how the output changed, how the search went.

Everything here takes plain NumPy arrays, dictionaries and lists and gives back a ``PIL.Image``; equal values give
equal bytes. Negative is red, positive is green, brightness is magnitude; because red and green are one colour to some
readers, negative weights also carry a minus sign and biases grow to opposite sides. This file must not know how a
network is trained, traced or pruned: it imports nothing from maskprune but its own pixel craft, and neither jax nor
flax.
"""

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from maskprune.report import canvas as canvas
from maskprune.report.canvas import PALETTE
from maskprune.report.charts import score_against_size as score_against_size
from maskprune.report.charts import score_history as score_history


_WIDTH = 1320  # pixels a row or a column of tiles may take before they shrink
_TILE = 70  # pixels of a kernel's side where there is room
_GAP, _BIAS = 5, 6  # pixels between the tiles of a mask, and of a bias bar's height
_SIDE = 176  # pixels of an activation's longer side
_SHOWN = 240  # pixels of a compared picture's longer side


def to_uint8(array: np.ndarray) -> np.ndarray:
    """Shifts and scales an array so that its smallest value is 0 and its largest 255, rounded: for pictures only.

    Args:
        array: finite numbers of any shape. A constant array becomes zeros.

    Returns:
        uint8 of the same shape.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    values = np.asarray(array, np.float64)
    if broken := int(np.size(values) - np.isfinite(values).sum()):
        raise ValueError(f"array holds {broken} values that are not finite; replace them before drawing")
    low, high = (values.min(), values.max()) if values.size else (0.0, 0.0)
    return np.rint((values - low) * (255.0 / ((high - low) or 1.0))).astype(np.uint8)


def to_png(image_or_array: Image.Image | np.ndarray) -> bytes:
    """The PNG file of a picture, or of an array [H, W] scaled by ``to_uint8``; no date or other metadata in it.

    Raises:
        ValueError: an array with another number of axes, or one that is not finite.
    """
    image, buffer = image_or_array, io.BytesIO()
    if not isinstance(image, Image.Image):
        if np.ndim(image) != 2:
            raise ValueError(f"image_or_array has shape {np.shape(image)}; pass a picture or an array [H, W]")
        image = Image.fromarray(to_uint8(image))
    Image.Image.save(image, buffer, format="PNG")
    return buffer.getvalue()


def masks_picture(params: Mapping[str, Any], enabled: Mapping[str, Any], groups: Iterable[Any] = ()) -> Image.Image:
    """Every mask of a network's convolutions, one block per layer, one column per mask.

    A column holds a tile for each input the mask reads, and a bar for its bias (left and red if negative, right and
    green if positive). Brightness is magnitude relative to the layer's largest weight that still contributes; biases
    have their own scale. A disabled mask is dimmed and crossed out; a kernel that reads a disabled mask contributes
    nothing, and is dimmed with one stroke through it. Layers that are no convolutions over pictures are left out.

    Args:
        params: nested dictionaries, as of Flax or Haiku, with {"kernel": f32[kh, kw, Cin, C], "bias": f32[C]
            (optional)}, or "w" and "b", wherever there is a convolution. A layer is named by its path, "blocks/0".
        enabled: bool[C] by name, such as ``network.enabled``; what is absent has all its masks.
        groups: the groups of ``enabled``, such as ``network.groups``: they tell which masks a kernel has and reads, in
            any network. Without them a name in ``enabled`` is that of a layer, and ``params`` that hold convolutions
            alone, not nested, are a chain in the given order; names that differ only in a number (conv2, conv10) are
            ordered by it.

    Returns:
        An RGB picture whose size depends on the shapes alone.

    Raises:
        ValueError: no kernel with four axes, flags of another length, or a name that ``params`` does not have.

    Example:
        picture = masks_picture(network.params, network.enabled, network.groups)
        picture.save("masks.png")
    """
    layers, groups = _layers(params), tuple(groups)
    names = _in_order(layers) if set(layers) == set(params) else list(layers)
    marks = _marks(layers, enabled, groups) if groups else _marks_by_name(params, layers, enabled, names)
    blocks = [_legend()]
    for name in names:
        flags, inputs, source = marks[name]
        every = np.ones(_outputs(layers[name]), bool) if flags is None else flags
        masks = _layer_block(layers[name], every, inputs, source=source)
        blocks.append(canvas.under([_title(name, flags, "masks"), masks], 10))
    return canvas.framed(canvas.under(blocks, 26), 24)


_Marks = dict[str, tuple[np.ndarray | None, np.ndarray, str]]  # the masks of a layer, its inputs, and what it reads


def _layers(params: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The layers that can be drawn, by their paths, as {"kernel": ..., "bias": ...}."""
    every = dict(_with_kernels(params, ()))
    found = {name: layer for name, layer in every.items() if layer["kernel"].ndim == 4 and layer["kernel"].size}
    if not found:
        others = ", ".join(f"{name!r} has a kernel of shape {layer['kernel'].shape}" for name, layer in every.items())
        raise ValueError(f"params has no kernel [kh, kw, Cin, C] to draw: {others or 'it has none at all'}")
    return found


def _with_kernels(tree: Any, path: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    if not isinstance(tree, Mapping):
        return
    for kernel, bias in (("kernel", "bias"), ("w", "b")):
        if kernel in tree and not isinstance(tree[kernel], Mapping):
            yield "/".join(path), {"kernel": np.asarray(tree[kernel], np.float32), "bias": tree.get(bias)}
    for name, each in tree.items():
        yield from _with_kernels(each, (*path, str(name)))


def _in_order(layers: Mapping[str, Any]) -> list[str]:
    numbered = [re.fullmatch(r"(.*?)(\d+)", name) for name in layers]
    if all(numbered) and len({match[1] for match in numbered if match}) == 1:
        return sorted(layers, key=lambda name: int(re.findall(r"\d+$", name)[0]))
    return list(layers)


def _outputs(layer: Mapping[str, Any]) -> int:
    return layer["kernel"].shape[3]


def _marks(layers: Mapping[str, Any], enabled: Mapping[str, Any], groups: Sequence[Any]) -> _Marks:
    """What the slices of groups say about every kernel."""
    _check_names(enabled, [group.name for group in groups], "groups")
    outputs: dict[str, np.ndarray] = {}
    inputs = {name: np.ones(layer["kernel"].shape[2], bool) for name, layer in layers.items()}
    sources: dict[str, str] = {}
    for group in groups:
        flags = _checked(group.name, enabled.get(group.name, np.ones(group.size, bool)), group.size)
        for piece in group.slices:
            name, _, leaf = piece.leaf.rpartition("/")
            labels = np.asarray(piece.labels)
            alive = (labels < 0) | flags[labels]
            if name not in layers or leaf not in ("kernel", "w"):
                continue
            if piece.axis == 3 and piece.role == "out":
                outputs[name] = outputs.get(name, True) & alive
            elif piece.axis == 2:
                inputs[name], sources[name] = inputs[name] & alive, group.name
    return {name: (outputs.get(name), inputs[name], sources.get(name, "input")) for name in layers}


def _marks_by_name(
    params: Mapping[str, Any], layers: Mapping[str, Any], enabled: Mapping[str, Any], names: Sequence[str]
) -> _Marks:
    """What names say: whose masks they are, and in a chain, what the next layer reads."""
    _check_names(enabled, [name for name, _ in _with_kernels(params, ())], "params")
    flags = {name: _checked(name, enabled[name], _outputs(layers[name])) for name in names if name in enabled}
    chain, marks = set(layers) == set(params), _Marks()
    for previous, name in zip(["input", *names], names, strict=False):
        inputs, source = np.ones(layers[name]["kernel"].shape[2], bool), previous if chain else "input"
        if source in flags and flags[source].size == inputs.size:
            inputs = flags[source]
        marks[name] = (flags.get(name), inputs, source)
    return marks


def _check_names(enabled: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    if unknown := sorted(set(enabled) - set(known)):
        raise ValueError(f"enabled names {unknown}, which {where} does not have; there are {list(known)}")


def _checked(name: str, given: Any, size: int) -> np.ndarray:
    if np.shape(given) != (size,):
        raise ValueError(f"enabled[{name!r}] has shape {np.shape(given)}; there are {size} masks")
    return np.asarray(given, bool)


def _legend() -> Image.Image:
    scale = np.linspace(-1, 1, 21, dtype=np.float32)[None]
    bar = canvas.dashed(canvas.enlarged(canvas.signed(scale, 1.0), 11), scale < -0.1, 11)
    notes = ("negative", "positive", "crossed out: disabled    one stroke: reads a disabled mask    bar: bias")
    low, high, strokes = (canvas.text(note, 12, colour=PALETTE.faint) for note in notes)
    return canvas.under([canvas.beside([low, bar, high], 10), strokes], 4)


def _title(name: str, flags: np.ndarray | None, kind: str) -> Image.Image:
    count = "" if flags is None else f"{flags.sum()} of {flags.size} {kind}"
    words = [canvas.text(name, 19, bold=True), canvas.text(f"·  {count}", 19, colour=PALETTE.faint)]
    return canvas.beside(words if count else words[:1], 9)


def _layer_block(layer: Mapping[str, Any], flags: np.ndarray, inputs: np.ndarray, *, source: str) -> Image.Image:
    kernel = np.asarray(layer["kernel"], np.float32)  # f32[kh, kw, Cin, C]
    bias = np.asarray(layer["bias"], np.float32) if layer.get("bias") is not None else np.zeros(flags.size)
    side = min(_TILE, max(8, _WIDTH // max(kernel.shape[2:]) - 12))
    cell = max(1, side // max(kernel.shape[:2]))
    peaks = canvas.peak(kernel[:, :, inputs][..., flags]), canvas.peak(bias[flags])
    masks = []
    for m, alive in enumerate(flags):
        number = canvas.text(str(m) if side >= 24 else "", 12, colour=PALETTE.ink if alive else PALETTE.faint)
        column = _column(kernel[..., m], float(bias[m]), peaks, alive=bool(alive), inputs=inputs, cell=cell)
        masks.append(canvas.under([number, column], 4, centred=True))
    gutter = _gutter(source, inputs.size, masks[0], kernel.shape[0] * cell)
    return canvas.beside([gutter, *masks], max(3, min(14, side // 4)))


def _gutter(source: str, inputs: int, beside: Image.Image, tile: int) -> Image.Image:
    labels = [canvas.text(source if inputs == 1 else f"{source} {i}", 11, colour=PALETTE.faint) for i in range(inputs)]
    result = canvas.blank(max(label.width for label in labels), beside.height)
    top = beside.height - _BIAS - inputs * (tile + _GAP)
    for i, label in enumerate(labels if tile >= labels[0].height else ()):
        result.paste(label, (result.width - label.width, top + i * (tile + _GAP) + (tile - label.height) // 2))
    return result


def _column(
    kernel: np.ndarray, bias: float, peaks: tuple[float, float], *, alive: bool, inputs: np.ndarray, cell: int
) -> Image.Image:
    tiles = []
    for i, read in enumerate(inputs):
        tile = canvas.enlarged(canvas.signed(kernel[..., i], peaks[0]), cell)
        tile = canvas.dashed(tile, kernel[..., i] < -0.1 * peaks[0], cell) if cell >= 8 else tile
        tiles.append(tile if read or not alive else canvas.struck(tile, cross=False, stroke=PALETTE.faint))
    column = canvas.under([*tiles, canvas.bar(bias, peaks[1], (tiles[0].width, _BIAS))], _GAP)
    return column if alive else canvas.struck(column, cross=True)


def activations_picture(activations: Mapping[str, Any], enabled: Mapping[str, Any]) -> Image.Image:
    """What every mask makes of one picture, stage after stage, in the colours of ``masks_picture``.

    Args:
        activations: stage name to f32[H, W, C], in order; stages may differ in size. Values that are not finite
            appear amber.
        enabled: stage name to bool[C]; the maps of disabled masks are crossed out. Stages without an entry (the
            input, the output) show all their maps.

    Returns:
        An RGB picture, one titled block per stage, brightness relative to the stage's largest magnitude.

    Raises:
        ValueError: no stages, an array without three axes, or flags of another length.
    """
    if not activations:
        raise ValueError("activations is empty; pass at least one stage, {name: array[H, W, C]}")
    blocks = [_stage_block(name, np.asarray(maps, np.float32), enabled.get(name)) for name, maps in activations.items()]
    return canvas.framed(canvas.under(blocks, 22), 24)


def _stage_block(name: str, maps: np.ndarray, given: Any) -> Image.Image:
    if maps.ndim != 3 or not maps.size:
        raise ValueError(f"activations[{name!r}] has shape {maps.shape}; a picture needs [H, W, C]")
    flags = None if given is None else np.asarray(given, bool)
    if flags is not None and flags.shape != maps.shape[2:]:
        raise ValueError(f"enabled[{name!r}] has shape {flags.shape}; the stage has {maps.shape[2]} maps")
    alive = np.ones(maps.shape[2], bool) if flags is None else flags
    peak = canvas.peak(maps[..., alive])
    tiles = [canvas.fitted(canvas.signed(maps[..., c], peak), _SIDE) for c in range(maps.shape[2])]
    tiles = [tile if on else canvas.struck(tile, cross=True) for tile, on in zip(tiles, alive, strict=True)]
    note = canvas.text(f"full colour = {peak:.3g}", 12, colour=PALETTE.faint)
    return canvas.under([_title(name, flags, "maps"), canvas.grid(tiles, 8, 8), note], 8)


def comparison_picture(
    rows: Sequence[tuple[str, Sequence[tuple[str, Any]]]],
    *,
    own_range: Sequence[str] = ("input", "|error|"),
) -> Image.Image:
    """Pictures side by side in grey: input, target, output before, output after, error.

    Args:
        rows: one ``(title, [(label, f32[H, W]), ...])`` per picture; sizes may differ from row to row.
        own_range: labels whose black and white are their own smallest and largest value. All other pictures of a row
            share one range, so that a target and its outputs can be compared by eye.

    Returns:
        An RGB picture, one row per title; every label states the values shown as black and white.

    Raises:
        ValueError: no rows, or a picture that is not [H, W].
    """
    if not rows or not all(pictures for _, pictures in rows):
        raise ValueError("rows is empty or has a row without pictures; pass (title, [(label, picture), ...])")
    return canvas.framed(canvas.under([_compared(title, pairs, own_range) for title, pairs in rows], 26), 24)


def _compared(title: str, pairs: Sequence[tuple[str, Any]], own_range: Sequence[str]) -> Image.Image:
    pictures = [(label, np.asarray(picture, np.float32)) for label, picture in pairs]
    for label, picture in pictures:
        if picture.ndim != 2 or not picture.size:
            raise ValueError(f"picture {label!r} of row {title!r} has shape {picture.shape}; pass [H, W]")
    shared = _range([picture for label, picture in pictures if label not in own_range])
    tiles = [_labelled(label, p, _range([p]) if label in own_range else shared) for label, p in pictures]
    heading = canvas.shortened(title, 19, len(tiles) * (_SHOWN + 8), bold=True)
    return canvas.under([canvas.text(heading, 19, bold=True), canvas.beside(tiles, 8)], 8)


def _range(pictures: Sequence[np.ndarray]) -> tuple[float, float]:
    values = np.concatenate([picture[np.isfinite(picture)] for picture in pictures] or [np.zeros(0)])
    return (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)


def _labelled(label: str, picture: np.ndarray, limits: tuple[float, float]) -> Image.Image:
    words = canvas.text(canvas.shortened(label, 14, _SHOWN), 14)
    values = canvas.text(f"{limits[0]:.2f} … {limits[1]:.2f}", 11, colour=PALETTE.faint)
    shown = canvas.fitted(canvas.grey(picture, *limits), _SHOWN)
    return canvas.under([shown, words, values], 4)
