"""Does a killed run end with the bits of an undisturbed one? One case for each way of training.

    python benchmarks/verify_resume.py                             # ten kills each
    python benchmarks/verify_resume.py --case digits --kills 100

Prints a JSON object for each case, as `graftwerk verify-resume --json` does, with the seconds it
took. The recipes are shortened: what is verified is resuming, not accuracy.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time

SHORT = ["schedule.warmup_epochs=0", "evaluate.every=1000", "data.workers=0"]
CASES = {
    "digits": ["digits", "steps=60", "save=5 steps", "ema.decay=0.9", "batch.micro=32"],
    "spark_digits": ["spark_digits", "steps=30", "save=3 steps"],
    "gossip": [
        "digits",
        "sync=gossip",
        "processes=4",
        "model=test_resnet",
        "steps=40",
        "save=4 steps",
    ],
    "dst": [
        "digits",
        "sparsity=dst",
        "sparsity.density=0.2",
        "sparsity.every=4",
        "steps=60",
        "save=5 steps",
    ],
    "incubate_digits": [
        "incubate_digits",
        "--run=module_*",
        "steps=4",
        "module_*.steps=30",
        "save=3 steps",
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", choices=CASES, action="append", help="default: all")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    options = parser.parse_args()
    for name in options.case or CASES:
        print(json.dumps(verified(name, options.kills, options.seed)), flush=True)


def verified(name: str, kills: int, seed: int) -> dict[str, object]:
    words = [*CASES[name], *SHORT, f"--kills={kills}", f"--seed={seed}", "--json"]
    began = time.monotonic()
    command = [sys.executable, "-m", "graftwerk", "verify-resume", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    found = json.loads(done.stdout) if done.stdout else {"proven": False}
    return {"case": name, "seconds": round(time.monotonic() - began), **found}


if __name__ == "__main__":
    main()
