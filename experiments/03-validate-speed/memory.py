"""Peak memory and time of `jaxtune validate` on a large file of distinct chats.

Run:  python experiments/03-validate-speed/memory.py [--megabytes 1000]

The chats are random words (no two alike), about 1,400 bytes each; the file is written to a temporary folder.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

INSPECT = """
import resource, sys, time
from jaxtune.validate.validation import validate_files
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.process_time()
report = validate_files(sys.argv[1:])
print(base // 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, time.process_time() - start,
      report.records, sum(report.counts.values()))
"""


def write_chats(path: pathlib.Path, megabytes: int) -> None:
    rng = np.random.default_rng(0)
    vocabulary = np.array(["".join(rng.choice(list("etaoinshrdlu"), rng.integers(2, 10))) for _ in range(20_000)])
    i = 0
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < megabytes * 1_000_000:
            words = vocabulary[rng.integers(0, len(vocabulary), 200_000)].tolist()
            for start in range(0, len(words), 200):
                turns = [
                    {"role": role, "content": " ".join(words[start + k * 50 : start + k * 50 + 50])}
                    for k, role in enumerate(("user", "assistant") * 2)
                ]
                file.write(json.dumps({"id": i, "messages": turns}) + "\n")
                i += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=1000)
    megabytes = parser.parse_args().megabytes
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "chats.jsonl"
        write_chats(path, megabytes)
        size = path.stat().st_size / 1e6
        start = time.monotonic()
        out = subprocess.run([sys.executable, "-c", INSPECT, str(path)], check=True, capture_output=True, text=True)
        wall = time.monotonic() - start
    base, peak, cpu, records, problems = map(float, out.stdout.split())
    print(f"{size:.0f} MB, {records:,.0f} records, {problems:,.0f} problems")
    print(f"{cpu:.1f} CPU-seconds ({size / cpu:.1f} MB each), {wall:.1f} s in all")
    print(f"peak memory {peak:.0f} MiB, of which {base:.0f} MiB before the first byte was read")


if __name__ == "__main__":
    main()
