"""No command writes to what it reads, by whatever name, and an empty folder is no output yet."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from virnucpro_pl.cli.main import main
from virnucpro_pl.errors import UsageError
from virnucpro_pl.output.overwriting import is_taken, refuse_inputs

LINKS = {"itself": lambda a, b: b, "symlink": os.symlink, "hard link": os.link}


@pytest.mark.parametrize("link", LINKS)
def test_output_that_is_an_input_by_any_link_is_refused(tmp_path, link):
    source, output = tmp_path / "in.faa", tmp_path / "out.h5"
    source.write_text(">a\nMK\n")
    LINKS[link](source, output)
    output = output if output.exists() else tmp_path / "." / "in.faa"
    with pytest.raises(UsageError, match=rf"{output.name} is an input of this run \(.*in\.faa\)"):
        refuse_inputs([output], [tmp_path / "other", source])


def test_output_folder_that_holds_an_input_is_refused(tmp_path):
    (tmp_path / "results" / "deep").mkdir(parents=True)
    (tmp_path / "results" / "deep" / "in.faa").touch()
    (tmp_path / "to_results").symlink_to(tmp_path / "results")
    for output in ("results", "to_results", "results/deep"):
        with pytest.raises(UsageError, match="holds an input of this run"):
            refuse_inputs([tmp_path / output], [tmp_path / "to_results" / "deep" / "in.faa"])
    (tmp_path / "elsewhere.faa").touch()
    (tmp_path / "results" / "link.faa").symlink_to(tmp_path / "elsewhere.faa")
    with pytest.raises(UsageError, match="holds an input"):  # the link would be lost
        refuse_inputs([tmp_path / "results"], [tmp_path / "results" / "link.faa"])


def test_outputs_beside_inputs_are_fine(tmp_path):
    (tmp_path / "in.faa").touch()
    (tmp_path / "folder").mkdir()
    outputs = [tmp_path / name for name in ("out.h5", "folder", "in.faa.parts")]
    refuse_inputs(outputs, [tmp_path / "in.faa", tmp_path / "absent", Path("-")])


def test_empty_folder_counts_as_absent(tmp_path):
    assert not is_taken(tmp_path / "absent")
    assert not is_taken(tmp_path)
    (tmp_path / "file").touch()
    assert is_taken(tmp_path / "file")
    assert is_taken(tmp_path)


# The commands -------------------------------------------------------------------------------------


def content(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Run a command that must be refused and must not have touched anything; what it said."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        before = content(tmp_path)
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        assert content(tmp_path) == before
        assert ended.value.code == 2
        [line] = [li for li in capsys.readouterr().err.splitlines() if " ERROR " in li]
        return line

    return run


@pytest.fixture
def embeddings(write_embeddings, tmp_path):
    """Two embedding files of 8 ORFs of 4 records in each of two sets."""
    for label in ("viral", "other"):
        ids = [f"{label}_{n}_chunk_1F{frame}" for n in range(4) for frame in (1, 2)]
        for name in ("dna.h5", "esm.h5"):
            vectors = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
            write_embeddings(tmp_path / f"{label}_{name}", ids, vectors)


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("victim", ["in.faa", "tiny.pt"])
def test_predict_never_overwrites_sequences_or_weights(
    refused, weights_file, write_fasta, tmp_path, link, victim
):
    write_fasta(tmp_path / "in.faa", ["MKV"])
    (tmp_path / "tiny.pt").write_bytes(weights_file.read_bytes())
    LINKS[link](tmp_path / victim, tmp_path / "out.h5")
    output = "out.h5" if (tmp_path / "out.h5").exists() else victim
    line = refused(
        *("predict", "--config=esm2.yaml", "--data.path=in.faa", "--model.weights=tiny.pt"),
        *("--writer.path", output, "--writer.overwrite=true", "--trainer.accelerator=cpu"),
    )
    assert f"{output} is an input of this run ({victim})" in line


@pytest.mark.parametrize("victim", ["c.pth", "tokenizer.json", "in.fna.parts"])
def test_predict_never_overwrites_classifier_tokenizer_or_what_lies_in_its_parts(
    refused, save_classifier, write_fasta, tmp_path, victim
):
    save_classifier(tmp_path / "c.pth", 192 + 320, 4)
    (tmp_path / "tokenizer.json").touch()
    (tmp_path / "results.parts").mkdir()
    write_fasta(tmp_path / "results.parts" / "in.fna", ["ACGT"])
    output = victim if (tmp_path / victim).exists() else "results"
    line = refused(
        *("predict", "--config=demo.yaml", "--data.path=results.parts/in.fna"),
        *("--model.classifier=c.pth", "--model.dnabert_s.tokenizer=tokenizer.json"),
        *("--writer.path", output, "--writer.overwrite=true", "--trainer.accelerator=cpu"),
    )
    assert "an input of this run" in line


def test_predict_never_replaces_a_folder_that_holds_its_input(refused, write_fasta, tmp_path):
    (tmp_path / "results").mkdir()
    write_fasta(tmp_path / "results" / "virus.fasta", ["ACGT"])  # a name of this program's own
    line = refused(
        *("predict", "--config=demo.yaml", "--data.path=results/virus.fasta"),
        *("--writer.path=results", "--writer.overwrite=true", "--trainer.accelerator=cpu"),
    )
    assert "results holds an input of this run (results/virus.fasta)" in line


def test_classify_never_overwrites_its_embeddings(refused, embeddings, save_classifier, tmp_path):
    save_classifier(tmp_path / "c.pth", 6, 4)
    (tmp_path / "results").mkdir()
    os.link(tmp_path / "viral_esm.h5", tmp_path / "results" / "esm2.h5")
    line = refused(
        *("predict", "--config=classify.yaml", "--data.dnabert_s=viral_dna.h5"),
        *("--data.esm2=results/esm2.h5", "--model.classifier=c.pth", "--writer.path=results"),
        *("--writer.overwrite=true", "--trainer.accelerator=cpu"),
    )
    assert "results holds an input of this run (results/esm2.h5)" in line


def test_hdf5_writer_replaces_embedding_files_only(refused, write_fasta, tmp_path):
    write_fasta(tmp_path / "in.faa", ["MKV"])
    (tmp_path / "thesis.h5").write_text("years of work")
    with h5py.File(tmp_path / "counts.h5", "w") as file:
        file["counts"] = [1, 2, 3]
    for output in ("thesis.h5", "counts.h5"):
        line = refused(
            *("predict", "--config=esm2.yaml", "--data.path=in.faa", "--model.weights=random"),
            *("--model.name=esm2_t6_8M_UR50D", "--writer.path", output, "--writer.overwrite=true"),
            "--trainer.accelerator=cpu",
        )
        assert f"{output} is not overwritten, since it is no embedding file" in line


@pytest.mark.parametrize("victim", ["best.ckpt", "metrics.json"])
def test_fit_never_overwrites_its_embeddings(refused, embeddings, tmp_path, victim):
    (tmp_path / "classifier").mkdir()
    os.link(tmp_path / "viral_dna.h5", tmp_path / "classifier" / victim)
    options = [
        f"--data.{label}.{name}={label}_{file}"
        for label in ("viral", "other")
        for name, file in (("dnabert_s", "dna.h5"), ("esm2", "esm.h5"))
    ]
    line = refused("fit", *options, "--writer.overwrite=true", "--trainer.accelerator=cpu")
    assert f"classifier/{victim} is an input of this run (viral_dna.h5)" in line


def test_export_never_overwrites_its_input(refused, embeddings, tmp_path):
    os.link(tmp_path / "viral_dna.h5", tmp_path / "copy.ids.txt")
    for words in (
        ("per-id", "--output=viral_dna.h5"),
        ("per-id", "--output=copy.ids.txt"),
        ("npy", "--output=copy.npy"),
    ):
        line = refused("export", "viral_dna.h5", "--overwrite=true", "--to", *words)
        assert "is an input of this run (viral_dna.h5)" in line


def test_compare_never_overwrites_its_inputs(refused, embeddings, tmp_path):
    os.symlink(tmp_path / "viral_esm.h5", tmp_path / "figures.json")
    (tmp_path / "original").mkdir()
    (tmp_path / "original" / "a_ESM.pt").touch()
    for a, output in (
        ("viral_dna.h5", "viral_dna.h5"),
        ("viral_dna.h5", "figures.json"),
        ("original", "original/a_ESM.pt"),
    ):
        line = refused("compare", a, "viral_esm.h5", "--output", output)
        assert f"{output} is an input of this run" in line


def test_plot_never_overwrites_its_inputs(refused, embeddings, tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "pictures").mkdir()
    os.link(tmp_path / "viral_dna.h5", tmp_path / "pictures" / "map.png")
    line = refused("plot", "viral_dna.h5", "--output=pictures")
    assert "pictures/map.png is an input of this run (viral_dna.h5)" in line
    (tmp_path / "pictures" / "index.html").write_text("id\tx\n")
    line = refused(
        *("plot", "viral_esm.h5", "--output=pictures", "--color=x", "--table=pictures/index.html")
    )
    assert "holds an input of this run (pictures/index.html)" in line


def test_bench_never_overwrites_its_workload(refused, write_fasta, tmp_path):
    write_fasta(tmp_path / "in.faa", ["MKV"])
    line = refused(
        *("bench", "--model=esm2_t6_8M_UR50D", "--workload=in.faa", "--output=in.faa"),
    )
    assert "in.faa is an input of this run" in line
