"""Builds the native convolution where there is a C++ compiler (GCC or Clang); everything else is in pyproject.toml."""

from pathlib import Path

from jaxlib import __file__ as jaxlib
from setuptools import Extension, setup


setup(
    ext_modules=[
        Extension(
            "maskprune.conv._native",
            ["maskprune/conv/_native.cc", "maskprune/conv/_launch.cc"],
            include_dirs=[str(Path(jaxlib).parent / "include")],
            extra_compile_args=["-std=c++17", "-O3", "-w"],
            libraries=["dl"],
            optional=True,  # without a compiler the installation succeeds, and convolutions take another way
        )
    ]
)
