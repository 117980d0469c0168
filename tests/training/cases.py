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
        # `@1 a.b=c` is for rank 1 alone
        mine = [
            w.removeprefix(f"@{world.rank} ")
            for w in words
            if not w.startswith("@") or w[1:].startswith(f"{world.rank} ")
        ]
        try:
            if entry not in ENTRIES:
                given = {"digest": "same", "model.py": "same"} | dict(word.split("=") for word in mine)
                world.require_same(entry, given)
                continue
            model, work = ENTRIES[entry]
            outcome: object = work(load(model, None, mine), world)  # type: ignore[operator]
        except PipelineError as error:
            outcome = f"{type(error).__name__}: {error}"
        if world.main:
            sys.stdout.write("\nCASE " + json.dumps(outcome) + "\n")
    world.close()


if __name__ == "__main__":
    main()
