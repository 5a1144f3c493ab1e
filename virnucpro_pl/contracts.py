"""What a data module, a model and a writer ask of each other: read this file first.

A Trainer brings the three together. The rooms `input`, `models` and `output` do not import one
another: each finds the others with the functions at the end of this file, and knows of them what
stands here. `SequenceDataModule` and its kin are a `RowSource`, the modules in `predict` are a
`RowModel`, the writers are a `Workspace`.

Shape letters, everywhere: N sequences in a pack, B rows of a batch, M rows and R records of an
input, T tokens in a pack, H heads, K head width, D model width. A pack's sequences are distinct, so
that N is less than B where rows have equal ones; what a model returns is of the rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from virnucpro_pl.calibration import Calibration
from virnucpro_pl.errors import UsageError

if TYPE_CHECKING:  # torch takes seconds to import, and nothing here needs it
    from torch import Tensor

Molecule = Literal["DNA", "protein"]
FRAMES = ("F1", "F2", "F3", "R1", "R2", "R3")
"""Names of the frames of a chunk, in their order."""


class Tokenizer(Protocol):
    """What a model needs of its input: letters, tokens, and which of them are pooled."""

    @property
    def molecule(self) -> Molecule:
        """What the sequences are."""

    @property
    def specials(self) -> int:
        """Special tokens added to each sequence."""

    @property
    def margin(self) -> int:
        """Tokens at each end of a sequence that are not in its mean."""

    def estimate(self, lengths: NDArray[np.int64]) -> NDArray[np.int64] | NDArray[np.float64]:
        """Tokens, special ones not counted, of sequences of these lengths; exact where possible."""

    def encode(self, sequences: Sequence[bytes]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokens (T,) of all sequences, special ones included, and how many each has (N,)."""


# From the data module to the model, and on to the writer -----------------------------------------


class Batch(Protocol):
    """Some rows on their way through the model."""

    @property
    def rows(self) -> Tensor:
        """(B,) int64 rows of the input; on the host."""

    @property
    def ids(self) -> tuple[str, ...]:
        """(B,) id of each row."""

    @property
    def tokens(self) -> Tensor:
        """(T,) what the throughput counts."""


class Embeddings(NamedTuple):
    """What an embedder's `predict_step` returns; all of it on the host."""

    rows: Tensor
    """(B,) int64 rows of the input, those of the batch."""
    vectors: Tensor
    """(B, D) fp32, one for each row; NaN where there is no vector."""
    outcome: Tensor | None = None
    """(B,) uint8: 0 fine, 1 computed again in FP32, 2 failed (see `stability`). None if all are
    fine."""


class Scores(NamedTuple):
    """What a classifying module's `predict_step` returns; all of it on the host."""

    rows: Tensor
    """(B,) int64 row of each ORF in the input."""
    scores: Tensor
    """(B, 2) fp32: P(others) and P(virus); NaN where an embedding is missing."""
    outcome: Tensor | None = None
    """(B,) uint8, the worse of both embeddings'. None if all are fine."""
    dnabert_s: Tensor | None = None
    """(B, 768) fp32 embeddings of the nucleotides."""
    esm2: Tensor | None = None
    """(B, 2560) fp32 embeddings of the proteins."""


# What each of the three is to the others ---------------------------------------------------------


class Rows(Protocol):
    """All rows of a run, numbered from 0."""

    @property
    def unit(self) -> str:
        """What a row is, for messages: `records` or `ORFs`."""

    def __len__(self) -> int:
        """Count them."""

    def ids(self, rows: NDArray[np.int64]) -> list[str]:
        """Ids of some rows."""


class SequenceRows(Rows, Protocol):
    """Rows that are sequences."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(M,) letters of each."""


class Contigs(Protocol):
    """The records of an input whose rows are their open reading frames."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(R,) bases of each."""

    def ids(self, rows: NDArray[np.int64]) -> list[str]:
        """Ids of some records."""

    def sequences(self, rows: NDArray[np.int64]) -> list[bytes]:
        """Letters of some records."""


class ChunkPlaces(NamedTuple):
    """Where the chunks of some contigs lie, in the order of the contigs and within each."""

    start: NDArray[np.int64]
    """(K,) first base of each chunk in its contig, counted from 0."""
    length: NDArray[np.int64]
    """(K,) bases of each chunk."""
    is_sampled: NDArray[np.bool_]
    """(K,) whether the chunk is computed."""


class OrfOrigin(NamedTuple):
    """Which contig, which chunk of it and which frame each open reading frame is of."""

    contigs: Contigs
    places: Callable[[NDArray[np.int64]], ChunkPlaces]
    """Gives the chunks of some contigs."""
    n_chunks: NDArray[np.int64]
    """(R,) chunks of each contig, those without an ORF and those not sampled included."""
    n_sampled: NDArray[np.int64]
    """(R,) chunks of each contig that are computed."""
    record: NDArray[np.int64]
    """(M,) contig of each ORF."""
    chunk: NDArray[np.int64]
    """(M,) chunk of each ORF, counted from 0 in its contig."""
    frame: NDArray[np.int8]
    """(M,) frame of each ORF, an index into FRAMES."""
    letters: dict[Molecule, NDArray[np.int64]]
    """(M,) bases, and residues, of each ORF."""
    min_length: int = 0
    """Bases; a shorter contig is skipped: it has no chunks."""


class Inputs(NamedTuple):
    """The files of a run that reads several, and which of them each record is of."""

    names: list[str]
    """Each file as it was given."""
    file: NDArray[np.int32]
    """(R,) index into `names` of each record: of a contig, or of a row where rows are records."""

    @property
    def counts(self) -> list[dict[str, str | int]]:
        """How many of these records each file has, for reports."""
        records = np.bincount(self.file, minlength=len(self.names)).tolist()
        return [{"file": f, "records": n} for f, n in zip(self.names, records, strict=True)]


class RowSource(ABC):
    """A data module, as the model and the writer see it.

    Attributes:
        store: The rows, from `setup` on.
        fault: On rank 0, what is wrong with the input, from `prepare_data` on.
    """

    store: Rows
    fault: UsageError | None

    @property
    @abstractmethod
    def input_counts(self) -> dict[str, int]:
        """What a reader of the results should know of the input, by name; after `setup`."""

    @property
    @abstractmethod
    def tokens_per_batch(self) -> int:
        """What the `tokens` of a batch are filled up to, for how full packs are; after `setup`."""

    @abstractmethod
    def provenance(self) -> dict[str, Any]:
        """What an output records about its input; after `setup`."""

    @property
    def origin(self) -> OrfOrigin | None:
        """Where the rows are from, if they are open reading frames of contigs; after `setup`."""
        return None

    @property
    def chunk_length(self) -> int | None:
        """Bases of the chunks that ORFs are of, if known; after `prepare_data`, on rank 0."""
        return None

    @property
    def inputs(self) -> Inputs | None:
        """Which file each record is of, where there is more than one; after `setup`."""
        return None

    @property
    def distinct(self) -> dict[str, dict[str, float]] | None:
        """How many of each kind of sequence are distinct, and which share; after `setup`.

        None where each row is computed for itself.
        """
        return None

    def wholly_done(self, done: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which of the rows (M,) that are done need not be computed again with one that is not.

        Rows with equal sequences are computed together.
        """
        return done

    def write_beside(self, folder: Path) -> None:  # noqa: B027 - most have nothing to write
        """Write what the user wants beside the results, such as the open reading frames."""


class SequenceSource(RowSource):
    """A data module whose rows are sequences, as an embedder sees it.

    Attributes:
        store: The sequences, from `setup` on.
    """

    store: SequenceRows

    @abstractmethod
    def tokens_left(self, tokenizer: Tokenizer) -> float:
        """Tokens of the rows that no earlier run has committed, after `predict_dataloader`."""


class RowModel(ABC):
    """A model, as the data module and the writer see it.

    Attributes:
        columns: Names of the tensors of its predictions, of which a writer keeps some.
        data_needed: Name of the class of its data module.
        spreads: Whether it spreads a sequence's numbers to all rows of a batch that have it. Each
            sequence is given to others once for each row.
    """

    columns: tuple[str, ...]
    data_needed: str
    spreads: bool = False

    @property
    def class_name(self) -> str:
        """What messages call its class."""
        return type(self).__name__

    def check_data(self, data: object) -> None:
        """Refuse the data module of another model.

        Raises:
            UsageError: If neither its class nor one that it is made from has the name needed.
        """
        if self.data_needed not in (kind.__name__ for kind in type(data).__mro__):
            article = "an" if self.data_needed[0] in "AEIOU" else "a"
            raise UsageError(
                f"{self.class_name} needs {article} {self.data_needed} as its data, "
                f"not {type(data).__name__}"
            )

    @property
    def leaves_out_failures(self) -> bool:
        """Whether a row that cannot be had is left NaN and the run goes on."""
        return False

    @property
    def calibration(self) -> Calibration | None:
        """What its scores mean, from `configure_model` on; None if that is not known."""
        return None

    @property
    @abstractmethod
    def tokenizers(self) -> tuple[Tokenizer, ...]:
        """One for each network that reads sequences; none if it reads features."""

    @property
    @abstractmethod
    def input_files(self) -> list[Path]:
        """Files and folders that it reads, so that none of them is written."""

    @abstractmethod
    def width_of(self, column: str) -> int:
        """Numbers of a row of one of its `columns`, from `configure_model` on."""

    @abstractmethod
    def provenance(self) -> dict[str, Any]:
        """What an output records about it; from `configure_model` on. Waits for hashes."""


class UsersModel(RowModel):
    """A LightningModule of the user's own that has a `tokenizer`: an embedder.

    With a `width` and a `provenance()`, and `Embeddings` as its predictions, it can be written.
    """

    data_needed = "SequenceDataModule"

    def __init__(self, module: Any) -> None:
        """Look at a module."""
        self._module = module
        self.columns = ("vectors",) if hasattr(module, "width") else ()
        self.spreads = bool(getattr(module, "spreads", False))

    @property
    def class_name(self) -> str:
        """Name of the module's class."""
        return type(self._module).__name__

    @property
    def tokenizers(self) -> tuple[Tokenizer, ...]:
        """The module's tokenizer."""
        return (self._module.tokenizer,)

    @property
    def input_files(self) -> list[Path]:
        """Those that the module names, if it names any."""
        return list(getattr(self._module, "input_files", ()))

    def width_of(self, column: str) -> int:
        """Numbers of a vector."""
        return int(self._module.width)

    def provenance(self) -> dict[str, Any]:
        """What the module says of itself."""
        return dict(self._module.provenance())


class Workspace(ABC):
    """A writer, as the data module sees it: a folder shared by all ranks, and which rows it has.

    Attributes:
        path: File or folder that is published.
    """

    path: Path

    @property
    def needs_calibration(self) -> str:
        """The option for which it must know what the model's scores mean; empty without one."""
        return ""

    @abstractmethod
    def claim(self, inputs: Sequence[Path]) -> Path:
        """Refuse an output that is an input or cannot be written, else make the folder."""

    @abstractmethod
    def finished_rows(self, count: int, trainer: Any) -> NDArray[np.bool_]:
        """Flags (count,) of the rows that an earlier run has committed; called on every rank."""


class FailureRecord(ABC):
    """Where failures are written, as the model and the writer see it."""

    @abstractmethod
    def record(
        self, trainer: Any, exception: Exception, sequence_ids: list[str], failed_batch: int | None
    ) -> None:
        """Write one failure down: which sequences, of which batch, and why."""

    @abstractmethod
    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Write the failure down that ends the run, unless that is done."""


# How they find each other. A Trainer's attributes are not typed; here alone they are looked at ----


def source_of(trainer: Any) -> RowSource | None:
    """The Trainer's data module; None if it is not of this package."""
    data = getattr(trainer, "datamodule", None)
    return data if isinstance(data, RowSource) else None


def model_of(trainer: Any) -> RowModel | None:
    """The Trainer's model; None if it does not say how it reads sequences."""
    model = trainer.lightning_module
    if isinstance(model, RowModel):
        return model
    return UsersModel(model) if hasattr(model, "tokenizer") else None


def workspace_of(trainer: Any) -> Workspace | None:
    """The writer among the Trainer's callbacks, if there is one."""
    return next((c for c in trainer.callbacks if isinstance(c, Workspace)), None)


def failure_records_of(trainer: Any) -> list[FailureRecord]:
    """The failure logs among the Trainer's callbacks."""
    return [c for c in trainer.callbacks if isinstance(c, FailureRecord)]
