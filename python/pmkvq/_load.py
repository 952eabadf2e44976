"""Loads the extension module. One with CUDA needs cuBLASLt, which wheels leave to the package nvidia-cublas."""
from __future__ import annotations

import ctypes
import importlib
import pathlib
import sys

_CUBLASLT = "libcublasLt.so.13"
# Of the wheels nvidia-cublas, in any folder that packages are imported from.
_FOLDER = "nvidia/cu13/lib"


def load() -> None:
    """Imports pmkvq._pmkvq, and cuBLASLt before it where the linker does not find that."""
    name = f"{__package__}._pmkvq"
    try:
        importlib.import_module(name)
    except ImportError as error:
        if _CUBLASLT not in str(error):
            raise
        _load_cublaslt(error)
        importlib.import_module(name)


def _load_cublaslt(error: ImportError) -> None:
    for folder in sys.path:
        library = pathlib.Path(folder) / _FOLDER / _CUBLASLT
        if library.exists():
            ctypes.CDLL(str(library))  # Found by its name from then on.
            return
    raise ImportError(
        f"pmkvq was built with CUDA and found no {_CUBLASLT}: pip install 'pmkvq[cuda]' brings it, or LD_LIBRARY_PATH "
        "names its folder"
    ) from error
