# SPDX-License-Identifier: Apache-2.0
"""The lifting experiment of docs/lift.md: every model and seed, at equal epochs and at equal CPU time.

    python bench/lift_experiment.py --data mocap.npz --out build/lift

Trainings run side by side in processes of one thread at the lowest priority. Stopped, it goes on where it was: the
same command again. It writes bench/results/lift.json, and the predictions behind it into --out.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flexor.bench.machine import describe

FLEXOR = [sys.executable, "-m", "flexor.cli.main", "lift"]
RESULT = Path(__file__).with_name("results") / "lift.json"


def main() -> None:
    options = parse()
    schedules = {"equal_epochs": [], "equal_cpu_time": ["--seconds", str(options.seconds)]}
    jobs = [
        (schedule, model, seed)
        for schedule in schedules
        for seed in options.seeds.split(",")
        for model in options.models.split(",")
    ]
    fixed = ["--data", options.data, "--epochs", str(options.epochs), "--poses", str(options.poses)]
    fixed += ["--batch", str(options.batch)]

    def train(job: tuple[str, str, str]) -> str:
        schedule, model, seed = job
        folder = options.out / schedule
        command = [*FLEXOR, "train", *fixed, "--models", model, "--seeds", seed, *schedules[schedule]]
        command += ["--out", str(folder), "--threads", "1", "--no-evaluate"]
        start = time.monotonic()
        run(command, folder / f"{model.replace(':', '-')}-seed{seed}.log")
        return f"{schedule}: {model}, seed {seed}: {time.monotonic() - start:.0f} s"

    with ThreadPoolExecutor(options.jobs) as pool:
        try:
            for number, line in enumerate(pool.map(train, jobs), 1):
                print(f"[{number}/{len(jobs)}] {line}", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise

    found = {"machine": describe()}
    for schedule in schedules:
        folder = options.out / schedule
        files = {name: folder / f"{schedule}.{name}" for name in ("json", "npz")}
        command = [*FLEXOR, "eval", str(folder), "--json", str(files["json"]), "--predictions", str(files["npz"])]
        run([*command, "--pictures", str(folder)], folder / "eval.log")
        found[schedule] = json.loads(files["json"].read_text())
    part = RESULT.with_suffix(".part")
    part.write_text(json.dumps(found, indent=1) + "\n")
    os.replace(part, RESULT)
    print(RESULT)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="as for flexor lift train")
    parser.add_argument("--out", type=Path, default=Path("build/lift"), help="folder for checkpoints and predictions")
    parser.add_argument("--models", default="dgridconv,gridconv,martinez,gcn")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--poses", type=int, default=5400, help="an epoch, at equal epochs")
    parser.add_argument("--batch", type=int, default=64, help="poses a step")
    parser.add_argument("--seconds", type=float, default=200, help="CPU seconds a training, at equal CPU time")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trainings side by side")
    return parser.parse_args()


def run(command: list[str], log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        done = subprocess.run(command, stdout=file, stderr=file, preexec_fn=lambda: os.nice(19), check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}, see {log}")


if __name__ == "__main__":
    main()
