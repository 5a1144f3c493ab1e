import json
import math
import re
import sys

import h5py
import numpy as np
import pytest
import torch

from virnucpro_pl.bench import ours
from virnucpro_pl.bench.agreement import vectors_apart
from virnucpro_pl.bench.case import Case, draw, draw_genes, write_fasta
from virnucpro_pl.bench.peers import (
    _padded_batches,
    dnabert_s_of,
    import_authors_code,
    peers,
)
from virnucpro_pl.bench.processes import write_weights
from virnucpro_pl.cli.main import main
from virnucpro_pl.errors import OutputError, UsageError
from virnucpro_pl.input.alphabets import DNA
from virnucpro_pl.input.orf_store import write_orfs
from virnucpro_pl.input.reader import read_records
from virnucpro_pl.models.esm2_files import load_esm2

SMALL = "esm2_t6_8M_UR50D"


@pytest.fixture
def bench(tmp_path, monkeypatch, capsys):
    """Run the command; return its JSON and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        main(["bench", "--seconds=0.2", "--num_workers=0", *map(str, words)])
        return json.loads((tmp_path / "bench.json").read_text()), capsys.readouterr().out

    return run


def case(tmp_path, **options):
    fixed = (SMALL, [], 0.1, 500, 0, torch.device("cpu"), tmp_path)
    return Case(*fixed)._replace(**options)


def assert_rows(rows, names):
    assert [row["name"] for row in rows] == names
    for row in rows:
        assert row["tokens_per_second"] > row["sequences_per_second"] > 0
        assert row["over_limit"] is None if "one core" in row["name"] else row["over_limit"] > 0


@pytest.fixture
def fasta(write_fasta, tmp_path):
    return write_fasta(tmp_path / "in.faa", ["MKVLAAGIVKLM" * n for n in (2, 5, 1, 3)])


def test_bench_of_a_file_compares_peers(bench, fasta):
    found, shown = bench("--model", SMALL, "--workload", fasta, "--tokens_per_batch=150")
    names = [
        "virnucpro-pl, encoder alone",
        "virnucpro-pl, end to end",
        "tokenising, one core",
        "fair-esm, fp32",
        "transformers, fp32, SDPA",
        "VirNucPro's setting: fair-esm, fp32, 2,048 tokens",
    ]
    best = re.compile(r", [\d,]+ places$")
    rows = [{**row, "name": best.sub("", row["name"])} for row in found["rows"]]
    assert_rows(rows, names)
    assert found["processes"] == []
    assert all(name in shown for name in names[:2])


@pytest.mark.slow
def test_bench_of_processes_starts_the_command_and_scales(bench, fasta):
    found, shown = bench("--model", SMALL, "--workload", fasta, "--tokens_per_batch=150",
                         "--devices=2")  # fmt: skip
    assert_rows(found["rows"], ["virnucpro-pl, encoder alone"])
    one, two = found["processes"]
    assert (one["devices"], two["devices"]) == (1, 2)
    assert one["scaling"] == 1
    assert two["scaling"] == pytest.approx(two["tokens_per_second"] / one["tokens_per_second"])
    assert two["largest_difference"] < 0.02
    # Two processes' times: on a busy machine the import alone may take longer than the other run.
    assert 0.1 < one["import_seconds"] < 600
    assert 0.1 < one["to_first_pack_seconds"] < 600
    assert 0.1 < one["host_gib"] < 4
    assert "the command as a process" in shown
    assert "scaling" in shown


@pytest.mark.slow
def test_bench_of_processes_of_virnucpro_compares_scores(bench, monkeypatch):
    monkeypatch.setattr("virnucpro_pl.bench.processes.FEWEST", 4)
    found, _ = bench("--model=virnucpro", "--esm2", SMALL, "--tokens_per_batch=300", "--devices=2")
    names = [f"{SMALL}, encoder alone", "dnabert_s, encoder alone"]
    assert_rows(found["rows"], names)
    one, two = found["processes"]
    assert (one["devices"], two["devices"]) == (1, 2)
    assert one["largest_difference"] == 0
    assert two["largest_difference"] < 0.02
    assert one["over_read_and_copy"] > 1


@pytest.mark.slow
def test_bench_of_virnucpro_names_what_both_encoders_allow(bench, monkeypatch):
    monkeypatch.setattr(ours, "FEWEST", 4)
    found, _ = bench("--model=virnucpro", "--esm2", SMALL, "--tokens_per_batch=300")
    esm2, dnabert_s, fused, frames, *_ = found["rows"]
    assert frames["name"] == "chunks and their six frames, one core"
    assert frames["sequences_per_second"] > 5000
    allowed = 1 / (1 / esm2["sequences_per_second"] + 1 / dnabert_s["sequences_per_second"])
    assert f"own times allow {allowed:,.0f} sequences/s" in fused["name"]


def test_draw_reads_letters_of_a_file_and_random_ones_are_always_the_same(tmp_path):
    embedder = case(tmp_path).embedder()
    fasta = write_fasta(tmp_path / "in.faa", [b"acd", b"MKV"], 5)
    assert draw(str(fasta), embedder, tmp_path) == [b"ACD", b"MKV", b"ACD", b"MKV", b"ACD"]
    assert {len(s) for s in draw("500-base", embedder, tmp_path)} == {166}
    lengths = [len(s) for s in draw("proteome", embedder, tmp_path)]
    assert (min(lengths), max(lengths)) == (30, 1022)
    assert draw("proteome", embedder, tmp_path) == draw("proteome", embedder, tmp_path)


@pytest.mark.parametrize("duplicates", [0.0, 0.3])
def test_records_of_a_run_repeat_as_often_as_asked_for(tmp_path, read_fasta, duplicates):
    sample = draw_genes()[:50]
    records = 4_000
    ids, found = read_fasta(write_fasta(tmp_path / "in.fna", sample, records, duplicates))
    assert ids == [str(i) for i in range(records)]
    assert len(set(found)) == pytest.approx((1 - duplicates) * records, abs=0.03 * records)
    assert duplicates or len(set(found)) == records
    assert found[:30] == [gene.decode() for gene in sample[:30]] or duplicates
    stops = {"TAA", "TAG", "TGA"}
    assert all(not stops & {gene[i : i + 3] for i in range(0, 498, 3)} for gene in found)
    assert {len(gene) for gene in found} == {500}
    _, fewer = read_fasta(write_fasta(tmp_path / "fewer.fna", sample, 100, duplicates))
    assert fewer == found[:100]


def test_proteins_of_a_run_differ_in_each_of_the_six_frames(tmp_path):
    fasta = write_fasta(tmp_path / "in.fna", draw_genes()[:2], 600)
    store = write_orfs(read_records(fasta, DNA, tmp_path), 500)
    rows = np.arange(len(store))
    by_frame = {}
    for name, protein in zip(store.ids(rows), store.sequences("protein", rows), strict=True):
        by_frame.setdefault(name[-2:], []).append(protein)
    assert len(by_frame["F1"]) == 600
    for proteins in by_frame.values():
        assert len(set(proteins)) == len(proteins)


def test_dna_of_500_bases_has_about_as_many_tokens_as_with_the_published_vocabulary(tmp_path):
    dna = case(tmp_path, model="dnabert_s")
    tokenizer = dna.embedder().tokenizer
    assert tokenizer.vocabulary == 4096
    _, counts = tokenizer.encode(draw("500-base", dna.embedder(), tmp_path)[:50])
    assert 90 < counts.mean() < 110


def test_full_pack_is_full(tmp_path):
    small = case(tmp_path, sample=[b"A" * 98] * 3)
    assert len(small.full_pack(small.embedder()).tokens) == 500


def test_padded_batches_hold_every_sequence_within_the_budget():
    sample = [b"A" * n for n in (5, 90, 3, 40, 41, 2, 300)]
    batches = list(_padded_batches(sample, 100))
    assert all(batch.numel() <= 100 or len(batch) == 1 for batch in batches)
    found = sorted(int(n) for batch in batches for n in (batch != 1).sum(1))
    assert found == sorted(len(s) + 2 for s in sample)


AUTHORS_CODE = """
from torch import nn

from .bert_padding import ROWS

flash_attn_qkvpacked_func = print

class BertModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        assert config.alibi_starting_size == 512
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size).half()
        self.dropout = nn.Dropout(0.5)

    def forward(self, tokens):
        assert flash_attn_qkvpacked_func is None
        ROWS.append(tokens)
        return self.dropout(self.embeddings(tokens)), None
"""


@pytest.fixture
def authors_package(tmp_path, monkeypatch):
    """A package that looks like theirs."""
    (tmp_path / "of_authors").mkdir()
    (tmp_path / "of_authors" / "bert_layers.py").write_text(AUTHORS_CODE)
    (tmp_path / "of_authors" / "bert_padding.py").write_text("ROWS = []")
    monkeypatch.syspath_prepend(tmp_path)
    yield "of_authors"
    for name in [name for name in sys.modules if name.partition(".")[0] == "of_authors"]:
        del sys.modules[name]


def test_import_authors_code_wants_their_network(tmp_path, authors_package):
    (tmp_path / authors_package / "bert_layers.py").write_text("")
    with pytest.raises(UsageError, match=r"bert_layers\.py has no BertModel"):
        import_authors_code(authors_package)


def test_peers_of_dnabert_s_are_its_authors_code_and_this_network(tmp_path, authors_package):
    code = import_authors_code(authors_package)
    sample = [b"ACGTTGCA" * 6, b"GGATC"]
    dna = case(tmp_path, model="dnabert_s", sample=sample, seconds=1.0)
    rows = [row._asdict() for row in peers(dna, code)]
    name = "VirNucPro's setting: fp32, one sequence at a time"
    assert_rows(rows, [f"{name}, authors' code", f"{name}, this network"])
    first, second, third, *_ = sys.modules["of_authors.bert_padding"].ROWS
    assert torch.equal(first, second)  # the first is the warm-up
    assert first.shape[0] == third.shape[0] == 1
    assert first.shape[1] > third.shape[1] > 0
    hidden, _ = dnabert_s_of(code, dna)(torch.tensor([[5, 6, 5]]))
    assert hidden.shape == (1, 3, 768)
    assert hidden.dtype == torch.float32
    assert torch.equal(hidden[0, 0], hidden[0, 2])  # no dropout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model=dnabert_s --authors_code=no_such", "no_such does not give DNABERT-S's authors'"),
        (
            "--model=dnabert_s --authors_code=.no_such",
            ".no_such does not give DNABERT-S's authors'",
        ),
        ("--model=dnabert_s --authors_code=json", "json does not give DNABERT-S's authors'"),
        ("--authors_code=no_such", "--authors_code is for --model dnabert_s"),
        ("--model=dnabert_s --authors_code=x --peers=false", "--authors_code is for --model"),
        ("--model=dnabert_s --authors_code=x --devices=1", "--authors_code is for --model"),
        ("--model=virnucpro --workload=proteome", "--model virnucpro is measured on 500-base"),
        ("--seconds=0", "--seconds and --tokens_per_batch are above 0"),
        ("--duplicates=1", "--duplicates is a share, from 0 to less than 1"),
        ("--num_workers=-1", "--num_workers and --devices are at least 0"),
        ("--output=nowhere/x.json", "--output nowhere/x.json: the folder nowhere does not exist"),
    ],
)
def test_bench_refuses_options_that_make_no_sense_at_once(bench, capsys, words, message):
    with pytest.raises(SystemExit) as raised:
        bench(*words.split())
    assert raised.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert "tokens/s" not in said


def test_write_weights_are_the_random_ones_in_half(tmp_path):
    cpu = torch.device("cpu")
    path = write_weights(case(tmp_path))
    random, _ = load_esm2(SMALL, None, device=cpu, matrix_dtype=torch.float32)
    read, _ = load_esm2(SMALL, path, device=cpu, matrix_dtype=torch.float32)
    pairs = zip(random.parameters(), read.parameters(), strict=True)
    assert all(torch.equal(a.half().float(), b) for a, b in pairs)


def write_output(path, ids, numbers):
    with h5py.File(path, "w") as file:
        file["sequence_ids"] = ids
        file["embeddings"] = torch.tensor(numbers).numpy()
    return path


def test_vectors_apart_wants_every_row_under_its_id(tmp_path):
    one = write_output(tmp_path / "1.h5", ["0", "1"], [[1.0], [2.0]])
    two = write_output(tmp_path / "2.h5", ["0", "1", "2"], [[1.0], [2.5], [9.0]])
    assert vectors_apart(one, two, 3) == 0.5
    with pytest.raises(OutputError, match="3 rows, its input 4"):
        vectors_apart(one, two, 4)
    swapped = write_output(tmp_path / "3.h5", ["1", "0"], [[1.0], [2.0]])
    with pytest.raises(OutputError, match="other ids"):
        vectors_apart(one, swapped, 2)
    assert not math.isnan(vectors_apart(one, one, 2))
