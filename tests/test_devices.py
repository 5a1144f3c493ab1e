"""Which devices a run may have, and that every one of them has its process."""

import json
import logging
import sys
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CPUAccelerator, MPSAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy

from virnucpro_pl import ESM2Embedder, SequenceDataModule, VirNucPro, __version__, devices
from virnucpro_pl.devices import has_bf16_units, resolve_accelerator
from virnucpro_pl.errors import UsageError

JOB = {
    "SLURM_JOB_ID": "1234",
    "SLURM_JOB_NAME": "viruses",
    "SLURM_NTASKS": "1",
    "SLURM_NNODES": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NODELIST": "localhost",
}
"""What Slurm sets in a job script with `--ntasks=1`."""
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}
TWO = ("--trainer.devices", 2, "--trainer.strategy", "ddp")
WRITE = "write `#SBATCH --nodes=1 --ntasks-per-node="


def step(tasks, **more):
    """What `srun` sets for one of so many tasks."""
    return {**JOB, "SLURM_NTASKS": tasks, "SLURM_STEP_ID": "0", **more}


@pytest.fixture
def fasta(write_fasta, tmp_path):
    return write_fasta(tmp_path / "in.faa", ["MKVLA", "MIAG", "MKW"])


@pytest.fixture
def words(predict_words, weights_file, fasta):
    """Words of a small run."""
    return predict_words(weights_file, fasta, "out.h5")


@pytest.fixture
def with_environment(monkeypatch):
    """Set variables as a cluster would."""

    def set_all(variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))

    return set_all


# One process for each device ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "options", "messages"),
    [
        (JOB, TWO, ["Slurm started 1 task on 1 node, but --trainer.devices 2", f"{WRITE}2`"]),
        (
            {**JOB, "SLURM_NTASKS_PER_NODE": 1},
            TWO,
            ["Slurm started 1 task on 1 node", "start with `srun virnucpro-pl ...`"],
        ),
        ({**JOB, "SLURM_NTASKS": 2}, TWO, ["--ntasks=2", "`#SBATCH --ntasks-per-node=8`"]),
        ({**JOB, "SLURM_NTASKS": 2}, (), ["--ntasks=2", "--ntasks=1 --cpus-per-task"]),
        (step(2, SLURM_NTASKS_PER_NODE=2), (), ["Slurm started 2 tasks on 1 node", f"{WRITE}1`"]),
        (
            {**JOB, "SLURM_NTASKS": 2, "SLURM_NTASKS_PER_NODE": 2},
            TWO,
            ["One process was started, without srun, in a Slurm job of 2 tasks", f"{WRITE}2`"],
        ),
        (
            step(2, SLURM_NTASKS_PER_NODE=1, SLURM_NNODES=2),
            TWO,
            ["Slurm started 2 tasks on 2 nodes, which are not 2 on each of 1 node"],
        ),
        ({**TORCHRUN, "WORLD_SIZE": 2}, (), ["torchrun started 2 processes", "make 1:"]),
        (
            {**TORCHRUN, "WORLD_SIZE": 2, "RANK": "1", "LOCAL_RANK": "1"},
            ("--trainer.devices", 1, "--trainer.strategy", "ddp"),
            ["torchrun started 2 processes", "make 1:"],
        ),
        (
            step(1, SLURM_NTASKS_PER_NODE=8),
            ("--trainer.devices", 1, "--trainer.strategy", "ddp"),
            ["which are not 1 on each of 1 node: the job has --ntasks-per-node=8"],
        ),
        (
            {**JOB, "SLURM_NTASKS": 8, "SLURM_NTASKS_PER_NODE": 8, "SLURM_STEP_ID": "4294967290"},
            ("--trainer.devices", 8, "--trainer.strategy", "ddp"),
            ["One process was started, without srun, in a Slurm job of 8 tasks"],
        ),
        (
            {**TORCHRUN, "WORLD_SIZE": 1},
            TWO,
            ["torchrun started 1 process,", "`torchrun --nnodes 1 --nproc_per_node 2 ...`"],
        ),
    ],
    ids=["one task", "one of a node", "no number of a node", "no number, one device",
         "one device", "no srun", "other nodes", "torchrun, one device", "torchrun, second rank",
         "one of eight a node",
         "interactive step", "torchrun, one process"],
)  # fmt: skip
def test_other_processes_than_devices_exits_2_and_says_how_to_start(
    run_main, words, with_environment, tmp_path, environment, options, messages
):
    with_environment(environment)
    ended = run_main(*words[1:], *options)
    assert ended.code == 2, ended.log
    [line] = ended.log.splitlines()
    for message in messages:
        assert message in line
    assert [path.name for path in tmp_path.iterdir()] == ["in.faa"]


@pytest.mark.parametrize(
    "environment",
    [
        JOB,
        step(1, SLURM_NTASKS_PER_NODE=8),  # of the job: srun --ntasks=1 within it
        {**JOB, "SLURM_NTASKS": 8, "SLURM_NTASKS_PER_NODE": 8},  # alone, and only one is needed
        {**JOB, "SLURM_NTASKS": 8, "SLURM_JOB_NAME": "interactive"},
        {**TORCHRUN, "WORLD_SIZE": 1},
    ],
    ids=["job script", "one of a step", "without srun", "interactive", "torchrun"],
)
def test_one_process_for_one_device_runs_in_any_environment(
    run_main, words, with_environment, tmp_path, environment
):
    with_environment(environment)
    ended = run_main(*words[1:])
    assert ended.code == 0, ended.log
    assert (tmp_path / "out.h5").exists()


def test_one_task_for_two_devices_ends_the_command(start, words, tmp_path):
    ended = start(*words, *TWO, env=JOB).wait(180)
    assert ended.code == 2
    assert "Slurm started 1 task on 1 node" in ended.log
    assert "Traceback" not in ended.log
    assert not (tmp_path / "out.h5").exists()


PYTHON = """
import sys
from lightning.pytorch import Trainer
from virnucpro_pl import ESM2Embedder, HDF5Writer, SequenceDataModule
from virnucpro_pl.errors import UsageError
trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False,
                  enable_checkpointing=False, callbacks=[HDF5Writer("out.h5")])
try:
    trainer.predict(ESM2Embedder(weights=sys.argv[1]), SequenceDataModule("in.faa"))
except UsageError as error:
    print(error)
    sys.exit(7)
"""


def test_one_task_for_two_devices_ends_a_trainer_made_in_python(
    start, words, weights_file, tmp_path
):
    (tmp_path / "run.py").write_text(PYTHON)
    ended = start(weights_file, env=JOB, launcher=["run.py"]).wait(180)
    assert ended.code == 7, ended.log
    assert "Slurm started 1 task on 1 node" in ended.log
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".faa", ".py", ".txt"]


def test_fit_started_twice_exits_2(with_environment, monkeypatch, tmp_path, capsys):
    from virnucpro_pl.cli.main import main

    monkeypatch.chdir(tmp_path)
    with_environment(step(2, SLURM_NTASKS_PER_NODE=2))
    files = [f"--data.{a}.{b}=x.h5" for a in ("viral", "other") for b in ("dnabert_s", "esm2")]
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", "train_classifier.yaml", *files, "--trainer.accelerator=cpu"])
    assert ended.value.code == 2
    assert "Slurm started 2 tasks on 1 node" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# The first line of the log ------------------------------------------------------------------------


def first_line(log):
    return log.splitlines()[0]


def test_first_line_names_version_devices_ranks_and_precision(run_main, words, monkeypatch):
    for units, precision, note in (
        (True, "bf16-mixed (matrix products in BF16)", ""),
        (False, "32-true (all in FP32)", ", no bf16 units"),
    ):
        monkeypatch.setattr(devices, "has_bf16_units", lambda units=units: units)
        options = ("--trainer.precision", "16-mixed", "--writer.overwrite", "true")
        ended = run_main(*words[1:], *options)
        expected = (
            f"virnucpro-pl {__version__} on the CPU (1 thread{note}), 1 rank, precision {precision}"
        )
        assert first_line(ended.log).endswith(f"INFO {expected}")


def test_first_line_of_two_ranks_is_said_once(predict, weights_file, write_fasta, tmp_path):
    fasta = write_fasta(tmp_path / "in.faa", ["MKVLA"] * 9)
    ended = predict(weights_file, fasta, tmp_path / "out.h5", ranks=2)
    assert ended.code == 0, ended.log
    assert "2 ranks, precision 32-true" in first_line(ended.log)
    assert ended.log.count("virnucpro-pl ") == 1


@pytest.mark.parametrize("units", [True, False])
def test_first_line_of_a_trainer_made_in_python_tells_what_will_run(
    weights_file, fasta, monkeypatch, caplog, units
):
    monkeypatch.setattr(devices, "has_bf16_units", lambda: units)
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    with caplog.at_level(logging.INFO, "virnucpro_pl"):
        trainer.predict(ESM2Embedder(weights=str(weights_file)), SequenceDataModule(fasta))
    precision = "bf16-mixed" if units else "32-true"
    words = "matrix products in BF16" if units else "all in FP32"
    assert caplog.messages[0].endswith(f"1 rank, precision {precision} ({words})")
    assert trainer.precision == precision


def test_describe_devices_counts_cards_by_name(monkeypatch):
    names = ["NVIDIA A100", "NVIDIA A100", "Tesla T4"]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: names[index])
    strategy = SimpleNamespace(root_device=torch.device("cuda", 0))
    trainer = SimpleNamespace(strategy=strategy, device_ids=[0, 1, 2], num_nodes=1)
    assert devices._describe_devices(trainer) == "2 x NVIDIA A100 and 1 x Tesla T4"
    trainer.device_ids, trainer.num_nodes = [0, 1], 3
    assert devices._describe_devices(trainer) == "2 x NVIDIA A100 on each of 3 nodes"


# The CPU and CUDA only ----------------------------------------------------------------------------


@pytest.mark.parametrize("cuda", [True, False])
def test_resolve_accelerator_is_never_apples(monkeypatch, cuda):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(MPSAccelerator, "is_available", staticmethod(lambda: True))
    expected = {"auto": "cuda" if cuda else "cpu", None: "cuda" if cuda else "cpu"}
    for asked, means in {**expected, "gpu": "cuda", "cuda": "cuda", "cpu": "cpu"}.items():
        assert resolve_accelerator(asked) == means


@pytest.mark.parametrize("command", ["predict", "fit"])
def test_accelerator_auto_is_resolved_in_the_configuration(command, monkeypatch):
    from virnucpro_pl.cli.fit import FitCLI
    from virnucpro_pl.cli.main import main
    from virnucpro_pl.cli.usage import UsageCLI

    seen = []
    monkeypatch.setattr(MPSAccelerator, "is_available", staticmethod(lambda: True))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(
        UsageCLI,
        "instantiate_classes",
        lambda self: (seen.append(self.config[command].trainer.accelerator), sys.exit(9)),
    )
    files = [f"--data.{a}.{b}=x.h5" for a in ("viral", "other") for b in ("dnabert_s", "esm2")]
    given = {
        "predict": ["--config=esm2.yaml", "--data.path=x.faa", "--writer.path=out.h5"],
        "fit": ["--config=train_classifier.yaml", *files],
    }
    with pytest.raises(SystemExit):
        main([command, *given[command]])
    assert seen == ["cpu"]
    assert FitCLI.before_instantiate_classes is UsageCLI.before_instantiate_classes


@pytest.mark.parametrize("asked", ["mps", "tpu", "toaster"])
def test_other_accelerator_exits_2_in_one_sentence(run_main, words, tmp_path, monkeypatch, asked):
    from virnucpro_pl.cli.main import main

    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"not on {asked}: give"):
        resolve_accelerator(asked)
    with pytest.raises(SystemExit) as ended:
        main([*map(str, words), "--trainer.accelerator", asked])
    assert ended.value.code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["in.faa"]


class AppleStrategy(SingleDeviceStrategy):
    """Says that it is on Apple's GPU."""

    @property
    def root_device(self):
        return torch.device("mps")


def test_apples_gpu_in_a_trainer_made_in_python_is_one_sentence(weights_file, fasta):
    trainer = Trainer(
        strategy=AppleStrategy(device="cpu", accelerator=CPUAccelerator()),
        logger=False,
        enable_checkpointing=False,
    )
    with pytest.raises(UsageError, match=r'not on mps: give Trainer\(accelerator="cpu"\)'):
        trainer.predict(ESM2Embedder(weights=str(weights_file)), SequenceDataModule(fasta))


@pytest.mark.parametrize(
    ("one_dnn", "able", "expected"),
    [
        (True, {"amx_bf16": True, "avx512_bf16": False}, True),
        (True, {"amx_bf16": False, "avx512_bf16": True}, True),
        (True, {"avx2": True, "amx_bf16": False, "avx512_bf16": False}, False),
        (True, {"neon": True, "bf16": True}, True),
        (True, {"neon": True, "bf16": False}, False),
        (False, {"neon": True, "bf16": True}, False),  # a Mac
    ],
)
def test_bf16_units_are_those_that_torch_uses(monkeypatch, one_dnn, able, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: one_dnn)
    assert has_bf16_units.__wrapped__() is expected


# The pace of a CPU --------------------------------------------------------------------------------


def test_published_size_on_a_cpu_says_how_long_it_takes(run_main, words, monkeypatch):
    monkeypatch.setattr("virnucpro_pl.predict.sequence_embedder.estimate_pace", lambda network: 2.5)
    ended = run_main(*words[1:])
    assert ended.code == 0
    assert "a timed matrix product" not in ended.log  # so small a network needs no warning
    monkeypatch.setattr("virnucpro_pl.predict.sequence_embedder.SLOW_FROM", 1_000)
    ended = run_main(*words[1:], "--writer.overwrite", "true")
    assert ended.code == 0
    said = "about 2.5 tokens/s by a timed matrix product, so less than a minute for its 18 tokens"
    [line] = [line for line in ended.log.splitlines() if "a timed matrix product" in line]
    assert said in line


def test_run_without_a_budget_on_a_cpu_has_small_packs(
    run_main, words, write_fasta, random_proteins, tmp_path
):
    write_fasta(tmp_path / "in.faa", random_proteins([250] * 40))
    ended = run_main(*words[1:], "--data.tokens_per_batch", "null")
    assert ended.code == 0, ended.log
    report = json.loads((tmp_path / "out.h5.run.json").read_text())
    assert report["totals"]["packs"] == 5  # of 8 sequences, 2,016 tokens
    assert report["pack_fill"] == round(2016 / 2048, 4)


# What a device can run ----------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ["triton", "varlen"])
def test_packed_attention_on_a_cpu_exits_2_before_weights_are_sought(run_main, words, asked):
    ended = run_main(*words[1:], "--model.attention", asked, "--model.weights", "absent.pt")
    assert ended.code == 2
    assert f"Attention {asked} cannot run here" in ended.log
    assert "attention as sdpa or auto" in ended.log
    assert "absent.pt" not in ended.log


def test_packed_attention_on_a_cpu_exits_2_on_every_rank(
    predict, weights_file, write_fasta, tmp_path
):
    fasta = write_fasta(tmp_path / "in.faa", ["MKVLA"] * 9)
    more = ("--model.attention", "triton")
    ended = predict(weights_file, fasta, tmp_path / "out.h5", *more, ranks=2)
    assert ended.code == 2, ended.log
    assert ended.log.count("Attention triton cannot run here") == 1
    assert "Traceback" not in ended.log
    assert not (tmp_path / "out.h5.parts").exists()


def test_packed_attention_on_a_cpu_ends_virnucpro_too(tmp_path):
    from virnucpro_pl import ContigDataModule, DNABERTSEmbedder

    (tmp_path / "c.fna").write_text(">a\nACGTTGCACGTA\n")
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    esm2 = ESM2Embedder("esm2_t6_8M_UR50D", weights="random")
    dnabert_s = DNABERTSEmbedder(weights="random", size="tiny", attention="triton")
    with pytest.raises(UsageError, match="Attention triton cannot run here"):
        trainer.predict(VirNucPro(esm2, dnabert_s, "random"), ContigDataModule(tmp_path / "c.fna"))
