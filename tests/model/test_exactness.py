"""Streamed, whole and in every company: the same bits. With this machine's kernels, and with others that OpenBLAS has."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from rnnstream.model.blas import kernels

from .exactness import check_company, check_neighbours, check_sequence
from .nets import VARIANTS, network, tokens

CPUINFO = Path("/proc/cpuinfo")
FLAGS = CPUINFO.read_text().split() if CPUINFO.exists() else []
OTHERS = [
    core
    for core, flag in [
        ("Prescott", "pni"),
        ("Nehalem", "sse4_2"),
        ("Sandybridge", "avx"),
        ("Haswell", "avx2"),
        ("SkylakeX", "avx512f"),
    ]
    if flag in FLAGS and platform.machine() == "x86_64" and not kernels().endswith(core)  # these are None's
]


@pytest.fixture(params=[(name, dtype) for name in VARIANTS for dtype in ("float32", "float64")], ids=lambda p: " ".join(p))
def model(request):
    name, dtype = request.param
    return network(VARIANTS[name] | {"dtype": dtype}, seed=1, scale=0.6)


def test_in_every_company(model):
    assert model.exact
    check_company(model, tokens(model, 50))


def test_whole_and_streamed(model):
    check_sequence(model, tokens(model, 40))


def test_beside_nan_and_infinity(model):
    check_neighbours(model, tokens(model, 23))


@pytest.mark.parametrize("core", [None, *OTHERS])
def test_with_the_kernels_of_other_processors(core):
    run = subprocess.run(
        [sys.executable, "-m", "model.exactness"],
        env=os.environ | ({"OPENBLAS_CORETYPE": core} if core else {}),
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode == 0, run.stderr
    if core and "openblas" in kernels():
        assert {"Prescott": "Katmai"}.get(core, core) in run.stdout  # OpenBLAS calls one set by another name
