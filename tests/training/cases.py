"""Run several trainings in one process group; the tests start this file as real processes.

usage: cases.py CASES.json    a list of [entry, [words]]; RANK etc. by environment; prints one json line a case
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipeline.config import load
from pipeline.errors import PipelineError
from training import finetune, pretrain
from training.world import World

ENTRIES = {
    "pretrain": (pretrain.PretrainConfig, pretrain.pretrain),
    "finetune": (finetune.FinetuneConfig, finetune.finetune),
}


def main() -> None:
    """Run the cases one after the other; a refusal is a result too."""
    world = World.from_env()
    for entry, words in json.loads(Path(sys.argv[1]).read_text()):
        model, work = ENTRIES[entry]
        try:
            outcome: object = work(load(model, None, words), world)  # type: ignore[operator]
        except PipelineError as error:
            outcome = f"{type(error).__name__}: {error}"
        if world.main:
            sys.stdout.write("\nCASE " + json.dumps(outcome) + "\n")
    world.close()


if __name__ == "__main__":
    main()
