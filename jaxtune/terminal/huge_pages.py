"""Huge pages for the memory of a training process on a CPU: the command starts itself again with glibc's setting.

A step writes hundreds of megabytes of fresh arrays; in pages of 4 KiB the kernel maps and clears them one by one. glibc
takes its tunables from the environment when a process begins (`glibc.malloc.hugetlb=1`: blocks that `malloc` maps ask
for transparent huge pages, glibc manual, "Memory Allocation Tunables"), so a running process cannot turn them on.
Measured in `experiments/10-step-speed`.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxtune.errors import say

TUNABLE = "glibc.malloc.hugetlb"
SWITCH = "JAXTUNE_HUGE_PAGES"
"""0: leave memory as it is. A command that was started again carries 1."""
OPTION = "--no-huge-pages"
COMPUTING = ("train", "sweep", "transfer", "conflict", "evaluate", "generate", "verify")
SINCE = (2, 35)
"""The glibc that brought the tunable."""
KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")
ACCELERATORS = ("nvidiactl", "kfd", "accel0", "vfio/0")
"""Files under /dev of NVIDIA and AMD GPUs and of TPUs: there the step's arrays are not in this memory."""


def restart(argv: Sequence[str]) -> None:
    """Begin this process anew with huge pages where they help, under the same number in the same terminal."""
    if helps(argv, os.environ):
        before = os.environ.get("GLIBC_TUNABLES")
        tunables = f"{before}:{TUNABLE}=1" if before else f"{TUNABLE}=1"
        environment = {**os.environ, "GLIBC_TUNABLES": tunables, SWITCH: "1"}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def tell_once() -> None:
    """Say of a process that began anew that it has huge pages; those that it starts have them too, and say nothing."""
    if os.environ.get(SWITCH) == "1":
        os.environ[SWITCH] = "said"
        say(f"memory in huge pages ({OPTION} leaves them out)", file=sys.stderr)


def helps(argv: Sequence[str], environment: Mapping[str, str], root: Path = Path("/")) -> bool:
    """Whether these arguments compute on a CPU whose kernel and C library give huge pages to whom asks, and only then.

    A kernel that gives them to all, or to none, is left alone, and so are tunables that the user has set.
    """
    asked = OPTION not in argv and SWITCH not in environment and TUNABLE not in environment.get("GLIBC_TUNABLES", "")
    if "malloc" in environment.get("LD_PRELOAD", ""):  # jemalloc, tcmalloc: glibc's own is not in use
        return False
    command = next((text for text in argv if not text.startswith("-")), None)
    computes = command in COMPUTING and not {"-h", "--help", "--dry-run"} & set(argv)
    if not (asked and computes and sys.platform == "linux" and sys.executable and glibc() >= SINCE):
        return False
    platforms = environment.get("JAX_PLATFORMS", "")
    beside = any((root / "dev" / name).exists() for name in ACCELERATORS)
    on_cpu = platforms == "cpu" or (platforms in ("", "auto") and not beside)
    kernel = root / KERNEL.relative_to("/")
    return on_cpu and kernel.exists() and "[madvise]" in kernel.read_text()


def glibc() -> tuple[int, ...]:
    """Version of the C library; nothing where it is not glibc."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (AttributeError, ValueError):  # another system, or another C library
        return ()
    return tuple(int(part) for part in version.split(".")[:2]) if name == "glibc" else ()
