import h5py
import numpy as np
import pytest

from virnucpro_pl.input.dna_tokens import DNATokenizer

LENGTHS = (1, 2, 700, 33, 5, 1_200, 64, 64, 301, 9)


@pytest.fixture(scope="module")
def reference(plain_dnabert_s):
    return plain_dnabert_s(12, layers=2)


@pytest.fixture(scope="module")
def folder(reference, tmp_path_factory):
    return reference.save(tmp_path_factory.mktemp("weights"), prefix="bert.")


@pytest.fixture(scope="module")
def sequences():
    generator = np.random.default_rng(0)
    drawn = ["".join(generator.choice(np.array(list("ACGT")), n)) for n in LENGTHS]
    return [*drawn, "acguURYN", "N" * 40]


@pytest.fixture(scope="module")
def expected(reference, sequences):
    tokenizer = DNATokenizer()
    stored = [s.upper().replace("U", "T").encode() for s in sequences]
    return np.stack([reference.hidden(tokenizer.encode([s])[0])[-1].mean(0) for s in stored])


@pytest.fixture
def run(start, tmp_path, write_fasta, sequences):
    """Embed the sequences, and return what the command said and the file it wrote."""
    fasta = write_fasta(tmp_path / "dna.fna", sequences)

    def embed(weights, *more, output="dna.h5", code=0, precision="32", ranks=1, env=None):
        command = start(
            *("predict", "--config", "dnabert_s.yaml", "--trainer.accelerator", "cpu"),
            *("--trainer.enable_progress_bar", "false", "--trainer.precision", precision),
            *(() if weights is None else ("--model.weights", weights)),
            *("--data.path", fasta, "--writer.path", output, "--data.tokens_per_batch", 150),
            *(("--trainer.devices", ranks, "--trainer.strategy", "ddp") if ranks > 1 else ()),
            *more,
            env=env,
        )
        ended = command.wait(120)
        assert ended.code == code, ended.log
        command.assert_nothing_left()
        return ended.log, tmp_path / output

    return embed


def read(path):
    with h5py.File(path) as file:
        ids = file["sequence_ids"].asstr()[()].tolist()
        return file["embeddings"][()], ids, dict(file.attrs)


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_predict_authors_checkpoint_equals_reference(run, folder, expected, ranks):
    log, path = run(folder, ranks=ranks)
    vectors, ids, attributes = read(path)
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-5)
    assert ids == [f"p{i}" for i in range(len(expected))]
    assert attributes["model"] == "DNABERT-S, 2 layers of 48"
    assert attributes["weights"] == folder.name
    assert attributes["pooling"] == "mean of all tokens"
    assert attributes["attention"] == "sdpa"
    assert attributes["precision"] == "32-true"
    assert attributes["tokenizer_sha256"] == DNATokenizer(folder / "tokenizer.json").sha256
    assert "weights_revision" not in attributes
    assert "2 U (RNA) are read as T" in log
    assert "Attention: sdpa" in log
    assert f"Loaded DNABERT-S, 2 layers of 48 from {folder.name} in " in log
    assert "forked" not in log  # the tokenizer's warning about its threads


@pytest.mark.slow
def test_predict_fp16_switch_gives_fp32(run, folder, expected):
    _, path = run(folder, precision="16-mixed", env={"VIRNUCPRO_DISABLE_FP16": 1})
    vectors, _, attributes = read(path)
    assert attributes["precision"] == "32-true"
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("bf16_units")
def test_predict_reduced_precision_is_near_the_reference(
    run_main, folder, expected, write_fasta, sequences, tmp_path
):
    fasta = write_fasta(tmp_path / "dna.fna", sequences)
    ended = run_main(
        *("--config", "dnabert_s.yaml", "--trainer.precision", "16-mixed", "--data.path", fasta),
        *("--model.weights", folder, "--writer.path", "dna.h5", "--data.num_workers", 0),
    )
    assert ended.code == 0, ended.log
    vectors, _, attributes = read(tmp_path / "dna.h5")
    assert attributes["precision"] == "bf16-mixed"
    assert 1e-5 < np.abs(vectors - expected).max() < 0.1


def test_predict_random_weights_warn_and_say_so(run):
    log, path = run("random", "--model.size", "tiny")
    vectors, _, attributes = read(path)
    assert vectors.shape == (len(LENGTHS) + 2, 192)
    assert "RANDOM weights" in log
    assert attributes["weights_sha256"] == "random:DNABERT-S-tiny:0"
    assert (attributes["model"], attributes["weights"]) == ("DNABERT-S-tiny", "random")
    assert attributes["tokenizer_sha256"] == "built-in"


@pytest.mark.slow
def test_predict_no_tokenizer_ends_before_anything_is_computed(run, reference, tmp_path):
    folder = reference.save(tmp_path / "weights")
    (folder / "tokenizer.json").unlink()
    log, path = run(folder, code=2, ranks=2)
    assert "tokenizer.json cannot be read" in log
    assert not path.exists()
    assert not path.with_name("dna.h5.parts").exists()


@pytest.mark.slow
def test_predict_published_weights_offline_say_what_to_do(run, tmp_path):
    env = {"HF_HUB_OFFLINE": 1, "HF_HOME": tmp_path / "cache"}
    log, _ = run(None, code=2, env=env)
    assert "https://huggingface.co/zhihan1996/DNABERT-S" in log
    assert "Traceback" not in log


@pytest.mark.slow
def test_workers_tokenise_beside_a_rank_that_may_use_threads(run, folder, expected):
    # Threads of the rank do not live on in workers forked later, which would wait for them.
    env = {"TOKENIZERS_PARALLELISM": "true"}
    _, path = run(folder, "--data.num_workers", 2, env=env)
    np.testing.assert_allclose(read(path)[0], expected, rtol=0, atol=1e-5)
