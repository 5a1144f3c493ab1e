"""The store of ORFs, the packs of both models, and the ORF files, against VirNucPro's own."""

import hashlib
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from lightning.pytorch import LightningModule

from virnucpro_pl import ESM2Embedder
from virnucpro_pl.errors import InputError, UsageError
from virnucpro_pl.input import contig_datamodule as module
from virnucpro_pl.input import orf_store
from virnucpro_pl.input.alphabets import DNA, PRINTABLE
from virnucpro_pl.input.contig_datamodule import ContigDataModule
from virnucpro_pl.input.dna_tokens import DNATokenizer
from virnucpro_pl.input.files import input_stem
from virnucpro_pl.input.orf_store import OrfStore, write_orfs
from virnucpro_pl.input.packs import OrfPacks
from virnucpro_pl.input.protein_tokens import ProteinTokenizer
from virnucpro_pl.input.reader import read_records
from virnucpro_pl.input.records import RecordStore

DATA = Path(__file__).parent.parent / "data" / "virnucpro"
# SHA-256 (half of it) of the nucleotide and protein files, by input and length of a chunk.
EDGE = ("290e5da84dd4d2ec1600d447d626a156", "d0c40d6cdfd8c77e7aab5fb5fc907d6d")
GAPS = ("de991049132b76dd8142a654e746d798", "4632c281106931fddbc4bf0810e9f532")
WRITTEN_BY_VIRNUCPRO = {
    ("edge", 300): EDGE,
    ("edge", 500): EDGE,
    ("gaps", 300): GAPS,
    ("gaps", 500): GAPS,
    ("lengths", 300): ("a320a71abbea17941a251c59c45adbfa", "266b7528de7514bcf7a3feecf106ef4b"),
    ("lengths", 500): ("565053f80c90590920b409350d0673a9", "4d34a2251eb414c373b30438684f02c6"),
}


def store_of(text, folder, size=500):
    path = folder / "in.fa"
    path.write_text(text)
    return write_orfs(read_records(path, PRINTABLE, folder), size)


def strings(store, kind="nucleotide"):
    rows = np.arange(len(store))
    letters = [s.decode() for s in store.sequences(kind, rows)]
    return dict(zip(store.ids(rows), letters, strict=True))


def columns(store):
    return {name: column.tolist() for name, column in store.columns.items()}


@pytest.mark.parametrize("block", [1, 700, 64 << 20])
@pytest.mark.parametrize(("name", "size"), WRITTEN_BY_VIRNUCPRO)
def test_orf_files_of_any_block_equal_virnucpros(tmp_path, monkeypatch, name, size, block):
    monkeypatch.setattr(orf_store, "_BLOCK", block)
    monkeypatch.setattr(module, "_ROWS", 7 if block < 1000 else 1 << 16)
    data = ContigDataModule(DATA / f"{name}.fa", size, save_orfs=True)
    data.store = write_orfs(read_records(data.paths, PRINTABLE, tmp_path), size)
    data.write_beside(tmp_path)
    files = [tmp_path / f"{name}_identified_{kind}" for kind in ("nucleotide.fa", "protein.faa")]
    digests = tuple(hashlib.sha256(file.read_bytes()).hexdigest()[:32] for file in files)
    assert digests == WRITTEN_BY_VIRNUCPRO[name, size]


def test_orf_store_by_hand(tmp_path):
    store = store_of(">none\nTAATTAATTAATTAATTAATTAATTAATTA\n>x y\nAT\n>b\natg c\n", tmp_path)
    assert strings(store) == {
        "b_chunk_1F1": "ATGC",
        "b_chunk_1F2": "TGC",
        "b_chunk_1R1": "GCAT",
        "b_chunk_1R2": "CAT",
    }
    assert list(strings(store, "protein").values()) == ["M", "C", "A", "H"]
    assert store.lengths.tolist() == [1, 1, 1, 1]
    assert store.letter_counts("nucleotide").tolist() == [4, 3, 4, 3]
    assert store.columns["record"].tolist() == [2, 2, 2, 2]
    assert store.columns["n_chunks"].tolist() == [1, 1, 1]
    assert store.columns["n_orfs"].tolist() == [0, 0, 4]
    assert store.ids(np.array([3, 0])) == ["b_chunk_1R2", "b_chunk_1F1"]
    assert store.sequences("protein", np.array([3, 0])) == [b"H", b"M"]


def test_short_contigs_have_no_chunks_and_the_others_the_same(tmp_path):
    text = "".join(f">c{n}\n{'GCC' * 400}"[: n + len(f">c{n}\n")] + "\n" for n in (3, 8, 9, 600))
    store = store_of(text, tmp_path)
    found, chunks = strings(store), store.places(np.arange(4))
    short = write_orfs(RecordStore(tmp_path), 500, min_length=9)
    assert short.columns["n_chunks"].tolist() == [0, 0, 1, 2]
    assert strings(short) == {n: s for n, s in found.items() if n.startswith(("c9_", "c600_"))}
    assert len(strings(short)) < len(found)
    places = short.places(np.arange(4))
    assert places.start.tolist() == chunks.start.tolist()[2:]
    assert places.length.tolist() == chunks.length.tolist()[2:]
    assert short.counts == {"shorter_than_min_length": 2}
    assert short.sha256 == f"{store.sha256}/9"


def test_store_of_a_sample_knows_it_and_has_its_chunks_only(tmp_path):
    text = "".join(f">c{n}\n{'GCCAACGGCTGG' * n}\n" for n in (3, 100, 400))
    store = store_of(text, tmp_path)
    whole = strings(store)
    some = write_orfs(RecordStore(tmp_path), 500, max_chunks=3)
    assert (store.max_chunks, some.max_chunks) == (None, 3)
    assert some.columns["n_chunks"].tolist() == [1, 3, 10]
    assert some.n_sampled.tolist() == [1, 3, 3]
    assert store.n_sampled.tolist() == [1, 3, 10]
    left_out = {f"c400_chunk_{n}" for n in (2, 3, 4, 6, 7, 8, 9)}
    assert strings(some) == {n: s for n, s in whole.items() if n[:-2] not in left_out}
    places = some.places(np.array([1, 2]))
    assert places.start.tolist() == store.places(np.array([1, 2])).start.tolist()
    assert np.flatnonzero(places.is_sampled).tolist() == [0, 1, 2, 3, 7, 12]
    assert some.sha256 == f"{store.sha256}/at most 3"
    assert columns(pickle.loads(pickle.dumps(some))) == columns(some)


@pytest.mark.parametrize("most", [0, -1])
def test_sample_of_no_chunk_is_refused(tmp_path, most):
    with pytest.raises(UsageError, match=f"--data.max_chunks must be at least 1, not {most}"):
        ContigDataModule(tmp_path / "in.fa", max_chunks=most)


def test_orf_store_received_by_a_worker_is_mapped_by_path(tmp_path):
    store = store_of(">a\nATGC\n", tmp_path)
    sent = pickle.dumps(store)
    assert len(sent) < 500
    assert columns(pickle.loads(sent)) == columns(store)


def test_orf_store_hash_differs_by_chunk_length_and_sequence(tmp_path):
    hashes = set()
    for size, text in ((500, ">a\nATGC\n"), (300, ">a\nATGC\n"), (500, ">a\nATGA\n")):
        folder = tmp_path / str(len(hashes))
        folder.mkdir()
        hashes.add(store_of(text, folder, size).sha256)
    assert len(hashes) == 3


def test_orf_store_without_orf_is_empty(tmp_path):
    store = store_of(">a\nTAATTAATTAATTAATTAATTAATTAATTA\n>b\nNNNNN\n", tmp_path)
    assert len(store) == len(store.lengths) == 0
    assert store.ids(np.arange(0)) == []
    assert store.columns["n_orfs"].tolist() == [0, 0]


def test_orf_packs_hold_the_same_rows_for_both_models(tmp_path):
    store = store_of(">a\nATGCATTTGCAG\n>b\nCCCGGGCCC\n", tmp_path)
    packs = [np.array([0, 1, 2]), np.array([4, 3])]
    served = OrfPacks(store, packs, ProteinTokenizer(), DNATokenizer())
    for rows, [batch] in zip(packs, map(served.__getitem__, range(len(served))), strict=True):
        assert batch.rows.tolist() == batch.nucleotides.rows.tolist() == rows.tolist()
        assert batch.ids == batch.nucleotides.ids == tuple(store.ids(rows))
        proteins, nucleotides = (store.sequences(k, rows) for k in ("protein", "nucleotide"))
        assert batch.proteins.lengths.tolist() == [len(s) for s in proteins]
        assert batch.nucleotides.lengths.tolist() == [len(s) for s in nucleotides]
        assert len(batch.tokens) == sum(len(s) + 2 for s in proteins)


def test_orf_packs_pool_over_the_first_1024_residues_only(tmp_path):
    store = store_of(f">a\n{'GCC' * 1100}\n", tmp_path, size=4000)
    served = OrfPacks(store, [np.array([0])], ProteinTokenizer(), DNATokenizer())
    [batch] = served[0]
    assert store.lengths[0] == 1100
    assert len(batch.tokens) == 1102  # the model sees all of it
    assert batch.proteins.pool_tokens.tolist() == list(range(1, 1025))
    assert len(batch.nucleotides.pool_tokens) == len(batch.nucleotides.tokens)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("contigs.fasta.gz", "contigs"),
        ("a/b.v1.fna", "b.v1"),
        ("reads.fq.zst", "reads"),
        ("plain", "plain"),
        ("x.gz", "x"),
        ("-", "stdin"),
    ],
)
def test_input_stem_drops_compression_and_format(name, stem):
    assert input_stem(Path(name)) == stem


@pytest.mark.parametrize("length", [2, 0, -500])
def test_contig_data_module_too_short_chunk_raises(length):
    with pytest.raises(UsageError, match="at least 3, a codon"):
        ContigDataModule("x.fa", length=length)


def in_trainer(data, model=None):
    """Put a data module into something like a Trainer."""
    data.trainer = SimpleNamespace(
        lightning_module=model, callbacks=[], strategy=None, is_global_zero=True
    )
    return data


def test_contig_data_module_original_letters_are_counted_and_none_changed(tmp_path, caplog):
    path = tmp_path / "in.fa"
    path.write_text(">a\nACGUUN\n>b\nry-*Xk.1u\n")
    in_trainer(data := ContigDataModule(path, letters="original")).read(tmp_path)
    assert "no residue: 3 U, 1 -, 1 *, 1 X, 1 ., 1 1" in caplog.text
    contigs = OrfStore(tmp_path).contigs
    assert contigs.sequences(np.arange(2)) == [b"ACGUUN", b"RY-*XK.1U"]
    assert data.paths == [path]


def test_contig_data_module_usual_letters_are_not_mentioned(tmp_path, caplog):
    path = tmp_path / "in.fa"
    path.write_text(">a\nACGTNRYSWKMBDHVacgtn\n")
    in_trainer(ContigDataModule(path)).read(tmp_path)
    assert "kept as they are" not in caplog.text


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", "is empty"),
        (">a\nACG\n>b\nA-C*G\n>c\nAC\n", r"record 2 \(b\): '-' at position 2 is no base"),
        (">a x\nACG\n>a y\nAC\n", r"record 2 \(a\): the id is that of record 1"),
        (">a\nAC\x07G\n", "the byte 0x07 at position 3 is no base"),
        (">a\nAC\xe9G\n", "the byte 0xc3 at position 3 is no base"),
    ],
)
def test_contig_data_module_bad_input_raises_with_place(tmp_path, text, place):
    path = tmp_path / "in.fa"
    path.write_text(text)
    with pytest.raises(InputError, match=place):
        in_trainer(ContigDataModule(path)).read(tmp_path)


def test_contig_data_module_wrong_company_raises(tmp_path):
    path = tmp_path / "in.fa"
    path.write_text(">a\nACG\n")
    embedder = ESM2Embedder(weights="random")
    data = in_trainer(ContigDataModule(path), embedder)
    data.prepare_data()
    assert "ESM2Embedder needs a SequenceDataModule as its data" in str(data.fault)
    data = in_trainer(ContigDataModule(path), LightningModule())
    data.prepare_data()
    assert "ContigDataModule needs a model of this package, not a Light" in str(data.fault)
    with pytest.raises(UsageError, match="folder of a TableWriter"):
        in_trainer(ContigDataModule(path, save_orfs=True)).read(tmp_path)


def test_write_orfs_without_room_raises_usage_error(tmp_path):
    path = tmp_path / "in.fa"
    path.write_text(">a\nACG\n")
    contigs = read_records(path, PRINTABLE, tmp_path)
    (tmp_path / "orfs.proteins").mkdir()
    with pytest.raises(UsageError, match="ORFs cannot be stored"):
        write_orfs(contigs, 500)


def test_contigs_read_u_as_t_by_default_and_alone_for_the_original(tmp_path):
    path = tmp_path / "rna.fa"
    path.write_text(">a\nAUGGCCUAAGCcu\n")
    found = {}
    for letters in ("iupac", "original"):
        data = in_trainer(ContigDataModule(path, letters=letters))
        data.read(tmp_path)
        data.open(tmp_path)
        found[letters] = strings(data.store, "protein"), data.input_counts
    path.write_text(">a\nATGGCCTAAGCCT\n")
    as_dna = strings(write_orfs(read_records(path, DNA, tmp_path), 500), "protein")
    assert found["iupac"] == (as_dna, {"u_read_as_t": 3})
    assert found["original"][0] != as_dna
    assert found["original"][1] == {}


def test_orf_files_hold_utf8_ids(tmp_path):
    data = ContigDataModule(tmp_path / "in.fa", save_orfs=True)
    data.store = store_of(">café\nATG\n", tmp_path)
    data.write_beside(tmp_path)
    text = (tmp_path / "in_identified_protein.faa").read_text(encoding="utf-8")
    assert text.startswith(">café_chunk_1F1\nM\n")


def test_orf_store_of_records_without_letters(tmp_path):
    for text in (">a\n>b\n", ">a\n>b\nATG\n>c\n"):
        path = tmp_path / "in.fa"
        path.write_text(text)
        contigs = read_records(path, DNA, tmp_path, allow_empty_records=True)
        store = write_orfs(contigs, 500)
        assert store.columns["n_chunks"].tolist() == [min(1, n) for n in contigs.lengths]
        assert len(store) == (2 if "ATG" in text else 0)
