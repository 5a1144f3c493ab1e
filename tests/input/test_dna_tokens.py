import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

import virnucpro_pl
from virnucpro_pl.errors import InputError, UsageError
from virnucpro_pl.input.alphabets import DNA
from virnucpro_pl.input.dna_tokens import DNATokenizer, built_in_tokenizer
from virnucpro_pl.input.packing import plan_packs
from virnucpro_pl.input.packs import Packs
from virnucpro_pl.input.reader import read_records

UNK, CLS, SEP = 0, 1, 2


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tokenizer.json"
    built_in_tokenizer().save(str(path))
    return path


@pytest.fixture(scope="module")
def sequences():
    generator = np.random.default_rng(0)
    letters = np.array(list("ACGT"))
    drawn = ["".join(generator.choice(letters, n)) for n in (1, 500, 2, 3, 77, 1_300, 8, 40, 41, 6)]
    return [s.encode() for s in [*drawn, "N" * 300, "ACGTRYN", "A" * 200]]


@pytest.mark.parametrize(
    ("letters", "tokens"),
    [
        ("A", ["A"]),
        ("ACGT", ["ACGT"]),
        ("ACG", ["ACG"]),
        ("ACGTA", ["ACGTA"]),
        ("AAAAAAAA", ["AAAA", "AAAA"]),
        ("ACNNGT", ["AC", "[UNK]", "[UNK]", "GT"]),
    ],
)
def test_encode_built_in_tokens_are_those_of_the_rule(letters, tokens):
    vocabulary = built_in_tokenizer().get_vocab()
    found, counts = DNATokenizer().encode([letters.encode()])
    assert found.tolist() == [CLS, *(vocabulary[token] for token in tokens), SEP]
    assert counts.tolist() == [len(tokens) + 2]


def test_built_in_vocabulary_fits_the_published_model():
    vocabulary = built_in_tokenizer().get_vocab()
    names = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "A", "C", "G", "T"]
    assert [vocabulary[name] for name in names] == list(range(9))
    assert sorted(vocabulary.values()) == list(range(9 + 16 + 64 + 256 + 1024))


def test_encode_together_equals_one_by_one(sequences):
    tokenizer = DNATokenizer()
    tokens, counts = tokenizer.encode(sequences)
    alone = [tokenizer.encode([sequence])[0] for sequence in sequences]
    assert tokens.dtype == counts.dtype == np.int64
    assert counts.tolist() == [len(one) for one in alone]
    assert np.array_equal(tokens, np.concatenate(alone))


def test_encode_equals_transformers(file, sequences):
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(file))
    tokens, counts = DNATokenizer(file).encode(sequences)
    expected = [theirs(sequence.decode())["input_ids"] for sequence in sequences]
    assert [t.tolist() for t in np.split(tokens, np.cumsum(counts)[:-1])] == expected


def test_encode_truncation_and_padding_of_the_file_are_off(file, sequences):
    tokenizer = built_in_tokenizer()
    tokenizer.enable_truncation(10)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(file))
    expected = DNATokenizer().encode(sequences)
    assert all(map(np.array_equal, DNATokenizer(file).encode(sequences), expected))


def test_pickle_sends_the_path_only(file, sequences):
    tokenizer = DNATokenizer(file)
    expected = tokenizer.encode(sequences)
    sent = pickle.dumps(tokenizer)
    assert len(sent) < 2_000
    received = pickle.loads(sent)
    assert received.file == file
    assert all(map(np.array_equal, received.encode(sequences), expected))


def test_sha256_of_the_file_or_built_in(file):
    assert len(DNATokenizer(file).sha256) == 64
    assert DNATokenizer().sha256 == "built-in"


def test_load_git_lfs_pointer_is_called_one(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 168\n")
    with pytest.raises(UsageError, match=r"tokenizer\.json is a Git LFS pointer, .*git lfs pull"):
        DNATokenizer(path).load()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, '{"version": "\\ud800"}'])
def test_load_json_that_is_no_tokenizer_raises(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(UsageError, match=r"tokenizer\.json (cannot be read as|is not) a tokenizer"):
        DNATokenizer(tmp_path / "tokenizer.json").load()


def test_load_tokenizer_at_which_the_library_panics_raises(file, tmp_path):
    content = json.loads(file.read_text())
    content["model"]["continuing_subword_prefix"] = "x" * 100_000
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r"tokenizer\.json is not a tokenizer\.json"):
        DNATokenizer(tmp_path / "tokenizer.json").load()


def test_load_missing_file_is_named(tmp_path):
    tokenizer = DNATokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.molecule == "DNA"  # needed before the file
    with pytest.raises(UsageError, match=r"tokenizer\.json cannot be read as a tokenizer"):
        tokenizer.load()


@pytest.mark.parametrize("content", ["{", '{"version": "1.0"}', "[]", '"x"'])
def test_load_damaged_file_is_named(file, content):
    file.write_text(content)
    with pytest.raises(UsageError, match=r"tokenizer\.json"):
        DNATokenizer(file).load()


def test_load_without_special_tokens_is_refused(file):
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"post_processor": None}))
    with pytest.raises(UsageError, match="adds 0 special tokens"):
        DNATokenizer(file).load()


def test_estimate_is_near_the_truth_for_random_dna(sequences):
    tokenizer = DNATokenizer()
    lengths = np.array([len(sequences[1]), len(sequences[5])])
    estimated = tokenizer.estimate(lengths)
    _, counts = tokenizer.encode([sequences[1], sequences[5]])
    assert np.abs(estimated / (counts - 2) - 1).max() < 0.1


@pytest.mark.parametrize(("length", "reads"), [(50, 4000), (150, 2000), (500, 1000), (9000, 60)])
def test_estimate_is_a_little_more_than_random_dna_has(length, reads):
    letters = np.random.default_rng(7).choice(np.frombuffer(b"ACGT", np.uint8), (reads, length))
    tokenizer = DNATokenizer()
    _, counts = tokenizer.encode([read.tobytes() for read in letters])
    estimated = tokenizer.estimate(np.full(reads, length))
    assert 1.002 < estimated.sum() / (counts - 2).sum() < 1.01


class Guessing(DNATokenizer):
    """Estimates off by a factor, or nonsense."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def estimate(self, lengths):
        if self.factor is None:
            return np.random.default_rng(3).integers(0, 900, len(lengths))
        return super().estimate(lengths) * self.factor


@pytest.mark.parametrize("factor", [0, 0.1, 0.9, 1, 1.1, 10, None])
@pytest.mark.parametrize("budget", [1, 40, 150, 1_000, 100_000])
def test_packs_whatever_the_estimate_hold_every_record_once(
    sequences, tmp_path, write_fasta, factor, budget
):
    fasta = write_fasta(tmp_path / "dna.fa", [s.decode() for s in sequences] * 5)
    store = read_records(fasta, DNA, tmp_path)
    tokenizer = Guessing(factor)
    plan = plan_packs(tokenizer.estimate(store.lengths), budget, tokenizer.specials)
    packs = Packs(store, [np.arange(p.start, p.stop) for p in plan], tokenizer, budget, None)
    batches = [batch for i in range(len(packs)) for batch in packs[i]]
    rows = np.concatenate([batch.rows.numpy() for batch in batches])
    assert rows.tolist() == list(range(len(store)))
    expected = DNATokenizer().encode(store.sequences(rows))[0]
    assert np.array_equal(np.concatenate([batch.tokens.numpy() for batch in batches]), expected)
    for batch in batches:
        assert len(batch.tokens) <= budget or len(batch.rows) == 1
        assert batch.ids == tuple(f"p{row}" for row in batch.rows)
        assert batch.pool_offsets.tolist() == batch.cu_seqlens.tolist()  # all tokens are pooled


def test_read_u_is_stored_as_t_and_counted(tmp_path, caplog):
    fasta = tmp_path / "rna.fa"
    fasta.write_text(">a\nacguUN\n>b\nACGTRYSWKMBDHVN\n")
    store = read_records(fasta, DNA, tmp_path)
    assert store.sequences(np.arange(2)) == [b"ACGTTN", b"ACGTRYSWKMBDHVN"]
    assert "2 U (RNA) are read as T" in caplog.text
    assert "read as T" in caplog.text


@pytest.mark.parametrize("letter", ["-", "*", ".", "X", "1"])
def test_read_other_letters_are_errors(tmp_path, letter):
    fasta = tmp_path / "dna.fa"
    fasta.write_text(f">good\nACGU{'ACGT' * 9}\n>bad\nAC{letter}T\n")
    with pytest.raises(InputError) as info:
        read_records(fasta, DNA, tmp_path)
    assert "bad" in str(info.value)
    assert repr(letter) in str(info.value)
    assert "position 3" in str(info.value)


def test_no_code_of_the_model_is_ever_trusted():
    sources = list(Path(virnucpro_pl.__file__).parent.rglob("*.py"))
    assert sources
    for source in sources:
        assert "trust_remote_code" not in source.read_text()
