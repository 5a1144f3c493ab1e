"""`virnucpro-pl export`: embeddings, and calls, in the formats that others read."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from typing import Literal

import h5py
import numpy as np

from virnucpro_pl.embeddings.embedding_file import EmbeddingFile, load_embeddings
from virnucpro_pl.embeddings.sequence_keys import sequence_keys
from virnucpro_pl.errors import MAX_LISTED, UnwritableError, UsageError
from virnucpro_pl.output.atomic_files import published
from virnucpro_pl.output.overwriting import check_exports
from virnucpro_pl.output.viral_pipelines import export_results

log = logging.getLogger(__name__)

Format = Literal["per-id", "biotrainer", "anndata", "npy", "viral-pipelines"]
_SUFFIXES = {
    "per-id": ".per-id.h5",
    "biotrainer": ".biotrainer.h5",
    "anndata": ".h5ad",
    "npy": ".npy",
}
_UNSAFE = re.compile(r"[/%]|^\.+$")
"""What cannot stand in the name of an HDF5 dataset: `/` parts groups, `.` is the group itself."""
_CHUNK_BYTES = 1 << 18
_LOOKED_AT = 1000
"""Datasets of a file by which it is told to be one of this command."""


def export(
    file: Path,
    *,
    to: Format,
    output: Path | None = None,
    sequences: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Write an embedding file, or calls, as other programs read them.

    Args:
        file: Embedding file of this program, all rows of which are written; records that failed are
            NaN in the output, too. For viral-pipelines a folder of results of contigs.
        to: per-id is HDF5 with one dataset (D,) for each record, named by its id, with the id again
            as its attribute original_id: what reads UniProt's per-protein.h5, bio_embeddings or
            protspace reads it. In names / is %2F and % is %25. biotrainer is the same, but named by
            the hashes of the sequences, as biotrainer does: of equal sequences the first one's
            vector is kept. Needs --sequences. anndata is .h5ad with the vectors as X, ids and
            lengths as obs; needs pip install 'virnucpro-pl[anndata]'. npy is a matrix (N, D), and
            beside it the ids, one a line, in a file .ids.txt. viral-pipelines is what the tasks of
            broadinstitute/viral-pipelines write: NAME.virnucpro.tsv, NAME.virnucpro_
            highestscore.csv, both packed as NAME.virnucpro.tgz, and NAME.contigs_classified.tsv;
            what has no score is left out.
        output: File to write; by default the input's name with .per-id.h5, .biotrainer.h5, .h5ad or
            .npy. For viral-pipelines what the files' names begin with, by default as the folder.
        sequences: For biotrainer, the FASTA or FASTQ file that was embedded.
        overwrite: Whether to replace a file that exists and is as this command writes it.

    Raises:
        UsageError: If the file cannot be used, or the output exists, is no export, or has no
            folder.
        OutputError: If the disk is full, for example.
    """
    if (to == "biotrainer") != (sequences is not None):
        raise UsageError(
            "--to biotrainer needs --sequences, the file that was embedded: its keys are hashes of "
            "the letters, which embedding files do not hold"
            if sequences is None
            else f"--sequences is for --to biotrainer, not for --to {to}"
        )
    if to == "viral-pipelines":
        export_results(file, output, overwrite)
        return
    output = file.with_suffix(_SUFFIXES[to]) if output is None else output
    if to == "npy" and output.suffix != ".npy":
        raise UsageError(f"--output {output}: a matrix needs a name that ends in .npy")
    if to == "anndata" and find_spec("anndata") is None:
        raise UsageError("anndata is not installed: pip install 'virnucpro-pl[anndata]'")
    outputs = [output, output.with_suffix(".ids.txt")] if to == "npy" else [output]
    checks = {
        "per-id": [_holds_datasets],
        "biotrainer": [_holds_datasets],
        "anndata": [_is_anndata],
        "npy": [_is_matrix, _are_ids],
    }[to]
    with load_embeddings(file) as embeddings:
        inputs = [file, *([sequences] if sequences else [])]
        check_exports(dict(zip(outputs, checks, strict=True)), inputs, to, overwrite)
        if count := len(embeddings.failed):
            names = ", ".join(embeddings.ids_of(embeddings.failed[:MAX_LISTED]))
            log.warning("%d records have no vector and are written as NaN: %s ...", count, names)
        written = len(embeddings)
        with _reporting(output):
            if sequences is not None:
                written = _write_datasets(embeddings, output, sequence_keys(embeddings, sequences))
            elif to == "per-id":
                _write_datasets(embeddings, output, map(dataset_name, embeddings))
            elif to == "anndata":
                _write_anndata(embeddings, output)
            else:
                _write_npy(embeddings, *outputs)
        log.info(
            "Wrote %s: %d vectors of %d numbers",
            " and ".join(map(str, outputs)),
            written,
            embeddings.width,
        )


def _holds_datasets(path: Path) -> bool:
    with h5py.File(path) as file:
        first = (file[name] for name in islice(file, _LOOKED_AT))
        return set(file.attrs) <= {"model_name"} and all(
            isinstance(item, h5py.Dataset) and "original_id" in item.attrs for item in first
        )


def _is_anndata(path: Path) -> bool:
    with h5py.File(path) as file:
        return file.attrs.get("encoding-type") == "anndata" and "obs/failed" in file


def _is_matrix(path: Path) -> bool:
    return _shape_of_matrix(path) is not None


def _are_ids(path: Path) -> bool:
    """Tell whether there is an id for each row of the matrix beside it."""
    shape = _shape_of_matrix(path.with_suffix("").with_suffix(".npy"))
    with path.open("rb") as text:
        return shape is not None and sum(1 for _ in text) == shape[0]


def _shape_of_matrix(path: Path) -> tuple[int, int] | None:
    """Rows and columns of a matrix in float32; None of any other array."""
    with path.open("rb") as matrix:
        np.lib.format.read_magic(matrix)
        shape, _, dtype = np.lib.format.read_array_header_1_0(matrix)
    return shape if len(shape) == 2 and dtype == np.float32 else None


@contextmanager
def _reporting(output: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # h5py raises either on a full disk
        raise UnwritableError(f"{output} cannot be written: {error}") from error


def _write_datasets(embeddings: EmbeddingFile, output: Path, keys: Iterator[str]) -> int:
    """Write one dataset for each key, of rows with one key the first, and count them."""
    with published(output) as temporary, h5py.File(temporary, "w") as file:
        if "model" in embeddings.attributes:
            file.attrs["model_name"] = embeddings.attributes["model"]  # what protspace asks for
        rows = chain.from_iterable(zip(*block, strict=True) for block in embeddings.row_blocks())
        written = 0
        for key, (name, vector) in zip(keys, rows, strict=True):
            if key not in file:
                file.create_dataset(key, data=vector).attrs["original_id"] = name
                written += 1
    if repeated := len(embeddings) - written:
        log.warning(
            "%d record(s) have the sequence of an earlier one, whose vector and id stand for them: "
            "biotrainer knows sequences, not records",
            repeated,
        )
    return written


def dataset_name(name: str) -> str:
    """Give the name of a record's dataset; no two ids have the same one.

    UniProt's readers look a record up by this name, those of bio_embeddings by the attribute; the
    letters that HDF5 does not allow are escaped as in an address.
    """
    return _UNSAFE.sub(lambda unsafe: "".join(f"%{ord(letter):02X}" for letter in unsafe[0]), name)


def _write_npy(embeddings: EmbeddingFile, output: Path, ids: Path) -> None:
    shape = len(embeddings), embeddings.width
    with published(ids) as names_file, published(output) as temporary:
        with temporary.open("wb") as matrix, names_file.open("w", encoding="utf-8") as text:
            # Not by open_memmap: a mapped file on a full disk kills the program.
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(matrix, header)
            for names, vectors in embeddings.row_blocks():
                matrix.write(vectors.astype("<f4", copy=False).tobytes())
                text.writelines(f"{name}\n" for name in names)


def _write_anndata(embeddings: EmbeddingFile, output: Path) -> None:
    """Let anndata write all but the matrix, which it would want whole, and add that in blocks.

    The matrix follows anndata's on-disk format, encoding `array` of version 0.2.0.
    """
    import anndata
    import pandas

    count, width = len(embeddings), embeddings.width
    rows = pandas.DataFrame(index=pandas.Index(embeddings.ids, dtype=object))
    if embeddings.lengths is not None:
        rows["length"] = embeddings.lengths
    rows["failed"] = np.isin(np.arange(count), embeddings.failed)
    columns = pandas.DataFrame(index=pandas.Index([str(i) for i in range(width)], dtype=object))
    attributes = {
        key: value for key, value in embeddings.attributes.items() if isinstance(value, str)
    }
    with published(output) as temporary:
        anndata.AnnData(obs=rows, var=columns, uns=attributes).write_h5ad(temporary)
        with h5py.File(temporary, "r+") as file:
            if "X" in file:
                del file["X"]
            chunk = (max(1, min(count, _CHUNK_BYTES // (4 * width))), width) if count else None
            matrix = file.create_dataset("X", (count, width), np.float32, chunks=chunk)
            matrix.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
            start = 0
            for _, vectors in embeddings.row_blocks():
                matrix[start : start + len(vectors)] = vectors
                start += len(vectors)
