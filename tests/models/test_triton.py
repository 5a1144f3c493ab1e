import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

KERNELS = Path(__file__).parent / "triton_kernels.py"


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux only")
def test_kernels_interpreted_on_a_cpu_equal_the_formulas():
    # Triton reads the variable when it is imported, which Lightning does.
    env = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    words = ("-o", "addopts=--import-mode=importlib", "-p", "no:cacheprovider")
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *words, KERNELS],
        env=env, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    none_skipped = r"^\d+ passed(, \d+ warnings?)? in "
    assert re.search(none_skipped, ended.stdout.splitlines()[-1]), ended.stdout
