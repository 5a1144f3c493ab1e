"""A map of an embedding file: its vectors along their first two principal components."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from virnucpro_pl.embeddings.embedding_file import EmbeddingFile
from virnucpro_pl.errors import InputError, UsageError
from virnucpro_pl.plot.figures import COLORS, fit_title, new_figure, plain, ratio
from virnucpro_pl.plot.tables import read_table

MAX_ROWS = 20_000
"""Rows of which the components are computed, and that are drawn."""
_BLOCK = 512
_RANK, _ITERATIONS = 32, 8
"""Of the random projection that finds the components: far more than two of them need."""
_CATEGORY_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito (2008), less the yellow, which is hard to see on white."""
_MARKERS = "o^sDvP*"
_MISSING = frozenset(("", "NA", "nan", "NaN", "None"))
_LOG_RATIO = 50
_ORF = re.compile(r"(?s).+_chunk_\d+[FR][1-3]")
"""Id of an open reading frame."""
_NAME_LETTERS, _NARROW_LETTERS = 40, 20
"""Of a name in a legend, and of one that has room beside another."""
_LINE = 0.22
"""Inches of a line of a legend."""


class Sample(NamedTuple):
    """Some rows of an embedding file."""

    rows: NDArray[np.int64]
    """(N,) their numbers, ascending."""
    ids: list[str]
    """(N,) their ids."""
    vectors: NDArray[np.float32]
    """(N, D), all finite."""
    total: int
    """Rows of the file."""
    lost: int
    """Rows that were drawn, but are not finite."""


class Color(NamedTuple):
    """What colours the points."""

    label: str
    values: NDArray[np.float64]
    """(N,) a number, or an index into `names`; NaN where there is none."""
    names: tuple[str, ...] = ()
    """Categories; none where the values are numbers."""


def read_sample(file: EmbeddingFile, limit: int = MAX_ROWS, seed: int = 0) -> Sample:
    """Draw rows at random, and read them.

    Args:
        file: The embedding file.
        limit: Rows to read at most.
        seed: Seed of the draw.

    Raises:
        UsageError: If fewer than two rows can be drawn.
    """
    count = len(file)
    rows = np.arange(count)
    if count > limit:
        rows = np.sort(np.random.default_rng(seed).choice(count, limit, replace=False))
    vectors = np.empty((len(rows), file.width), np.float32)
    ids: list[str] = []
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        vectors[start : start + _BLOCK] = file.rows(block)
        ids.extend(file.ids_of(block))
    finite = np.isfinite(vectors).all(axis=1)
    if finite.sum() < 2 or file.width < 2:
        raise UsageError(
            f"{file.path} cannot be drawn: a map needs two rows and two numbers of each, and it "
            f"has {int(finite.sum())} finite row(s) of {file.width} number(s)"
        )
    ids = [ids[place] for place in np.flatnonzero(finite)]
    return Sample(rows[finite], ids, vectors[finite], count, int((~finite).sum()))


def kind_of_points(model: str, ids: Iterable[str]) -> str:
    """What the points of a map are, in words: ORFs, by their ids, or records; of which molecule.

    Args:
        model: What the embedding file calls its model.
        ids: Ids of the rows.
    """
    kind = "ORFs" if all(map(_ORF.fullmatch, ids)) else "records"
    _, molecule = _read_by(model)
    return f"{kind} ({molecule})" if molecule else kind


def _read_by(model: str) -> tuple[str, str]:
    """What a model reads, as units of length and as molecules; the latter empty if unknown."""
    if "dnabert" in model.lower():
        return "bases", "nucleotides"
    return ("residues", "proteins") if "esm" in model.lower() else ("letters", "")


def principal_components(
    vectors: NDArray[np.float32],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coordinates (N, 2) along the first two components, and their shares (2,) of the variance.

    The sign of a component is chosen so that its largest weight is positive: the same vectors give
    the same picture anywhere.
    """
    means = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = torch.from_numpy(vectors - means)
    rank = min(_RANK, *centred.shape)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        _, values, axes = torch.pca_lowrank(centred, rank, center=False, niter=_ITERATIONS)
    axes = axes[:, :2]  # (D, 2)
    largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    points = centred @ torch.where(largest < 0, -axes, axes)
    variance = centred.square().sum(dtype=torch.float64).clamp(min=1e-30)
    return points.double().numpy(), (values[:2].double().square() / variance).numpy()


def color_by_length(file: EmbeddingFile, sample: Sample) -> Color:
    """Colour by the length of each string.

    Raises:
        UsageError: If the file does not tell lengths.
    """
    lengths = file.lengths
    if lengths is None:
        raise UsageError(
            f"{file.path} does not tell lengths: give --color COLUMN --table FILE.tsv instead"
        )
    unit, _ = _read_by(str(file.attributes.get("model", "")))
    return Color(f"Length ({unit})", lengths[sample.rows].astype(np.float64))


def color_by_table(file: EmbeddingFile, sample: Sample, table: Path, column: str) -> Color:
    """Colour by a column of a tab-separated table, whose first column is the id.

    Where the table has none of the ids, but the records of which they are ORFs, as `contigs.tsv`
    has, an ORF gets the colour of its record.

    Raises:
        UsageError: If the table has no such column, or none of the ids.
        InputError: If it cannot be read, or names an id twice.
    """
    ids = keys = sample.ids
    texts = _column(table, column, set(keys))
    if not texts:
        keys = [name.rpartition("_chunk_")[0] for name in ids]
        texts = _column(table, column, set(keys) - {""})
    if not texts:
        raise UsageError(f"{table} has none of the ids of {file.path}, such as {ids[0]}")
    return _color(column, [texts.get(key, "") for key in keys])


def _column(table: Path, column: str, ids: set[str]) -> dict[str, str]:
    """Texts of one column by id, of these ids only."""

    def places(header: list[str]) -> list[int]:
        if column not in header[1:]:
            names = ", ".join(header[1:]) or "none"
            raise UsageError(f"{table} has no column {column!r} after the ids; it has {names}")
        return [0, header.index(column, 1)]

    texts: dict[str, str] = {}
    for block in read_table(table, places, wanted=ids.__contains__):
        for line, name, text in block.itertuples(name=None):
            if name in texts:
                raise InputError(f"{table}, line {line}: {name} is there twice")
            texts[name] = text.strip()
    return texts


def _color(label: str, texts: list[str]) -> Color:
    """Numbers where every text is one, else categories, the rare ones together."""
    known = [text for text in texts if text not in _MISSING]
    try:
        numbers = [float("nan") if text in _MISSING else float(text) for text in texts]
        return Color(label, np.where(np.isfinite(numbers), numbers, np.nan))
    except ValueError:
        pass  # they are names
    common = [name for name, _ in Counter(known).most_common()]
    most = len(_CATEGORY_COLORS)
    if len(common) > most:
        rest = f"{len(common) - most + 1} others"
        names = (*common[: most - 1], rest)
    else:
        names = tuple(common)
    index = {name: min(i, len(names) - 1) for i, name in enumerate(common)}
    return Color(label, np.array([index.get(text, np.nan) for text in texts], np.float64), names)


def draw_map(sample: Sample, color: Color, model: str) -> tuple[Figure, str]:
    """Draw the sample along its first two components.

    Args:
        sample: Some rows.
        color: What colours them.
        model: What has embedded them.

    Returns:
        The figure, and what it shows in words.
    """
    points, shares = principal_components(sample.vectors)
    figure, [axis] = new_figure(5.6)
    _scatter(figure, axis, points, color)
    kind = kind_of_points(model, sample.ids)
    words = f"{len(points):,} {kind}"
    if len(points) + sample.lost < sample.total:
        words = f"a random sample of {len(points):,} of {sample.total:,} {kind}"
    if sample.lost:
        words += f", {sample.lost:,} not finite left out"
    fit_title(axis, f"{plain(model, _NAME_LETTERS)}\n{words}", fontsize=11)
    labels = [f"PC {i + 1} ({100 * share:.1f} % of variance)" for i, share in enumerate(shares)]
    axis.set(xlabel=labels[0], ylabel=labels[1])
    return figure, (
        f"Map of {words}, as {model} embeds them, by their first two principal components, which "
        f"hold {100 * shares.sum():.1f} % of the variance, coloured by {color.label}."
    )


def _scatter(figure: Figure, axis: Axes, points: NDArray[np.float64], color: Color) -> None:
    """Draw points (N, 2), and say what their colours mean."""
    size = float(np.clip(20_000 / len(points), 4, 40))
    x, y = points.T
    title = plain(color.label, _NAME_LETTERS)
    missing = np.isnan(color.values)
    labels = []
    if missing.any():
        labels.append(f"none ({int(missing.sum()):,})")
        style = {"c": COLORS["NA"], "marker": "x", "linewidths": 0.8}
        axis.scatter(x[missing], y[missing], size, label=labels[-1], **style)
    for i, name in enumerate(color.names):
        inside = color.values == i
        labels.append(f"{plain(name, _NAME_LETTERS)} ({int(inside.sum()):,})")
        style = {"c": _CATEGORY_COLORS[i], "marker": _MARKERS[i], "linewidths": 0}
        axis.scatter(x[inside], y[inside], size, label=labels[-1], **style)
    if not color.names and not missing.all():
        known = color.values[~missing]
        bounds = (float(known.min()), float(known.max()))
        norm = LogNorm(*bounds) if ratio(known) > _LOG_RATIO else Normalize(*bounds)
        style = {"c": known, "cmap": "viridis", "norm": norm, "linewidths": 0}
        figure.colorbar(axis.scatter(x[~missing], y[~missing], size, **style), ax=axis, label=title)
    if labels:
        columns = 2 if max(map(len, labels)) <= _NARROW_LETTERS else 1
        # Room for the legend, so that the map keeps its own.
        figure.set_figheight(figure.get_figheight() + _LINE * (1 + len(labels) / columns))
        figure.legend(
            title=title if color.names else None,
            loc="outside lower center",
            ncols=columns,
            frameon=False,
            markerscale=max(1.0, 5 / size**0.5),
        )
