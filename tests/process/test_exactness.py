"""Promise 1, through a real worker process and on every kernel that this processor can run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLAGS = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
KERNELS = ["", "Prescott", "Nehalem"]
KERNELS += ["Sandybridge"] if " avx " in FLAGS else []
KERNELS += ["Haswell"] if " avx2 " in FLAGS else []
KERNELS += ["SkylakeX"] if " avx512f " in FLAGS else []


@pytest.mark.parametrize("kernels", KERNELS)
def test_streams_have_the_bits_of_the_whole_sequence(kernels, tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "OPENBLAS_CORETYPE"}
    if kernels:
        environment["OPENBLAS_CORETYPE"] = kernels
    done = subprocess.run(
        [sys.executable, "-m", "tests.process.exactness", str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    tokens, dense = (int(number) for number in done.stdout.split(" predictions")[0].split(" + "))
    assert tokens > 391 * 5
    assert dense == 9 * 20
