"""Attack runs, files and inputs, and count what was lost: kills, damages, hostile inputs, faults of resources.

    python experiments/25-nothing-lost/campaign.py kills damages inputs resources table

Every case is a line of results.jsonl beside this file; a campaign that is started again goes on behind the last one
(`--most N` tries so many and stops). `table` prints tried, right and lost. Ends with code 1 if anything was lost.
"""

import argparse
import importlib
import pathlib
import sys
import tempfile

import shared

AREAS = ("kills", "damages", "inputs", "resources")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("areas", nargs="+", choices=[*AREAS, "table"])
    parser.add_argument("--most", type=int, default=1 << 30, help="cases to try in this call")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=pathlib.Path, help="work here, and keep it (default: a temporary folder)")
    parser.add_argument("--log", type=pathlib.Path, default=pathlib.Path(__file__).parent / "results.jsonl")
    options = parser.parse_args()
    log = shared.Log(options.log, options.most)
    with tempfile.TemporaryDirectory() as temporary:
        log.folder = folder = (options.folder or pathlib.Path(temporary)).resolve()
        for area in options.areas:
            if area != "table":
                importlib.import_module(area).campaign(folder / area, log, options.seed)
    print(table(log))
    return int(any(not case["right"] for case in log.cases.values()))


def table(log: shared.Log) -> str:
    """Tried, right and lost by area and kind, as Markdown."""
    rows = ["| area | kind | tried | right | lost |", "|---|---|---|---|---|"]
    for area in AREAS:
        cases = [case for case in log.cases.values() if case["area"] == area]
        kinds = list(dict.fromkeys(case["kind"] for case in cases))
        for kind in [*kinds, "all"]:
            of_kind = [case for case in cases if kind in (case["kind"], "all")]
            tried = sum(case["tried"] for case in of_kind)
            right = sum(case["tried"] for case in of_kind if case["right"])
            name = "**all**" if kind == "all" else kind
            rows.append(f"| {area} | {name} | {tried} | {right} | {tried - right} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
