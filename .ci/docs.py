"""Write the page of docs/ that is made from the code: `make docs`.

docs/configuration.md lists every key of every configuration, from the models that read them.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from pipeline.reference import markdown
from preprocessing.settings import ShardConfig
from training.finetune import FinetuneConfig
from training.predict import PredictConfig
from training.pretrain import PretrainConfig
from training.runs import RunConfig

PAGE = "docs/configuration.md"
HEAD = """# Configuration

Every key of every configuration, written by `make docs` from the models that read them; the same list, for one entry,
is printed by its `--keys`. A YAML file gives values, words of the command line win over it
(`python training/pretrain.py CONFIG model.size=small batch.size=64`). A default of `...` is none: the key must be
given. `a[].b` is the key `b` of the entries of list `a`. An unknown key, a duplicate key or a value of another type is
an error that names file and key.

Paths are relative to the working directory, and `~` is expanded."""
SECTIONS = {
    "Sharding": ("`python preprocessing/shard.py`, YAML in `configs/shard/`.", ShardConfig, None),
    "Every training": ("Keys that pretraining and fine-tuning share.", RunConfig, None),
    "Pretraining": (
        "`python training/pretrain.py`, YAML in `configs/pretrain/`: the keys of every training, and these.",
        PretrainConfig,
        RunConfig,
    ),
    "Fine-tuning": (
        "`python training/finetune.py`, YAML in `configs/finetune/`: the keys of every training, and these.",
        FinetuneConfig,
        RunConfig,
    ),
    "Prediction": ("`python training/predict.py`, YAML in `configs/predict/`.", PredictConfig, None),
}


def configuration() -> str:
    """Return the text of the page."""
    parts = [
        f"## {title}\n{said}\n\n{markdown(model, but)}" for title, (said, model, but) in SECTIONS.items()
    ]
    return "\n\n".join([HEAD, *parts]) + "\n"


if __name__ == "__main__":
    (ROOT / PAGE).write_text(configuration(), encoding="utf-8")
    print(f"docs: {PAGE}")
