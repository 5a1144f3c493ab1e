"""What is asked of devices: which a run may have, and that every one of them has its rank."""

from __future__ import annotations

import functools
import logging
import os
from collections import Counter
from typing import Any

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Trainer

from virnucpro_pl import cores
from virnucpro_pl.errors import UsageError
from virnucpro_pl.version import __version__

log = logging.getLogger(__name__)

_BF16_UNITS = ("amx_bf16", "avx512_bf16", "bf16")
"""As torch calls them on Intel, on Intel and AMD, and on ARM."""
_IN_WORDS = {
    "16-mixed": "matrix products in FP16",
    "bf16-mixed": "matrix products in BF16",
    "16-true": "all in FP16",
    "bf16-true": "all in BF16",
    "32-true": "all in FP32",
}
"""What a run computes in."""
_STEP = ("SLURM_STEP_ID", "SLURM_STEPID")
"""What `srun` sets and a job script alone has not (manual of srun, output environment)."""
_RESERVED_STEPS = 0xFFFFFFF0
"""From which number on a step is the batch script's or an interactive shell's (Slurm, slurm.h)."""


@functools.cache
def has_bf16_units() -> bool:
    """Tell whether torch computes matrix products in bf16 on this processor's own units for it.

    Without oneDNN, as on a Mac, it does not, whatever the processor has.
    """
    able = torch.cpu.get_capabilities()
    one_dnn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return one_dnn and any(able.get(units, False) for units in _BF16_UNITS)


def resolve_accelerator(asked: Any) -> str:
    """The accelerator that the command line's `--trainer.accelerator` means: `cuda` or `cpu`.

    Args:
        asked: `auto`, or nothing, is CUDA where there is one, otherwise the CPU; `gpu` is CUDA.

    Raises:
        UsageError: If it is another: Apple's GPU lacks operations that are needed here.
    """
    if asked in (None, "auto"):
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "gpu":
        return "cuda"
    if asked not in ("cpu", "cuda"):
        name = asked if isinstance(asked, str) else asked.class_path
        raise UsageError(
            f"This program runs on NVIDIA GPUs and on the CPU, not on {name}: give "
            "--trainer.accelerator auto, cuda or cpu"
        )
    return str(asked)


def check_slurm_tasks() -> None:
    """Refuse a Slurm job for which Lightning makes no Trainer.

    Raises:
        UsageError: If the job has several tasks, but does not say how many of a node.
    """
    if TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return
    tasks = int(os.environ["SLURM_NTASKS"])
    if tasks > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise UsageError(
            f"This Slurm job has --ntasks={tasks} and does not say how many are of one node: write "
            "`#SBATCH --ntasks-per-node=8`, one for each of 8 GPUs, and start with `srun "
            "virnucpro-pl ...`, or `#SBATCH --ntasks=1 --cpus-per-task=8` for one process"
        )


def check_devices(trainer: Trainer) -> None:
    """Refuse a run that is on a wrong device, or has not a process for each device.

    It looks at the environment alone, so that no rank waits for another.

    Raises:
        UsageError: With what is wrong, on every rank that there is.
    """
    environment = trainer._accelerator_connector.cluster_environment
    if environment.creates_processes_externally:
        _check_processes(environment, trainer)
    # After the processes: one that has no device has no root device either.
    kind = trainer.strategy.root_device.type
    if kind not in ("cpu", "cuda"):
        raise UsageError(
            f"This package runs on NVIDIA GPUs and on the CPU, not on {kind}: give "
            'Trainer(accelerator="cpu")'
        )


def _check_processes(environment: ClusterEnvironment, trainer: Trainer) -> None:
    """Refuse other processes than one for each device of each node."""
    devices, nodes = trainer.num_devices, trainer.num_nodes
    count, sentence = _started(environment)
    advice = _advice(environment, devices, nodes)
    if count != devices * nodes:
        raise UsageError(
            f"{sentence}, but --trainer.devices {devices} and --trainer.num_nodes {nodes} make "
            f"{devices * nodes}: {advice}, or give the devices and nodes that there are processes "
            "for"
        )
    if trainer.strategy.launcher is None:
        return  # of a single process Lightning asks nothing
    try:
        environment.validate_settings(devices, nodes)
    except ValueError as error:
        per_node = os.environ.get("SLURM_NTASKS_PER_NODE")
        found = f"the job has --ntasks-per-node={per_node}" if per_node else str(error)
        raise UsageError(
            f"{sentence}, which are not {devices} on each of {_plural(nodes, 'node')}: {found}; "
            f"{advice}"
        ) from error


def _in_step() -> bool:
    """Tell whether `srun` has started this process; an interactive shell has a step of its own."""
    step = next((os.environ[name] for name in _STEP if name in os.environ), None)
    return step is not None and not (step.isdecimal() and int(step) >= _RESERVED_STEPS)


def _started(environment: ClusterEnvironment) -> tuple[int, str]:
    """How many processes were started, and a sentence that says so."""
    count = environment.world_size()
    if not isinstance(environment, SLURMEnvironment):
        name = type(environment).__name__.removesuffix("Environment")
        who = "torchrun" if isinstance(environment, TorchElasticEnvironment) else name
        return count, f"{who} started {_plural(count, 'process', 'processes')}"
    if count > 1 and not _in_step():
        return 1, f"One process was started, without srun, in a Slurm job of {count} tasks"
    nodes = int(os.environ.get("SLURM_NNODES", "1"))
    return count, f"Slurm started {_plural(count, 'task')} on {_plural(nodes, 'node')}"


def _advice(environment: ClusterEnvironment, devices: int, nodes: int) -> str:
    if isinstance(environment, SLURMEnvironment):
        return (
            f"write `#SBATCH --nodes={nodes} --ntasks-per-node={devices}` and start with "
            "`srun virnucpro-pl ...`"
        )
    if isinstance(environment, TorchElasticEnvironment):
        return f"start with `torchrun --nnodes {nodes} --nproc_per_node {devices} ...`"
    return "start as many"


def set_threads(trainer: Trainer, most: int | None = None) -> None:
    """Have this rank compute on its share of the node's cores, unless the user says on how many.

    On a GPU the loader's processes do what there is to do on cores, and get one each. On a CPU they
    wait nearly all of the time, and none is kept for them.

    Args:
        trainer: The Trainer of the run, its data attached.
        most: Threads that the work can be divided between, 1 at least; None for any number.
    """
    if cores.IS_CHOSEN:
        return
    environment = trainer._accelerator_connector.cluster_environment
    allocated = 0
    if isinstance(environment, SLURMEnvironment):
        allocated = int(os.environ.get("SLURM_CPUS_ON_NODE") or 0)
    bound = len(cores.allowed_cpus()) < allocated
    share = cores.share_of_rank(trainer.num_devices, bound=bound)
    if allocated and not bound:  # a node that Slurm does not divide: it is more than the job's
        share = min(share, max(1, allocated // trainer.num_devices))
    if trainer.strategy.root_device.type != "cpu":
        workers: int = getattr(getattr(trainer, "datamodule", None), "num_workers", 0)
        share = max(1, share - workers)
    if trainer.strategy.launcher is None:  # else Lightning has set a number of its own by now
        share = min(share, _threads.given())
    os.environ.pop("OMP_NUM_THREADS", None)  # Lightning's, which ranks of a later run would inherit
    _threads.ours = share if most is None else min(share, max(1, most))
    torch.set_num_threads(_threads.ours)


def give_back_threads() -> None:
    """Have torch compute on as many threads as before `set_threads`, in a process that goes on."""
    if _threads.ours == torch.get_num_threads():
        torch.set_num_threads(_threads.before)


class _Threads:
    """Threads that torch had before this program changed their number, and those it was given."""

    def __init__(self) -> None:
        self.before = torch.get_num_threads()
        self.ours: int | None = None

    def given(self) -> int:
        """The number that is not ours: torch's, or what a user of Python has set."""
        now = torch.get_num_threads()
        if now != self.ours:
            self.before, self.ours = now, None
        return self.before


_threads = _Threads()


def announce(trainer: Trainer, precision: str) -> None:
    """Begin the log of a run: version, devices, ranks, precision.

    Args:
        trainer: The Trainer of the run.
        precision: What the run computes in, whatever the Trainer has as yet.
    """
    if trainer.is_global_zero:
        ranks = _plural(trainer.world_size, "rank")
        place = _describe_devices(trainer)
        words = _IN_WORDS.get(precision, "as Lightning does it")
        log.info(
            "virnucpro-pl %s on %s, %s, precision %s (%s)",
            *(__version__, place, ranks, precision, words),
        )


def _describe_devices(trainer: Trainer) -> str:
    """The devices of this node by name and number; other nodes are taken to have the same."""
    if trainer.strategy.root_device.type == "cuda":
        names = Counter(torch.cuda.get_device_name(index) for index in trainer.device_ids)
        place = " and ".join(f"{count} x {name}" for name, count in names.items())
    else:
        units = "" if has_bf16_units() else ", no bf16 units"
        place = f"the CPU ({_plural(torch.get_num_threads(), 'thread')}{units})"
    return place if trainer.num_nodes == 1 else f"{place} on each of {trainer.num_nodes} nodes"


def _plural(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"
