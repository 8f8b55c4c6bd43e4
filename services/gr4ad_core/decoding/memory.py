"""Memory of a process that decodes: what a search frees, the next one takes again."""

from __future__ import annotations

import ctypes
import platform
from typing import Final

# Parameters of mallopt, from malloc.h.
M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3
LARGEST: Final = 1 << 30  # bytes


def keep_freed_memory() -> None:
    """Let the C library keep freed memory, up to the peak of this process, for as long as the process lives.

    A search's tensors are some megabytes each, and glibc gives blocks of that size back to the system, which hands out
    empty pages again, one fault each, at the next search. With another C library nothing is changed.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST)
        libc.mallopt(M_TRIM_THRESHOLD, LARGEST)
