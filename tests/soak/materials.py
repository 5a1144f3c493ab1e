"""Small models in the published formats and inputs for them, made once and always the same."""

import argparse
import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.soak.processes import reap
from tests.soak.warm import fork

RESIDUES = "LAGVSERTIDPKQNFYMHC"
CODONS = ["GCC", "AAC", "GGC", "CTG", "ACC", "GCA", "CAG"]
"""Those that give few stops in any frame."""
WIDTHS = {"dnabert_s": 48, "esm2": 32}
RECORDS = 120


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder that is made by the first who asks for it, and is then there for all.

    Args:
        folder: Its name.
        make: Fills it, in a process of its own, so that no thread of torch is here afterwards.

    Raises:
        RuntimeError: If that failed.
    """
    if folder.exists():
        return folder
    folder.parent.mkdir(exist_ok=True)
    with (folder.parent / "lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        if folder.exists():
            return folder
        temporary = folder.with_name(f".{folder.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        make(temporary)
        temporary.rename(folder)
    return folder


def materials(shared: Path) -> Path:
    """The folder with all models and inputs."""

    def make(folder: Path) -> None:
        pid = fork(lambda: _make(folder) or 0)
        while not (ended := reap()):
            pass
        if ended[pid]:
            raise RuntimeError("the models for the soak cannot be made")

    return made_once(shared / "materials", make)


def _make(folder: Path) -> None:
    import torch

    draw = np.random.default_rng(0)
    torch.manual_seed(0)
    _write_esm2(folder / "esm2.pt")
    from tests.conftest import PlainDNABERTS

    PlainDNABERTS(4, width=WIDTHS["dnabert_s"]).save(folder / "dnabert_s")
    _write_classifier(folder / "classifier.ckpt")
    proteins = _draw_records(draw, RESIDUES, 5, 160)
    dna = _draw_records(draw, "ACGT", 20, 400)
    lengths = [1400, 90, 501, 33, *draw.integers(200, 1800, 20).tolist(), 1000]
    contigs = ["".join(draw.choice(CODONS, n // 3 + 1))[:n] for n in lengths]
    contigs[3:3] = ["AC", "TAATTAATTAA" * 9, contigs[0]]
    for name, records in (("proteins.faa", proteins), ("dna.fna", dna), ("contigs.fna", contigs)):
        lines = (f">r{i} text\n{letters}\n" for i, letters in enumerate(records))
        (folder / name).write_text("".join(lines))
    ids = [f"c{r}_chunk_{c + 1}F2" for r in range(700) for c in range(r % 4 + 1)]
    for kind, width in WIDTHS.items():
        vectors = draw.normal(size=(len(ids), width))
        _write_embeddings(folder / f"pair_{kind}.h5", ids, vectors)
    for name, mean in (("viral", 0.2), ("other", -0.2)):
        ids = [f"{name}{r}_chunk_{c + 1}F2" for r in range(40) for c in range(r % 4 + 2)]
        for kind, width in WIDTHS.items():
            vectors = draw.normal(mean, size=(len(ids), width))
            _write_embeddings(folder / f"{name}_{kind}.h5", ids, vectors)


def _draw_records(draw: np.random.Generator, letters: str, least: int, most: int) -> list[str]:
    """Random sequences, a fifth of them with the sequence of another."""
    lengths = draw.integers(least, most, RECORDS)
    records = ["".join(draw.choice(list(letters), length)) for length in lengths]
    for row in draw.choice(RECORDS, RECORDS // 5, replace=False):
        records[row] = records[draw.integers(RECORDS)]
    return records


def _write_esm2(path: Path) -> None:
    """A random ESM2 as fair-esm's published files are."""
    import torch
    from esm.model.esm2 import ESM2

    model = ESM2(3, WIDTHS["esm2"], 4, alphabet="ESM-1b", token_dropout=True)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.2)
    tensors = {
        f"encoder.{'' if name.startswith('lm_head') else 'sentence_encoder.'}{name}": tensor.clone()
        for name, tensor in model.state_dict().items()
        if not name.startswith("contact_head")
    }
    config = argparse.Namespace(
        encoder_layers=3,
        encoder_embed_dim=WIDTHS["esm2"],
        encoder_attention_heads=4,
        token_dropout=True,
        arch="esm2",
    )
    torch.save({"cfg": {"model": config}, "model": tensors}, path)


def _write_classifier(path: Path) -> None:
    """A random classifier as its authors' state dict is."""
    import torch

    from virnucpro_pl.models.classifier import MLPClassifier

    model = MLPClassifier(sum(WIDTHS.values()), 16)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.save(model.state_dict(), path)


def _write_embeddings(path: Path, ids: list[str], vectors: np.ndarray) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file["embeddings"] = vectors.astype(np.float32)
        file.create_dataset("sequence_ids", data=ids, dtype=h5py.string_dtype())
        file.attrs.update(format="virnucpro-pl embeddings", format_version=1, complete=True)
