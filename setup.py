"""Compiles core/ with Cython; everything else about the package is in pyproject.toml."""

from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

SOURCES = sorted(str(path) for pattern in ("*.py", "*.pyx") for path in Path("core").rglob(pattern))
HEADERS = sorted(str(path) for pattern in ("*.h", "*.pxd") for path in Path("core").rglob(pattern))

setup(
    ext_modules=cythonize(
        [
            Extension(
                source.rpartition(".")[0].replace("/", "."),
                [source],
                include_dirs=["core"],
                depends=HEADERS,
                extra_compile_args=["-O3", "-ffp-contract=off"],
            )
            for source in SOURCES
            if not source.endswith("__init__.py")
        ],
        build_dir="build/cython",
        compiler_directives={"language_level": 3, "annotation_typing": False, "embedsignature": True},
    )
)
