"""Nothing is lost: kills, faults and full disks, with real processes."""

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from virnucpro_pl.cli.main import main
from virnucpro_pl.output.part_file import read_part
from virnucpro_pl.output.parts_folder import PartsFolder

pytestmark = pytest.mark.slow

RECORDS, LENGTH = 48, 150  # two records a pack
IDS = [f"p{i}" for i in range(RECORDS)]


@pytest.fixture
def proteins(random_proteins):
    return random_proteins([LENGTH] * RECORDS)


@pytest.fixture
def fasta(write_fasta, proteins, tmp_path):
    return write_fasta(tmp_path / "in.faa", proteins)


@pytest.fixture
def expected(predict_words, weights_file, fasta, tmp_path):
    """Vectors of an uninterrupted run on one rank."""
    main(text(predict_words(weights_file, fasta, tmp_path / "expected.h5")))
    return rows_of(tmp_path / "expected.h5")


@pytest.fixture
def script(tmp_path):
    """Write a launcher that runs some lines first; packs, commits and the merge take a while."""

    def write(*lines, pack=0.05, disk=0.02, table=0.15):
        path = tmp_path / "slow.py"
        path.write_text(
            "import os, time\n"
            "import virnucpro_pl.predict.embedders as embedder\n"
            "import virnucpro_pl.output.atomic_files as files\n"
            "import virnucpro_pl.output.merge as merge\n"
            "from virnucpro_pl.cli.main import main\n"
            "RANK = int(os.environ.get('RANK', os.environ.get('LOCAL_RANK', '0')))\n"
            "def slow(seconds, function):\n"
            "    def call(*arguments, **options):\n"
            "        time.sleep(seconds)\n"
            "        return function(*arguments, **options)\n"
            "    return call\n"
            "E = embedder.SequenceEmbedder\n"
            f"E.predict_step = slow({pack}, E.predict_step)\n"
            f"files.flush = slow({disk}, files.flush)\n"
            f"merge._write_lengths = slow({table}, merge._write_lengths)\n"
            + "".join(f"{line}\n" for line in lines)
            + "main()\n"
        )
        return (str(path),)

    return write


def text(words):
    return [str(word) for word in words]


def rows_of(path):
    with h5py.File(path) as file:
        assert file.attrs["complete"]
        return file["sequence_ids"].asstr()[:].tolist(), file["embeddings"][:]


def assert_is(output, expected):
    ids, vectors = rows_of(output)
    assert ids == expected[0] == IDS
    np.testing.assert_array_equal(vectors, expected[1])


def parts(output):
    return sorted(Path(f"{output}.parts").glob("part-*.h5"))


def committed_rows(output):
    """Rows in the parts, which must all be whole."""
    return sum(len(read_part(path).rows) for path in parts(output))


def interrupt(words):
    """Leave committed parts behind: a run that is not allowed to do all its packs."""
    with pytest.raises(SystemExit) as ended:
        main([*text(words), "--trainer.limit_predict_batches=7", "--writer.commit_seconds=0"])
    assert ended.value.code == 1


# Kills ----------------------------------------------------------------------------------------


def moment(phase, output, ranks, command, chance):
    """Wait for a random moment within a phase of the run."""
    folder = Path(f"{output}.parts")

    def before(condition):
        while command.process.poll() is None and not condition():
            time.sleep(0.002)

    if phase == "start":
        time.sleep(chance.uniform(0, 4))
    elif phase == "load":
        before((folder / "ranks").exists)
        time.sleep(chance.uniform(0, 0.5))
    elif phase == "compute":
        before((folder / f"ranks/rank-{ranks - 1}.progress").exists)
        time.sleep(chance.uniform(0, 0.8))
    elif phase == "commit":
        count = len(parts(output))
        before(lambda: len(parts(output)) > count or list(folder.glob(".tmp-*part*")))
        time.sleep(chance.uniform(0, 0.05))
    else:
        before(lambda: all((folder / f"ranks/rank-{r}.done").exists() for r in range(ranks)))
        time.sleep(chance.uniform(0, 0.4))


@pytest.mark.parametrize(
    ("ranks", "whom", "rounds"),
    [(1, "all", 3), (2, "all", 2), (2, "one", 2)],
    ids=["one rank", "both ranks", "one of two ranks"],
)
def test_kills_at_random_moments_lose_nothing(
    start, predict_words, script, weights_file, fasta, expected, tmp_path, ranks, whom, rounds
):
    chance = random.Random(f"{ranks} {whom}")
    launcher = script()
    phases = [phase for phase in ("start", "load", "compute", "commit", "merge")] * rounds
    output, published = tmp_path / "out0.h5", 0
    for i, phase in enumerate(phases):
        often = "--writer.commit_seconds=0.2"
        words = predict_words(weights_file, fasta, output, often, ranks=ranks)
        command = start(*words, launcher=launcher)
        moment(phase, output, ranks, command, chance)
        before = parts(output)
        victim = command.rank(chance.randrange(2)) if whom == "one" else None
        if whom == "all":
            command.kill()
        elif victim is not None:
            os.kill(victim, signal.SIGKILL)
        ended = command.wait(60)
        command.assert_nothing_left()
        if output.exists():
            assert_is(output, expected)
            published += 1
            output = tmp_path / f"out{i + 1}.h5"
        else:
            assert ended.code != 0, ended.log
            assert set(parts(output)) >= set(before)
            committed_rows(output)
    if not output.exists():
        words = predict_words(weights_file, fasta, output, ranks=ranks)
        ended = start(*words).wait(60)
        assert ended.code == 0, ended.log
    assert_is(output, expected)
    assert not Path(f"{output}.parts").exists()
    assert published < len(phases) / 2


def kept_rows(output):
    """Rows that a continuation will find, those with a receipt included."""
    files = PartsFolder(output, overwrite=False).committed()
    return {row for path in files for row in read_part(path).rows.tolist()}


@pytest.mark.parametrize("ranks", [1, 2])
def test_kills_while_parts_give_way_to_receipts_lose_nothing(
    start, predict_words, script, weights_file, fasta, expected, tmp_path, ranks
):
    chance, kept = random.Random(ranks), set()
    launcher, output = script("merge.KEPT_BYTES = 0", disk=0.005), tmp_path / "out.h5"
    words = predict_words(weights_file, fasta, output, "--writer.commit_seconds=0", ranks=ranks)
    receipts = 0
    for _ in range(5):
        command = start(*words, launcher=launcher)
        folder, known = PartsFolder(output, overwrite=False), len(kept)
        command.wait_for(lambda f=folder, n=known: output.exists() or f.count_kept() > n)
        time.sleep(chance.uniform(0, 0.4))
        command.kill()
        command.wait(60)
        command.assert_nothing_left()
        if output.exists():
            break
        assert kept_rows(output) >= kept
        kept = kept_rows(output)
        receipts = max(receipts, len(list(Path(f"{output}.parts").glob("receipt-*.h5"))))
    else:
        ended = start(*words, launcher=launcher).wait(60)
        assert ended.code == 0, ended.log
        assert f"Continuing: {len(kept)} of {RECORDS}" in ended.log
    assert receipts > 0
    assert_is(output, expected)


# Resuming -------------------------------------------------------------------------------------


def test_damaged_parts_are_reported_and_computed_again(
    predict_words, weights_file, fasta, expected, tmp_path, capsys
):
    output = tmp_path / "out.h5"
    words = predict_words(weights_file, fasta, output)
    interrupt(words)
    flipped, cut, empty, *_ = parts(output)
    data = flipped.read_bytes()
    at = data.index(rows_of(tmp_path / "expected.h5")[1][0].tobytes()[:16])
    flipped.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    cut.write_bytes(cut.read_bytes()[:-100])
    empty.write_bytes(b"")
    main(text(words))
    log = capsys.readouterr().err
    assert log.count("is damaged") == 3
    assert f"{2 * 7 - 2 * 3} of {RECORDS} records are committed already" in log
    assert_is(output, expected)


def test_resume_with_other_budget_ranks_and_workers_is_complete(
    predict, predict_words, weights_file, fasta, expected, tmp_path
):
    output = tmp_path / "out.h5"
    interrupt(predict_words(weights_file, fasta, output))
    more = ("--data.tokens_per_batch=1000", "--data.num_workers=2")
    ended = predict(weights_file, fasta, output, *more, ranks=2)
    assert ended.code == 0, ended.log
    assert "Continuing: 14 of 48" in ended.log
    ids, vectors = rows_of(output)
    assert ids == IDS
    np.testing.assert_array_equal(vectors[:14], expected[1][:14])
    np.testing.assert_allclose(vectors, expected[1], rtol=0, atol=2e-6)


@pytest.mark.usefixtures("bf16_units")
def test_resume_of_another_run_is_refused_by_name_and_overwrite_starts_over(
    predict_words, weights_file, reference, save_published, fasta, expected, write_fasta, tmp_path,
    capsys,
):  # fmt: skip
    output = tmp_path / "out.h5"
    words = text(predict_words(weights_file, fasta, output))
    interrupt(words)
    before = {path: path.read_bytes() for path in parts(output)}
    other = {k: v * 1.5 if k.startswith("layers.0.fc1") else v
             for k, v in reference.state_dict().items()}  # fmt: skip
    other_weights = save_published(other, tmp_path / "other.pt")
    other_fasta = write_fasta(tmp_path / "other.faa", ["ACD"] * RECORDS)
    for named, more in (
        (["weights_sha256"], ["--model.weights", other_weights]),
        (["input_sha256"], ["--data.path", other_fasta]),
        (["layer"], ["--model.layer", 1]),
        (
            ["layer", "model", "weights_sha256"],
            ["--model.weights=random", "--model.name=esm2_t6_8M_UR50D"],
        ),
        (["precision"], ["--trainer.precision", "bf16-mixed"]),
        (["max_length"], ["--data.max_length", 100]),
        (["layer", "precision"], ["--model.layer=2", "--trainer.precision=bf16-mixed"]),
    ):
        with pytest.raises(SystemExit) as ended:
            main([*words, *text(more)])
        assert ended.value.code == 2
        message = capsys.readouterr().err
        assert "holds parts of another run" in message
        for name in named:
            assert f"{name} was " in message
        assert message.count(" was ") == len(named)
        assert {path: path.read_bytes() for path in parts(output)} == before
    for bad in (["--data.path", tmp_path / "absent.faa"], ["--model.weights", fasta]):
        with pytest.raises(SystemExit) as ended:
            main([*words, "--writer.overwrite=true", *text(bad)])
        assert ended.value.code == 2
        assert {path: path.read_bytes() for path in parts(output)} == before
    main([*words, "--writer.overwrite=true"])
    assert "Starting over: 7 part(s)" in capsys.readouterr().err
    assert_is(output, expected)


def test_same_layer_by_number_is_no_other_run(
    predict_words, weights_file, fasta, expected, tmp_path
):
    output = tmp_path / "out.h5"
    words = text(predict_words(weights_file, fasta, output))
    interrupt(words)
    moved = shutil.copy(weights_file, tmp_path / "moved.pt")
    main([*words, "--model.layer=3", "--model.weights", str(moved)])
    assert_is(output, expected)


# Two runs, stalled and failing ranks ------------------------------------------------------------


def test_second_run_is_refused_and_lock_dies_with_its_process(
    start, predict_words, script, weights_file, fasta, expected, tmp_path, capsys
):
    output = tmp_path / "out.h5"
    words = predict_words(weights_file, fasta, output, "--writer.commit_seconds=0", ranks=2)
    command = start(*words, launcher=script(pack=0.5))
    command.wait_for(lambda: len(parts(output)) > 2)
    single = text(predict_words(weights_file, fasta, output))
    for more in ([], ["--writer.overwrite=true"]):
        with pytest.raises(SystemExit) as ended:
            main([*single, *more])
        assert ended.value.code == 2
        assert "Another run is writing" in capsys.readouterr().err
    assert command.process.poll() is None
    os.kill(command.rank(0), signal.SIGKILL)  # rank 1 notices by itself
    main(single)
    assert_is(output, expected)
    command.assert_nothing_left()


@pytest.mark.parametrize("rank", [0, 1])
def test_stalled_rank_ends_the_run(
    start, predict_words, script, weights_file, fasta, tmp_path, rank
):
    output = tmp_path / "out.h5"
    words = predict_words(weights_file, fasta, output, "--writer.stall_seconds=4", ranks=2)
    command = start(*words, launcher=script(pack=0.5))
    command.wait_for(Path(f"{output}.parts/ranks/rank-{1 - rank}.progress").exists)
    command.wait_for(Path(f"{output}.parts/ranks/rank-{rank}.progress").exists)
    os.kill(command.rank(rank), signal.SIGSTOP)
    ended = command.wait(60)
    assert ended.code != 0
    assert f"rank {rank} stalled: no progress for" in ended.log
    command.assert_nothing_left()
    assert not output.exists()
    assert parts(output)  # the other rank has committed


def test_stalled_single_rank_ends_itself(
    start, predict_words, script, weights_file, fasta, tmp_path
):
    lines = (
        "step, calls = E.predict_step, []",
        "def hang(self, batch, batch_idx=0):",
        "    calls.append(1)",
        "    time.sleep(100 if len(calls) == 4 else 0)",
        "    return step(self, batch, batch_idx)",
        "E.predict_step = hang",
    )
    output = tmp_path / "out.h5"
    more = ("--writer.stall_seconds=3", "--writer.commit_seconds=0")
    command = start(*predict_words(weights_file, fasta, output, *more), launcher=script(*lines))
    ended = command.wait(60)
    assert ended.code == 1, ended.log
    assert "stalled" in ended.log
    assert len(parts(output)) == 3


@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_worker_ends_the_run_with_the_cause_and_keeps_what_is_finished(
    start, predict_words, script, weights_file, fasta, expected, tmp_path, ranks
):
    output = tmp_path / "out.h5"
    more = ("--data.num_workers=2", "--writer.commit_seconds=0.2")
    words = predict_words(weights_file, fasta, output, *more, ranks=ranks)
    command = start(*words, launcher=script(pack=0.3))
    command.wait_for(lambda: parts(output))
    rank = command.rank(ranks - 1)
    children = Path(f"/proc/{rank}/task/{rank}/children").read_text().split()
    os.kill(max(map(int, children)), signal.SIGKILL)  # as the system does where memory runs out
    ended = command.wait(30)
    assert ended.code == 1, ended.log
    assert "Traceback" not in ended.log
    assert "A process that prepares packs is gone" in ended.log
    assert "fewer --data.num_workers" in ended.log
    command.assert_nothing_left()
    kept = committed_rows(output)
    assert 0 < kept < RECORDS
    ended = start(*words).wait(60)
    assert ended.code == 0, ended.log
    assert f"Continuing: {kept} of {RECORDS}" in ended.log
    assert_is(output, expected)


def test_commit_that_hangs_ends_the_run(
    start, predict_words, script, weights_file, fasta, tmp_path
):
    lines = (
        "import virnucpro_pl.output.parts_folder as p",
        "p.write_part = slow(100, p.write_part)",
    )
    more = ("--writer.stall_seconds=3", "--writer.commit_seconds=0")
    words = predict_words(weights_file, fasta, tmp_path / "out.h5", *more)
    ended = start(*words, launcher=script(*lines)).wait(60)
    assert ended.code == 1, ended.log
    assert "stalled" in ended.log


@pytest.mark.parametrize("rank", [0, 1])
def test_failing_rank_ends_the_run_with_rank_and_cause(
    start, predict_words, script, weights_file, fasta, tmp_path, rank
):
    lines = (
        "step, calls = E.predict_step, []",
        "def fail(self, batch, batch_idx=0):",
        "    calls.append(1)",
        f"    if RANK == {rank} and len(calls) == 4:",
        "        raise RuntimeError('out of luck')",
        "    return step(self, batch, batch_idx)",
        "E.predict_step = fail",
    )
    output = tmp_path / "out.h5"
    command = start(*predict_words(weights_file, fasta, output, ranks=2), launcher=script(*lines))
    ended = command.wait(60)
    assert ended.code == 1, ended.log
    assert f"Rank {rank}, batch 3: error of 2 sequence(s): " in ended.log
    assert "out of luck" in ended.log
    command.assert_nothing_left()
    assert not output.exists()
    assert {path.name[:10] for path in parts(output)} == {"part-00000", "part-00001"}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("code", ["", "0", "7"])
def test_exit_from_within_a_step_is_no_success(
    start, predict_words, script, weights_file, fasta, tmp_path, ranks, code
):
    lines = (
        "step = E.predict_step",
        "def leave(self, batch, batch_idx=0):",
        f"    if batch_idx == 3 and RANK == {ranks - 1}:",
        f"        raise SystemExit({code})",
        "    return step(self, batch, batch_idx)",
        "E.predict_step = leave",
    )
    output = tmp_path / "out.h5"
    words = predict_words(weights_file, fasta, output, ranks=ranks)
    command = start(*words, launcher=script(*lines))
    ended = command.wait(60)
    assert ended.code not in (0, None), ended.log
    command.assert_nothing_left()
    assert not output.exists()
    assert parts(output)


def test_weights_that_one_rank_cannot_read_end_the_run_with_the_cause(
    start, predict_words, script, weights_file, fasta, tmp_path
):
    lines = (
        "from virnucpro_pl.errors import WeightsError",
        "def fail(self):",
        "    raise WeightsError('w.pt: no such file on this node')",
        "if RANK == 1:",
        "    E.configure_model = fail",
    )
    output = tmp_path / "out.h5"
    command = start(*predict_words(weights_file, fasta, output, ranks=2), launcher=script(*lines))
    ended = command.wait(60)
    assert ended.code == 2, ended.log
    assert "rank 1: WeightsError: w.pt: no such file on this node" in ended.log
    command.assert_nothing_left()
    assert not output.exists()


def test_hash_that_takes_long_keeps_nobody_from_leaving(
    start, predict_words, script, weights_file, fasta, tmp_path
):
    lines = (
        "import virnucpro_pl.models.download as f",
        "f._sha256 = slow(60, f._sha256)",
    )
    output = tmp_path / "out.h5"
    words = predict_words(weights_file, fasta, output, "--writer.commit_seconds=0.2")
    command = start(*words, launcher=script(*lines, pack=0.3))
    command.wait_for(lambda: parts(output))
    os.kill(command.pid, signal.SIGTERM)
    ended = command.wait(15)
    assert ended.code == 143, ended.log
    command.assert_nothing_left()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_signal_during_a_commit_waits_for_it_and_commits_the_rest(
    start, predict_words, script, weights_file, fasta, expected, tmp_path, number
):
    lines = (
        "step = E.predict_step",
        "def note(self, batch, batch_idx=0):",
        "    with open('computed', 'a') as file:",
        "        file.write(''.join(f'{row} ' for row in batch.rows.tolist()))",
        "    return step(self, batch, batch_idx)",
        "E.predict_step = note",
    )
    output = tmp_path / "out.h5"
    words = predict_words(weights_file, fasta, output, "--writer.commit_seconds=0")
    command = start(*words, launcher=script(*lines, pack=0.1, disk=0.4))
    folder = Path(f"{output}.parts")
    command.wait_for(lambda: parts(output) and list(folder.glob(".tmp-*part*")))
    os.kill(command.pid, number)
    ended = command.wait(30)
    assert ended.code == 128 + number, ended.log
    assert "Traceback" not in ended.log
    computed = sorted(map(int, (tmp_path / "computed").read_text().split()))
    kept = sorted(row for path in parts(output) for row in read_part(path).rows.tolist())
    assert kept == computed
    assert len(kept) < RECORDS
    ended = start(*words).wait(60)
    assert ended.code == 0, ended.log
    assert f"Continuing: {len(kept)} of 48" in ended.log
    assert_is(output, expected)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_second_signal_stops_at_once_and_loses_nothing_that_is_committed(
    start, predict_words, script, weights_file, fasta, expected, tmp_path, number, ranks
):
    lines = (
        "step = E.predict_step",
        "def long(self, batch, batch_idx=0):",
        "    if batch_idx == 2:",
        "        open(f'long-{RANK}', 'w').close()",
        "        [time.sleep(0.1) for _ in range(600)]",  # a long one may miss a signal
        "    return step(self, batch, batch_idx)",
        "E.predict_step = long",
    )
    output = tmp_path / "out.h5"
    words = predict_words(weights_file, fasta, output, "--writer.commit_seconds=0", ranks=ranks)
    command = start(*words, launcher=script(*lines))
    command.wait_for(lambda: all((tmp_path / f"long-{rank}").exists() for rank in range(ranks)))
    command.wait_for(lambda: len(parts(output)) == 2 * ranks)
    for _ in range(2):  # Ctrl-C reaches the whole group, `kill` only the process that it names
        command.kill(number) if number == signal.SIGINT else os.kill(command.pid, number)
        time.sleep(1)
    ended = command.wait(20)
    assert ended.code == 128 + number, ended.log
    assert "Traceback" not in ended.log
    assert ended.log.count("again to stop at once") == 1
    command.assert_nothing_left()
    assert committed_rows(output) == 4 * ranks
    last = f"Stopped: {4 * ranks} of {RECORDS} records are kept in {output}.parts; the same command"
    assert last in ended.log.splitlines()[-1]
    ended = start(*words).wait(60)
    assert ended.code == 0, ended.log
    assert f"Continuing: {4 * ranks} of {RECORDS}" in ended.log
    assert_is(output, expected)


def test_second_signal_waits_no_longer_for_a_slow_rank(
    start, predict_words, script, weights_file, fasta, expected, tmp_path
):
    lines = (
        "step = E.predict_step",
        "def long(self, batch, batch_idx=0):",
        "    if RANK == 1 and batch_idx == 2:",
        "        open('long', 'w').close()",
        "        [time.sleep(0.1) for _ in range(600)]",  # a long one may miss a signal
        "    return step(self, batch, batch_idx)",
        "E.predict_step = long",
    )
    output = tmp_path / "out.h5"
    words = predict_words(weights_file, fasta, output, "--writer.commit_seconds=0", ranks=2)
    command = start(*words, launcher=script(*lines, pack=0.3))
    command.wait_for((tmp_path / "long").exists)
    os.kill(command.pid, signal.SIGTERM)
    command.wait_for(Path(f"{output}.parts/ranks/rank-0.left").exists)
    time.sleep(0.4)  # sooner it would be the same wish
    os.kill(command.pid, signal.SIGTERM)
    ended = command.wait(15)
    assert ended.code == 143, ended.log
    command.assert_nothing_left()  # rank 1 misses its launcher
    kept = committed_rows(output)
    ended = start(*words).wait(60)
    assert ended.code == 0, ended.log
    assert f"Continuing: {kept} of {RECORDS}" in ended.log
    assert_is(output, expected)


def test_rank_failing_at_load_ends_the_run(
    start, predict_words, script, weights_file, fasta, tmp_path
):
    lines = (
        "def fail(*arguments, **options):",
        "    raise RuntimeError('no memory for you')",
        "if RANK == 1:",
        "    E.configure_model = fail",
    )
    output = tmp_path / "out.h5"
    command = start(*predict_words(weights_file, fasta, output, ranks=2), launcher=script(*lines))
    ended = command.wait(60)
    assert ended.code == 1, ended.log
    assert "rank 1: RuntimeError: no memory for you" in ended.log
    command.assert_nothing_left()
    assert not output.exists()


# Disk -----------------------------------------------------------------------------------------


def limit(kilobytes):
    return ("import resource", f"size = {kilobytes} << 10",
            "resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))")  # fmt: skip


@pytest.mark.parametrize("ranks", [1, 2])
def test_disk_full_at_commit_keeps_earlier_parts(
    start, predict_words, script, weights_file, fasta, expected, tmp_path, ranks
):
    # A part of two rows takes less than 4 kB, one of the rest more than 5 kB, the records 7 kB.
    output = tmp_path / "out.h5"
    words = predict_words(weights_file, fasta, output, ranks=ranks)
    lines = (
        "from virnucpro_pl.output.run import Run",
        "take = Run.take",
        "def often_at_first(self, batch, columns, commit_seconds):",
        *(f"    {line}" for line in limit(5)),
        "    take(self, batch, columns, 0 if self.folder._committed < 3 else 1000)",
        "Run.take = often_at_first",
    )
    more = ("--writer.commit_seconds=0",)
    ended = start(*words, *more, launcher=script(*lines)).wait(60)
    assert ended.code == 1, ended.log
    assert "finished rows cannot be written" in ended.log
    assert "make room and run the same command again" in ended.log
    assert not output.exists()
    assert len(parts(output)) >= 3
    kept = committed_rows(output)
    ended = start(*words).wait(60)
    assert ended.code == 0, ended.log
    assert f"Continuing: {kept} of 48" in ended.log
    assert_is(output, expected)


def test_disk_full_at_merge_keeps_all_parts(
    start, predict_words, script, weights_file, fasta, expected, tmp_path
):
    output = tmp_path / "out.h5"
    words = predict_words(weights_file, fasta, output)
    command = start(*words, "--writer.commit_seconds=0", launcher=script(*limit(14)))
    ended = command.wait(60)
    assert ended.code == 1, ended.log
    assert f"{output} cannot be written" in ended.log
    assert "Traceback" not in ended.log
    assert len(parts(output)) == 24
    assert not output.exists()
    main(text(words))
    assert_is(output, expected)


@pytest.mark.parametrize("write", [1, 2, 4, 8])
def test_signal_in_the_middle_of_the_merge_is_heeded_between_parts(
    start, predict_words, script, weights_file, fasta, expected, tmp_path, write
):
    launcher = script(
        "import signal",
        "from virnucpro_pl.output.merge import Merge",
        "from virnucpro_pl.output.quiet_file import QuietFile",
        "write, seen = QuietFile.write, []",
        "def interrupted(self, data):",
        "    seen.append('.h5' in str(self.name) and 'part-' not in str(self.name))",
        f"    if sum(seen) == {write}:",
        "        os.kill(os.getpid(), signal.SIGTERM)",
        "    return write(self, data)",
        "QuietFile.write = interrupted",
        "from virnucpro_pl import HDF5Writer",
        "HDF5Writer.gather = lambda *_: False",
    )
    output = tmp_path / "out.h5"
    words = predict_words(weights_file, fasta, output)
    command = start(*words, "--writer.commit_seconds=0", launcher=launcher)
    ended = command.wait(60)
    assert "Traceback" not in ended.log
    command.assert_nothing_left()
    if ended.code == 0:  # it came when all parts were merged
        assert_is(output, expected)
        return
    assert ended.code == 143, ended.log
    assert committed_rows(output) == RECORDS
    assert not list(Path(f"{output}.parts").glob(".tmp*"))
    main(text(words))
    assert_is(output, expected)


def test_disk_too_small_exits_2_before_work(
    predict_words, weights_file, fasta, tmp_path, monkeypatch, capsys
):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=5_000_000))
    monkeypatch.setattr("virnucpro_pl.output.hdf5_writer.HDF5Writer.row_bytes", lambda *_: 10**6)
    with pytest.raises(SystemExit) as ended:
        main(text(predict_words(weights_file, fasta, tmp_path / "out.h5")))
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert "0.005 GB free" in message
    assert "need 0.096 GB" in message
    assert [path.name for path in tmp_path.iterdir()] == ["in.faa"]


def test_small_file_system_runs_full_and_resumes_elsewhere(
    start, predict_words, script, weights_file, fasta, expected, tmp_path
):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)], check=False,
        capture_output=True,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip("no permission to mount a tmpfs")
    try:
        output = disk / "out.h5"
        words = predict_words(weights_file, fasta, output, "--writer.commit_seconds=0")
        ended = start(*words, launcher=script()).wait(60)
        assert ended.code == 1, ended.log
        assert "No space left" in ended.log
        assert parts(output)
        assert not output.exists()
        subprocess.run(["mount", "-o", "remount,size=10m", str(disk)], check=True)
        main(text(words))
        assert_is(output, expected)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)  # this process maps records


def test_output_that_cannot_be_made_exits_2(predict_words, weights_file, fasta, tmp_path, capsys):
    # Tests may run as root, whom permissions do not stop; a path below a file stops anyone.
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "out.h5", Path("/proc/out.h5")):
        with pytest.raises(SystemExit) as ended:
            main(text(predict_words(weights_file, fasta, path)))
        assert ended.value.code == 2
        assert f"{path} cannot be written" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "in.faa"]


# Several nodes --------------------------------------------------------------------------------


def test_torchrun_two_nodes_equal_one_process(
    start, predict_words, free_port, weights_file, fasta, expected, tmp_path
):
    output = tmp_path / "out.h5"
    more = ("--trainer.num_nodes=2", "--trainer.devices=1", "--trainer.strategy=ddp")
    words = predict_words(weights_file, fasta, output, *more)
    port = free_port()
    nodes = [
        start(*words, launcher=(
            *("-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"),
            *(f"--node_rank={node}", "--master_addr=127.0.0.1", f"--master_port={port}"),
            *("-m", "virnucpro_pl"),
        ))
        for node in range(2)
    ]  # fmt: skip
    for node in nodes:
        ended = node.wait(90)
        assert ended.code == 0, ended.log
        node.assert_nothing_left()
    assert_is(output, expected)
