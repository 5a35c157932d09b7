"""The one thing that pyproject.toml cannot say: where NumPy's headers are."""

import numpy
from setuptools import Extension, setup

setup(
    ext_modules=[
        # No fused multiply-add and no other order of sums than is written: the bits are to be those of NumPy.
        Extension(
            "rnnstream_kernel",
            ["rnnstream_kernel.c"],
            include_dirs=[numpy.get_include()],
            extra_compile_args=["-O3", "-ffp-contract=off"],
        )
    ]
)
