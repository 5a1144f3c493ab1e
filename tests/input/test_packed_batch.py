import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from virnucpro_pl.input.packed_batch import pack, share
from virnucpro_pl.input.protein_tokens import ProteinTokenizer

RESIDUES = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
proteins = st.lists(st.text(RESIDUES, min_size=1, max_size=60), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def fair_esm():
    """Tokens of each protein by fair-esm; J, which its alphabet lacks, given as `<unk>`."""
    from esm.data import Alphabet

    convert = Alphabet.from_architecture("ESM-1b").get_batch_converter()

    def tokens(sequences):
        lines = convert([("", s.replace("J", "<unk>")) for s in sequences])[2]
        return [line[: len(s) + 2].tolist() for line, s in zip(lines, sequences, strict=True)]

    return tokens


def packed(sequences, **options):
    names = [f"p{i}" for i in range(len(sequences))]
    letters = [sequence.encode() for sequence in sequences]
    return pack(np.arange(len(sequences)) + 5, names, letters, ProteinTokenizer(), **options)


def test_tokens_of_a_protein_as_by_hand():
    tokens, counts = ProteinTokenizer().encode([b"MK", b"X"])
    assert tokens.tolist() == [0, 20, 15, 2, 0, 24, 2]
    assert counts.tolist() == [4, 3]


def test_tokens_of_every_residue_as_in_fair_esm(fair_esm):
    tokens, _ = ProteinTokenizer().encode([RESIDUES.encode()])
    assert tokens.tolist() == fair_esm([RESIDUES])[0]
    assert tokens[1 + RESIDUES.index("J")] == ProteinTokenizer.UNK


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(sequences=proteins)
def test_tokens_of_random_proteins_as_in_fair_esm(fair_esm, sequences):
    batch = packed(sequences)
    starts = batch.cu_seqlens.tolist()
    for i, expected in enumerate(fair_esm(sequences)):
        assert batch.tokens[starts[i] : starts[i + 1]].tolist() == expected


def test_estimate_is_the_number_of_tokens_without_special_ones():
    tokenizer = ProteinTokenizer()
    lengths = np.array([1, 7, 300])
    _, counts = tokenizer.encode([b"M" * int(length) for length in lengths])
    assert (tokenizer.estimate(lengths) + tokenizer.specials).tolist() == counts.tolist()


def test_pack_shapes_and_dtypes_as_stated():
    batch = packed(["MKV", "W", "AC"])
    assert batch.rows.tolist() == [5, 6, 7]
    assert batch.ids == ("p0", "p1", "p2")
    assert batch.lengths.tolist() == [3, 1, 2]
    assert batch.cu_seqlens.tolist() == [0, 5, 8, 12]
    assert batch.max_seqlen == 5
    assert batch.pool_tokens.tolist() == [1, 2, 3, 6, 9, 10]
    assert batch.pool_offsets.tolist() == [0, 3, 4, 6]
    assert (batch.rows.dtype, batch.lengths.dtype) == (torch.int64, torch.int32)
    assert (batch.tokens.dtype, batch.cu_seqlens.dtype) == (torch.int64, torch.int32)
    assert (batch.pool_tokens.dtype, batch.pool_offsets.dtype) == (torch.int64, torch.int64)


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(sequences=proteins, limit=st.one_of(st.none(), st.integers(1, 70)))
def test_pack_pools_the_first_residues_never_cls_or_eos(sequences, limit):
    batch = packed(sequences, pool_limit=limit)
    letters = ProteinTokenizer().encode([b"".join(s.encode() for s in sequences)])[0][1:-1]
    ends = np.cumsum([len(s) for s in sequences])
    for i, sequence in enumerate(sequences):
        pooled = batch.pool_tokens[batch.pool_offsets[i] : batch.pool_offsets[i + 1]]
        expected = letters[ends[i] - len(sequence) : ends[i]][:limit]
        assert batch.tokens[pooled].tolist() == expected.tolist()
        assert pooled[0] == batch.cu_seqlens[i] + 1
    assert len(batch.pool_tokens) == batch.pool_offsets[-1]


def test_pack_pool_limit_leaves_the_tokens():
    whole, limited = packed(["MKVLA", "W"]), packed(["MKVLA", "W"], pool_limit=2)
    assert limited.pool_tokens.tolist() == [1, 2, 8]
    assert torch.equal(whole.tokens, limited.tokens)
    assert torch.equal(whole.lengths, limited.lengths)


def test_pack_moved_keeps_rows_ids_and_lengths_on_the_host():
    batch = packed(["MKV", "W"]).to(torch.device("meta"))
    on_device = (batch.tokens, batch.cu_seqlens, batch.pool_tokens, batch.pool_offsets)
    assert {tensor.device.type for tensor in on_device} == {"meta"}
    assert (batch.rows.tolist(), batch.lengths.tolist()) == ([5, 6], [3, 1])


def test_rows_with_equal_sequences_share_one_and_are_selected_with_it():
    letters = [b"MK", b"MKV", b"MK", b"L", b"MKV", b"MK"]
    distinct, spread = share(letters)
    assert distinct == [b"MK", b"MKV", b"L"]
    assert spread.tolist() == [0, 1, 0, 2, 1, 0]
    assert share([b"A", b"B"]) == ([b"A", b"B"], None)
    ids = list("abcdef")
    batch = pack(np.arange(10, 16), ids, distinct, ProteinTokenizer(), spread=spread)
    assert (batch.size, batch.lengths.tolist()) == (3, [2, 3, 1])
    assert batch.of_rows(torch.tensor([7, 8, 9])).tolist() == [7, 8, 7, 9, 8, 7]
    assert batch.ids_of([0, 2]) == ["a", "c", "d", "f"]
    part = batch.select([1, 2])
    assert part.rows.tolist() == [11, 13, 14]
    assert part.ids == ("b", "d", "e")
    assert part.spread.tolist() == [0, 1, 0]
    assert part.lengths.tolist() == [3, 1]
    whole = pack(np.arange(2), ["b", "d"], [b"MKV", b"L"], ProteinTokenizer())
    assert torch.equal(part.tokens, whole.tokens)
    assert torch.equal(part.pool_tokens, whole.pool_tokens)
    assert batch.select([2]).ids_of([0]) == ["d"]
