"""A stand-in for training/pretrain.py that keeps its promises to the batch script and trains nothing.

    standin.py [--run-folder] [--cells] [--cell N] [CONFIG] [folder=DIR] [do=finish|fail|wait|vanish]

Without `folder` it is STANDIN_FOLDER; cells of a study and its report have folders of their own in it. Each rank leaves `rank-<RANK>-life-<N>.json` with what it was told. `wait` waits for USR1 or TERM in the first life and
finishes in the second.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

TOLD = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "SLURMD_NODENAME",
    "OMP_NUM_THREADS",
)


def wait_for_others(folder: Path, name: str) -> None:
    """Return when every rank was here, so that none ends while another still saves."""
    (folder / f"{name}-{os.environ['RANK']}").touch()
    while len(list(folder.glob(f"{name}-*"))) < int(os.environ["WORLD_SIZE"]):
        time.sleep(0.05)


def main(words: list[str]) -> int:
    values = dict(word.split("=", 1) for word in words if "=" in word)
    folder = Path(values.get("folder") or os.environ["STANDIN_FOLDER"]).resolve()
    if "--run-folder" in words:
        print(folder)
        return 0
    if "--cells" in words:
        print(3)
        return 0
    if "--cell" in words:
        folder /= words[words.index("--cell") + 1]
    if "--report" in words:
        folder, values = folder / "report", {}
    received: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _: received.append(number))
    signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    life = int(os.environ.get("SLURM_RESTART_COUNT", 0))
    told = {name: os.environ.get(name) for name in TOLD} | {"words": words, "cwd": str(Path.cwd())}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"rank-{told['RANK']}-life-{life}.json").write_text(json.dumps(told))
    if values.get("do") == "fail":
        return 7
    if values.get("do") == "vanish":
        return 0
    if values.get("do") == "wait" and life == 0:
        while not received:
            time.sleep(0.05)
        time.sleep(0.3)  # the save; a second signal would be seen in it
        (folder / f"signals-{told['RANK']}.json").write_text(json.dumps(received))
        (folder / "INTERRUPTED").touch()
        wait_for_others(folder, "saved")
        return 85
    (folder / "COMPLETE").touch()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
