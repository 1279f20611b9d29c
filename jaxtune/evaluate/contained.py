"""A program in a process that can compute and read, and nothing else: no files, processes, network or signals.

Run as a script by `code_runs`: `contained.py SECONDS MEGABYTES SOCKET_FD`. The kernel refuses calls by their numbers
(seccomp), on Linux only; limits of time and memory are those of `resource`. It contains accidents and mischief of a
model, not an attacker who knows a hole of the kernel. Standard library only.

Over the socket the caller gives the program, then its tests, then a secret, each once `DONE` has come for what was
before; the secret sent back is the verdict that all tests held. So what an answer writes to its descriptors before it
leaves is no verdict: while it runs, neither its tests nor the secret are in its process.
"""

import ctypes
import os
import platform
import resource
import signal
import struct
import sys

WRITES = 0o1 | 0o2 | 0o100 | 0o1000 | 0o2000 | 0o20000000
"""O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_APPEND, O_TMPFILE."""
X86 = {
    "arch": 0xC000003E,
    "open": {2: 1, 257: 2},  # number of the call: which argument holds the flags
    "denied": (
        *(29, 31, 41, 42, 44, 46, 49, 53, 56, 57, 58, 59, 62, 64, 68, 71, 76, 77, 82, 83, 84, 85, 86, 87, 88, 90, 91),
        *(92, 93, 94, 101, 109, 112, 129, 132, 133, 141, 155, 160, 161, 165, 166, 167, 169, 175, 179, 188, 189, 190),
        *(197, 198, 199, 200, 203, 234, 235, 240, 246, 248, 250, 258, 259, 260, 261, 263, 264, 265, 266, 268, 272),
        *(280, 285, 297, 298, 302, 307, 308, 311, 313, 316, 319, 320, 321, 322, 323, 424, 425, 428, 429, 430, 434),
        *(435, 437, 438, 447, 452),
    ),
}
"""x86-64: shared memory, sockets, clone and exec, signals, changes of files, limits, mounts, namespaces, io_uring."""
ARM = {
    "arch": 0xC00000B7,
    "open": {56: 2},
    "denied": (
        *(5, 6, 7, 14, 15, 16, 33, 34, 35, 36, 37, 38, 39, 40, 41, 45, 46, 47, 51, 52, 53, 54, 55, 88, 97, 104, 105),
        *(117, 122, 129, 130, 131, 138, 140, 142, 154, 157, 164, 180, 186, 190, 194, 198, 199, 200, 203, 206, 211),
        *(217, 219, 220, 221, 224, 240, 241, 261, 268, 269, 271, 273, 276, 279, 280, 281, 282, 294, 424, 425, 428),
        *(429, 430, 434, 435, 437, 438, 447, 452),
    ),
}
"""AArch64: the same calls."""
TABLES = {"x86_64": X86, "aarch64": ARM}
"""Numbers of calls by machine."""
LOAD, EQUAL, ANY_BIT, AT_LEAST, RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | 1
"""The kernel's answers: go on, and the error EPERM."""


def call_filter(table: dict) -> list[tuple[int, int, int, int]]:
    """The seccomp program of a machine: instructions (code, jump if true, jump if false, value)."""
    refuse = (RETURN, 0, 0, REFUSE)
    program = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, table["arch"]), refuse, (LOAD, 0, 0, 0), (AT_LEAST, 0, 1, 0x40000000)]
    program.append(refuse)  # calls of another set of numbers (x32)
    for number in table["denied"]:
        program += [(EQUAL, 0, 1, number), refuse]
    for number, argument in table["open"].items():
        program += [(EQUAL, 0, 4, number), (LOAD, 0, 0, 16 + 8 * argument), (ANY_BIT, 0, 1, WRITES), refuse]
        program.append((RETURN, 0, 0, ALLOW))
    return [*program, (RETURN, 0, 0, ALLOW)]


def contain() -> str | None:
    """Give up everything but computing and reading; returns why that cannot be done here, or None."""
    table = TABLES.get(platform.machine())
    if sys.platform != "linux" or table is None:
        return f"no list of calls for {sys.platform} on {platform.machine()}"
    libc = ctypes.CDLL(None, use_errno=True)
    packed = b"".join(struct.pack("HBBI", *one) for one in call_filter(table))
    code = ctypes.create_string_buffer(packed, len(packed))
    head = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(packed) // 8, ctypes.addressof(code)))
    libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG: it ends with its parent
    # PR_SET_NO_NEW_PRIVS, then PR_SET_SECCOMP with a filter.
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(head), 0, 0):
        return f"the kernel takes no seccomp filter: {os.strerror(ctypes.get_errno())}"
    return None


DONE = b"\x06"
"""What this process says when it is ready for the next part."""


def main(seconds: int, megabytes: int, channel: int) -> None:
    """Run a program and its tests, part by part; what ends them early is said as `failed: ` and why."""
    read, write, leave = os.read, os.write, os._exit  # an answer may replace them in their module

    def part() -> bytes:
        """The next part: its length in eight bytes, and its bytes."""
        write(channel, DONE)
        wanted, got = 8, b""
        while len(got) < wanted:
            more = read(channel, wanted - len(got))
            if not more:
                leave(1)  # the caller is gone
            got += more
            if wanted == 8 == len(got):
                wanted += int.from_bytes(got, "big")
        return got[8:]

    for limit, value in (
        (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, megabytes * 2**20), (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 64), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NPROC, 0),
    ):  # fmt: skip
        resource.setrlimit(limit, (value, value))
    sys.argv[:] = ["answer.py"]
    obstacle = contain()
    if obstacle is not None:
        write(channel, f"uncontained: {obstacle}".encode())
        leave(1)
    names = {"__name__": "__main__"}
    try:
        for file in ("answer.py", "tests.py"):
            exec(compile(part().decode(), file, "exec"), names)
        said = part()
    except BaseException as error:  # SystemExit too: a program that leaves before its tests has not passed them
        said = f"failed: {type(error).__name__}: {error}"[:300].encode(errors="replace")
    write(channel, said)
    leave(0)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
