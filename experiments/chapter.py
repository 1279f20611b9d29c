"""Run the experiments of the chapter (16 to 24): commands one after the other, resumable, results beside the README.

A folder's `run.py` lists its commands and the files to keep. Options: `--dry-run` prints what every sweep would run and
trains nothing; `--runs FOLDER` is where sweep folders lie (default: runs).
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

SWEEPS = ("sweep", "transfer")
SEEDS = ("--seeds", "0", "1", "2", "3", "4")
"""Five paired seeds see 4.4 points of exact match or 0.04 nats between two settings (power 80 %)."""


def run(file: str, commands: Sequence[Sequence[str]], keep: Mapping[str, str]) -> None:
    """Run the commands of the experiment whose `run.py` is `file`; `RUNS` in a word stands for the folder of its runs.

    `keep`: file under that folder -> its name beside the README. A file that is not there is an error.
    """
    parser = argparse.ArgumentParser(description=f"Experiment {Path(file).parent.name}")
    parser.add_argument("--dry-run", action="store_true", help="print what every sweep would run, and train nothing")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the sweep folders (default: runs)")
    arguments = parser.parse_args()
    here = Path(file).parent
    place = arguments.runs / here.name
    for words in commands:
        command = [word.replace("RUNS", str(place)).replace("HERE", str(here)) for word in words]
        if arguments.dry_run:
            if command[0] not in SWEEPS or "--confirm" in command:  # these read the results of the sweep before them
                print(f"then: jaxtune {' '.join(command)}", flush=True)
                continue
            command.append("--dry-run")
        print(f"jaxtune {' '.join(command)}", flush=True)
        done = subprocess.run([sys.executable, "-m", "jaxtune", *command], check=False)
        if done.returncode:
            sys.exit(done.returncode)
    if not arguments.dry_run:
        for source, name in keep.items():
            shutil.copyfile(place / source, here / name)
        subprocess.run([sys.executable, str(here.parent / "pictures.py")], check=True)
