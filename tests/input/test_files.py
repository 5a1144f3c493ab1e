"""Several files as one input, and standard input."""

import gzip
import os
import pty
import threading
from pathlib import Path

import numpy as np
import pytest

from virnucpro_pl.errors import InputError, UsageError
from virnucpro_pl.input.alphabets import DNA, PROTEIN
from virnucpro_pl.input.files import STDIN, files_on_disk, input_paths, printable
from virnucpro_pl.input.reader import read_records


@pytest.fixture
def write(tmp_path):
    """Write files: the paths."""

    def call(**files):
        paths = []
        for name, data in files.items():
            path = tmp_path / name.replace("_", ".")
            path.write_bytes(data)
            paths.append(path)
        return paths

    return call


@pytest.fixture
def stdin():
    """Let bytes, or an open file, come from standard input, and give the real one back."""
    real, writers = os.dup(0), []

    def call(data, pieces=1):
        if isinstance(data, int):
            os.dup2(data, 0)
            return
        out, into = os.pipe()
        os.dup2(out, 0)
        os.close(out)

        def feed():
            with os.fdopen(into, "wb", buffering=0) as file:
                for byte in data[: pieces - 1]:
                    file.write(bytes([byte]))
                file.write(data[pieces - 1 :])

        writers.append(threading.Thread(target=feed))
        writers[-1].start()

    yield call
    os.dup2(real, 0)
    os.close(real)
    for writer in writers:
        writer.join(10)
        assert not writer.is_alive()


def contents(store):
    rows = np.arange(len(store))
    return list(zip(store.ids(rows), store.sequences(rows), strict=True))


# Several files ------------------------------------------------------------------------------------


def test_files_of_every_kind_read_in_the_order_given(write, tmp_path):
    paths = write(
        b_fa=b">b1\nMK\n>b2\nV\n",  # the last line of the next file has no end
        a_fq_gz=gzip.compress(b"@a1 x\nMKL\n+\nIII"),
        c_fa=b"\xef\xbb\xbf>c1\nM\n",
    )
    store = read_records(paths, PROTEIN, tmp_path)
    assert contents(store) == [("b1", b"MK"), ("b2", b"V"), ("a1", b"MKL"), ("c1", b"M")]
    assert store.files == [(str(path), n) for path, n in zip(paths, (2, 1, 1), strict=True)]
    joined = write(joined=b">b1\nMK\n>b2\nV\n>a1\nMKL\n>c1\nM\n")
    assert read_records(joined, PROTEIN, tmp_path).sha256 == store.sha256


def test_counts_of_several_files_are_added(write, tmp_path, caplog):
    paths = write(a=b">a\nACGU\n", b=b">b\nACG\n", c=b">c\nUUG\n")
    assert read_records(paths, DNA, tmp_path).counts == {"u_read_as_t": 3}
    assert f"{paths[0]}: 1 U (RNA) are read as T" in caplog.text
    assert f"{paths[2]}: 2 U (RNA) are read as T" in caplog.text


def test_faults_of_several_files_reported_together_by_file_and_record(write, tmp_path):
    a, b, c = write(a=b">x\nMK\n>y\nM1\n", b=b">z\nMK\n>x\nMK\n", c=b">w\nV\n>v\n>w\nV\n")
    with pytest.raises(InputError) as caught:
        read_records([a, b, c], PROTEIN, tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[0] == "The inputs have 4 faults:"
    assert [line.split(": remove")[0] for line in lines[1:-1]] == [
        f"  record 2 (y) of {a}: '1' at position 2 is no residue",
        f"  record 2 (x) of {b}: the id is that of record 1 of {a} already",
        f"  record 2 (v) of {c}: its sequence is empty",
        f"  record 3 (w) of {c}: the id is that of record 1 of {c} already",
    ]
    for word in ("seqkit rename", "--data.repeated_ids mates", "--data.repeated_ids number"):
        assert word in lines[-1]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (b"", "b is empty: --data.allow_empty true"),
        (b"MKV\n", "b cannot be read: it is neither FASTA nor FASTQ"),
        (b"@b\nMK\n+\nII\n@c\nMK\n+\nI\n", r"b cannot be read behind record 1 \(b\): line 8"),
        (gzip.compress(b">b\nMK\n")[:-4], "b cannot be read: Compressed file ended"),
        (b">b\n" + b"ACGT" * 10, "b holds DNA, it seems, not protein"),
    ],
)
def test_fault_of_the_second_file_names_it_and_its_own_record(write, tmp_path, second, message):
    paths = write(a=b">a1\nMK\n>a2\nMKLLLLVVVV\n", b=second)
    with pytest.raises(InputError, match=message):
        read_records(paths, PROTEIN, tmp_path)


def test_missing_second_file_is_named(write, tmp_path):
    with pytest.raises(InputError, match=r"absent\.fa cannot be read: No such file"):
        read_records([*write(a=b">a\nMK\n"), tmp_path / "absent.fa"], PROTEIN, tmp_path)


@pytest.mark.parametrize("kind", ["path", "symlink", "hard link"])
def test_file_given_twice_refused_by_both_names(write, tmp_path, kind):
    [path] = write(a=b">a\nMK\n")
    other = tmp_path / "other"
    if kind == "path":
        other = path
    elif kind == "symlink":
        other.symlink_to(path)
    else:
        other.hardlink_to(path)
    names = f"{path}" if kind == "path" else f"{path} and {other}"
    with pytest.raises(InputError, match=f"^{names}: the same file is given twice"):
        read_records([path, other], PROTEIN, tmp_path)


def test_paths_of_an_option():
    assert input_paths("a.fa") == [Path("a.fa")]
    assert input_paths(Path("a.fa")) == [Path("a.fa")]
    assert input_paths(["a.fa", Path("b.fa"), "-"]) == [Path("a.fa"), Path("b.fa"), STDIN]
    assert input_paths("./-") == [Path.cwd() / "-"]
    assert files_on_disk([STDIN, Path("a")]) == [Path("/dev/stdin"), Path("a")]
    for given, message in (([], "empty list"), (["-", "a", "-"], "read only once")):
        with pytest.raises(UsageError, match=message):
            input_paths(given)


def test_names_of_files_are_printable():
    assert printable("é a.fa") == "é a.fa"
    assert printable("a\tb\n\udcff.fa") == r"a\tb\n\udcff.fa"


# Standard input -----------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [bytes, gzip.compress], ids=["plain", "gz"])
@pytest.mark.parametrize("pieces", [1, 30])
@pytest.mark.parametrize("data", [b">a\nMK\n>b\nV\n", b"@a\nMK\n+\nII\n@b\nV\n+\nI\n"])
def test_standard_input_read_by_its_content(stdin, tmp_path, data, wrap, pieces):
    stdin(wrap(data), pieces)
    store = read_records(STDIN, PROTEIN, tmp_path)
    assert contents(store) == [("a", b"MK"), ("b", b"V")]
    assert store.files == [("-", 2)]


def test_standard_input_among_files_keeps_its_place(stdin, write, tmp_path):
    a, b = write(a=b">a\nMK\n", b=b">b\nV\n")
    stdin(b">s\nL\n")
    store = read_records([a, STDIN, b], PROTEIN, tmp_path)
    assert contents(store) == [("a", b"MK"), ("s", b"L"), ("b", b"V")]


def test_faults_of_standard_input_name_it(stdin, tmp_path):
    for data, message in (
        (b"", "^standard input is empty"),
        (b">a\nM1\n", r"^standard input has 1 fault:\n  record 1 \(a\): '1'"),
        (b"MK", "^standard input cannot be read: it is neither"),
    ):
        stdin(data)
        with pytest.raises(InputError, match=message):
            read_records(STDIN, PROTEIN, tmp_path)


def test_terminal_as_standard_input_is_an_error_rather_than_a_wait(stdin, tmp_path):
    ours, theirs = pty.openpty()
    try:
        stdin(theirs)
        with pytest.raises(InputError, match="standard input is a terminal: pipe the sequences"):
            read_records(STDIN, PROTEIN, tmp_path)
    finally:
        os.close(ours)
        os.close(theirs)


def test_closed_standard_input_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.stdin", None)  # as Python has it then
    with pytest.raises(InputError, match="standard input is closed"):
        read_records(STDIN, PROTEIN, tmp_path)


def test_file_that_is_standard_input_as_well_refused(stdin, write, tmp_path):
    [path] = write(a=b">a\nMK\n")
    with path.open("rb") as file:
        stdin(file.fileno())
        with pytest.raises(InputError, match="and standard input: the same file is given twice"):
            read_records([path, STDIN], PROTEIN, tmp_path)
