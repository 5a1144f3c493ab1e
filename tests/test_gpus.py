"""What only several GPUs of one machine, and NCCL, can show."""

import json
import os
import signal
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]
RECORDS = 400
IDS = [f"p{i}" for i in range(RECORDS)]


@pytest.fixture
def fasta(write_fasta, random_proteins, tmp_path):
    return write_fasta(tmp_path / "in.faa", random_proteins([150] * RECORDS))


@pytest.fixture
def words(fasta):
    """Words of a run on so many GPUs; two records a pack."""

    def make(output, devices, path=fasta):
        return [
            *("predict", "--config", "esm2.yaml", "--model.name", "esm2_t6_8M_UR50D"),
            *("--model.weights", "random", "--data.path", path, "--writer.path", output),
            *("--data.tokens_per_batch", 400, "--data.num_workers", 1),
            *("--trainer.accelerator", "gpu", "--trainer.devices", devices),
            *(("--trainer.strategy", "ddp") if devices > 1 else ()),
        ]

    return make


@pytest.fixture
def slowly(tmp_path):
    """A launcher whose packs take a while."""
    path = tmp_path / "slow.py"
    path.write_text(
        "import time\n"
        "import virnucpro_pl.predict.embedders as embedder\n"
        "from virnucpro_pl.cli.main import main\n"
        "E = embedder.SequenceEmbedder\n"
        "step = E.predict_step\n"
        "def slow(*arguments, **options):\n"
        "    time.sleep(0.1)\n"
        "    return step(*arguments, **options)\n"
        "E.predict_step = slow\n"
        "main()\n"
    )
    return (str(path),)


def rows_of(path):
    with h5py.File(path) as file:
        assert file.attrs["complete"]
        return file["sequence_ids"].asstr()[:].tolist(), file["embeddings"][:]


def assert_same(output, one):
    """The rows of one GPU, bit by bit: a sequence's vector does not depend on its rank."""
    ids, vectors = rows_of(output)
    assert ids == rows_of(one)[0] == IDS
    np.testing.assert_array_equal(vectors, rows_of(one)[1])


def test_two_gpus_equal_one(start, words, tmp_path):
    env = {"NCCL_DEBUG": "VERSION"}
    commands = [start(*words(tmp_path / f"{count}.h5", count), env=env) for count in (1, 2)]
    for command in commands:
        ended = command.wait(300)
        assert ended.code == 0, ended.log
        command.assert_nothing_left()
    assert "NCCL version" in ended.log
    assert_same(tmp_path / "2.h5", tmp_path / "1.h5")
    report = json.loads((tmp_path / "2.h5.run.json").read_text())
    assert [rank["records"] for rank in report["per_rank"]] == [RECORDS / 2] * 2


@pytest.mark.parametrize(
    ("number", "rank", "code"),
    [(signal.SIGKILL, 1, None), (signal.SIGKILL, 0, None), (signal.SIGTERM, 0, 143)],
    ids=["rank 1 killed", "rank 0 killed", "SIGTERM to the launcher"],
)
def test_ended_run_leaves_nobody_behind_and_resumes(
    start, words, slowly, tmp_path, number, rank, code
):
    alone = start(*words(tmp_path / "1.h5", 1))
    output = tmp_path / "out.h5"
    command = start(*words(output, 2), "--writer.commit_seconds", 0.5, launcher=slowly)
    progress = Path(f"{output}.parts/ranks/rank-1.progress")
    command.wait_for(lambda: progress.exists() and command.rank(rank), 300)
    command.wait_for(lambda: len(list(Path(f"{output}.parts").glob("part-*"))) > 1, 60)
    began = time.monotonic()
    os.kill(command.rank(rank), number)
    ended = command.wait(60)
    assert ended.code == code if code else ended.code != 0, ended.log
    command.assert_nothing_left(60)
    assert time.monotonic() - began < 60
    assert not output.exists()
    again = start(*words(output, 2)).wait(300)
    assert again.code == 0, again.log
    assert "records are committed already" in again.log
    assert alone.wait(300).code == 0
    assert_same(output, tmp_path / "1.h5")


def test_rank_without_any_pack_takes_part(start, words, write_fasta, tmp_path):
    single = write_fasta(tmp_path / "one.faa", ["MKVLA"])
    ended = start(*words(tmp_path / "out.h5", 2, single)).wait(300)
    assert ended.code == 0, ended.log
    assert rows_of(tmp_path / "out.h5")[0] == ["p0"]


def test_visible_devices_are_the_ones_used(start, words, tmp_path):
    launcher = tmp_path / "tell.py"
    launcher.write_text(
        "import os, torch\n"
        "from virnucpro_pl.cli.main import main\n"
        "main()\n"
        "here = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid\n"
        "print(f\"rank {os.environ.get('LOCAL_RANK', 0)} on {here}.\", flush=True)\n"
    )
    last = torch.cuda.device_count() - 1
    env = {"CUDA_VISIBLE_DEVICES": f"{last},{last - 1}"}
    ended = start(*words(tmp_path / "out.h5", 2), launcher=(str(launcher),), env=env).wait(300)
    assert ended.code == 0, ended.log
    for rank, device in enumerate((last, last - 1)):
        assert f"rank {rank} on {torch.cuda.get_device_properties(device).uuid}." in ended.log
