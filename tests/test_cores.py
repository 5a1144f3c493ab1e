import math
import os
import re

import pytest
import torch
from lightning.pytorch import Trainer

from virnucpro_pl import cores
from virnucpro_pl.cores import allowed_cores, allowed_cpus, cgroup_quota, share_of_rank
from virnucpro_pl.devices import set_threads

V2 = "31 23 0:28 {top} {point} rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "32 31 0:29 {top} {point} rw,relatime - cgroup cgroup rw,cpu,cpuacct"
V1_MEMORY = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"
STEP = {
    "SLURM_JOB_ID": "1234",
    "SLURM_JOB_NAME": "viruses",
    "SLURM_NTASKS": "2",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_NNODES": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NODELIST": "localhost",
    "SLURM_STEP_ID": "0",
}
NOBODY_CHOSE = {"OMP_NUM_THREADS": "", "MKL_NUM_THREADS": ""}
DEMO = ("predict", "--config", "demo.yaml", "--trainer.accelerator", "cpu")


@pytest.fixture
def machine(tmp_path):
    """Make a root with these cgroups of a process, mounts, and files in `sys/fs/cgroup`."""

    def make(cgroups, mounts, files):
        (tmp_path / "proc/self").mkdir(parents=True)
        for name, lines in (("cgroup", cgroups), ("mountinfo", mounts)):
            (tmp_path / "proc/self" / name).write_text("".join(f"{line}\n" for line in lines))
        for name, text in files.items():
            path = tmp_path / "sys/fs/cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        return tmp_path

    return make


# A quota of time ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "pod", "cores"),
    [
        ("max 100000", "400000 100000", 4),
        ("150000 100000", "400000 100000", 1.5),
        ("800000 100000", "100000 50000", 2),
        ("max 100000", "max 100000", math.inf),
    ],
)
def test_quota_of_version_2_is_the_least_of_the_cgroup_and_all_above(machine, own, pod, cores):
    mount = V2.format(top="/", point="/sys/fs/cgroup")
    files = {"pods/a/box/cpu.max": own, "pods/a/cpu.max": pod, "pods/b/cpu.max": "1000 100000"}
    assert cgroup_quota(machine(["0::/pods/a/box"], [mount], files)) == cores


@pytest.mark.parametrize("path", ["/", "/../../elsewhere"])
def test_quota_within_a_container_that_sees_its_own_cgroup_alone(machine, path):
    mount = V2.format(top="/", point="/sys/fs/cgroup")
    assert cgroup_quota(machine([f"0::{path}"], [mount], {"cpu.max": "250000 100000"})) == 2.5


@pytest.mark.parametrize(("top", "inner"), [("/docker/abc", ""), ("/", "docker/abc/")])
def test_quota_of_version_1_where_the_container_or_all_is_mounted(machine, top, inner):
    mount = V1.format(top=top, point="/sys/fs/cgroup/cpu,cpuacct")
    files = {
        f"cpu,cpuacct/{inner}cpu.cfs_quota_us": "400000",
        f"cpu,cpuacct/{inner}cpu.cfs_period_us": "100000",
        "memory/cpu.cfs_quota_us": "1000",
        "memory/cpu.cfs_period_us": "100000",
    }
    cgroups = ["5:memory:/", "4:cpu,cpuacct:/docker/abc", "0::/"]
    assert cgroup_quota(machine(cgroups, [V1_MEMORY, mount], files)) == 4


def test_quota_of_minus_1_is_none(machine):
    mount = V1.format(top="/", point="/sys/fs/cgroup/cpu")
    files = {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}
    assert cgroup_quota(machine(["4:cpu:/"], [mount], files)) == math.inf


def test_quotas_of_both_versions_count(machine):
    mounts = [
        V1.format(top="/", point="/sys/fs/cgroup/cpu"),
        V2.format(top="/", point=r"/sys/fs/cgroup/version\0402"),
    ]
    files = {
        "cpu/a/cpu.cfs_quota_us": "600000",
        "cpu/a/cpu.cfs_period_us": "100000",
        "version 2/b/cpu.max": "300000 100000",
    }
    assert cgroup_quota(machine(["4:cpu:/a", "0::/b"], mounts, files)) == 3


def test_quota_of_a_machine_without_cgroups_is_none(tmp_path):
    assert cgroup_quota(tmp_path) == math.inf


def test_quota_of_this_machine_is_above_nothing():
    assert cgroup_quota() > 0


@pytest.mark.parametrize(("quota", "ranks", "share"), [(1, 1, 1), (0.5, 1, 1), (1, 8, 1)])
def test_share_is_no_larger_than_the_quota_and_at_least_1(machine, quota, ranks, share):
    mount = V2.format(top="/", point="/sys/fs/cgroup")
    root = machine(["0::/"], [mount], {"cpu.max": f"{quota * 100000:.0f} 100000"})
    assert share_of_rank(ranks, root=root) == share
    assert share_of_rank(ranks, bound=True, root=root) == share


def test_share_of_a_quota_above_the_cores_is_of_the_cores(machine):
    mount = V2.format(top="/", point="/sys/fs/cgroup")
    root = machine(["0::/"], [mount], {"cpu.max": f"{(len(allowed_cpus()) + 7) * 100000} 100000"})
    assert share_of_rank(1, root=root) == len(allowed_cpus())


def test_processors_of_one_core_are_one(tmp_path):
    assert allowed_cores(tmp_path) == len(allowed_cpus())
    for cpu in allowed_cpus():
        folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text("0-1023\n")
    assert allowed_cores(tmp_path) == 1


# Threads of a run ---------------------------------------------------------------------------------


@pytest.fixture
def nobody_chose(monkeypatch):
    """Have no number of threads chosen; the present one is back afterwards."""
    monkeypatch.setattr(cores, "IS_CHOSEN", False)
    before = torch.get_num_threads()
    torch.set_num_threads(allowed_cores())  # as torch itself has
    yield
    torch.set_num_threads(before)


def make_trainer(**options):
    return Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, **options)


@pytest.mark.parametrize("ranks", [1, 2, 1000])
def test_threads_are_a_ranks_share_of_the_cores(nobody_chose, ranks):
    set_threads(make_trainer(devices=ranks, strategy="ddp"))
    assert torch.get_num_threads() == share_of_rank(ranks) <= max(1, allowed_cores() // ranks)


@pytest.mark.parametrize("bound", [True, False])
def test_threads_of_a_task_that_slurm_has_bound_are_all_of_its_cores(
    nobody_chose, monkeypatch, bound
):
    cpus = len(allowed_cpus())
    for name, value in (STEP | {"SLURM_CPUS_ON_NODE": str(2 * cpus if bound else cpus)}).items():
        monkeypatch.setenv(name, value)
    set_threads(make_trainer(devices=2, strategy="ddp"))
    assert torch.get_num_threads() == share_of_rank(2, bound=bound)


@pytest.mark.parametrize(("most", "threads"), [(0, 1), (1, 1), (2, 2), (1000, None)])
def test_threads_are_no_more_than_there_is_work_for(nobody_chose, most, threads):
    set_threads(make_trainer(devices=1), most)
    assert torch.get_num_threads() == min(threads or most, share_of_rank(1))


def test_threads_that_the_user_has_chosen_stay(nobody_chose, monkeypatch):
    monkeypatch.setattr(cores, "IS_CHOSEN", True)
    torch.set_num_threads(3)
    set_threads(make_trainer(devices=1))
    assert torch.get_num_threads() == 3


def test_threads_that_python_has_set_are_no_more_afterwards(nobody_chose):
    torch.set_num_threads(1)
    for _ in range(2):
        set_threads(make_trainer(devices=1))
        assert torch.get_num_threads() == 1


def test_slurm_that_does_not_divide_a_node_still_says_what_the_job_has(nobody_chose, monkeypatch):
    for name, value in (STEP | {"SLURM_CPUS_ON_NODE": "1"}).items():
        monkeypatch.setenv(name, value)
    set_threads(make_trainer(devices=2, strategy="ddp"))
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("number", "chosen"), [("", False), ("0", False), ("4", True), ("4,2", True), ("many", False)]
)
def test_number_of_threads_that_counts_as_chosen(monkeypatch, number, chosen):
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", number)
    assert cores._is_chosen() is chosen


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_command_has_as_many_threads_as_cores_are_allowed_to_it(start):
    code = "import os, virnucpro_pl.__main__ as m; os.sched_setaffinity(0, {%d}); m.main()"
    one = min(os.sched_getaffinity(0))
    ended = start(*DEMO, launcher=("-c", code % one), env=NOBODY_CHOSE).wait(180)
    assert ended.code == 0, ended.log
    assert "on the CPU (1 thread" in ended.log
    assert "1 threads" not in ended.log


def test_command_has_the_threads_that_the_user_has_chosen(start):
    ended = start(*DEMO, env=NOBODY_CHOSE | {"OMP_NUM_THREADS": "1"}).wait(180)
    assert ended.code == 0, ended.log
    assert "on the CPU (1 thread" in ended.log
    assert "1 threads" not in ended.log


@pytest.mark.slow
def test_ranks_of_a_node_share_its_cores(start):
    two = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
    ended = start(*DEMO, *two, env=NOBODY_CHOSE).wait(180)
    assert ended.code == 0, ended.log
    assert f"on the CPU ({share_of_rank(2)} thread" in ended.log


# How threads wait ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "policy"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_openmp_hears_how_threads_wait_before_torch_is_loaded(start, asked, policy):
    env = {"OMP_DISPLAY_ENV": "true"} | ({} if asked is None else {"OMP_WAIT_POLICY": asked})
    unset = "import os; os.environ.pop('OMP_WAIT_POLICY', None); " if asked is None else ""
    launcher = ("-c", f"{unset}import virnucpro_pl.__main__ as m; m.main()")
    ended = start(*DEMO, "--print_config", launcher=launcher, env=env).wait(180)
    assert ended.code == 0, ended.log
    said = re.findall(r"OMP_WAIT_POLICY\s*=\s*'(\w+)'", ended.log)
    assert said, "torch's OpenMP says what it has heard"
    assert set(said) == {policy}


@pytest.mark.parametrize(
    "line",
    [
        "36 35 0:9 / /mnt rw - tmpfs  rw",
        "36 35 0:9 / /mnt/B\udcfccher rw - cifs //host/B\udcfccher rw",
        "36 35 0:9 / /mnt/\u2028x rw - tmpfs none rw",
        "",
    ],
)
def test_strange_mounts_are_passed_over(tmp_path, line):
    proc = tmp_path / "proc/self"
    proc.mkdir(parents=True)
    (proc / "cgroup").write_text("0::/a\\x2db\n")
    own = "30 1 0:26 /a\\134x2db /sys/fs/cgroup rw - cgroup2 cgroup rw"
    (proc / "mountinfo").write_bytes(os.fsencode(f"{line}\n{own}\n"))
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("150000 100000\n")
    assert cores.cgroup_quota(tmp_path) == 1.5


@pytest.mark.parametrize("content", ["0 0\n", "max 100000\n", "word\n", "a b\n", ""])
def test_quota_that_is_none_limits_nothing(tmp_path, content):
    proc = tmp_path / "proc/self"
    proc.mkdir(parents=True)
    (proc / "cgroup").write_text("0::/\n")
    (proc / "mountinfo").write_text("30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text(content)
    assert cores.cgroup_quota(tmp_path) == math.inf
