"""Write what is made from the code in docs/: `make docs`.

docs/configuration.md lists every key of every configuration, from the models that read them. In other pages the part
between `<!-- NAME: made by make docs -->` and `<!-- end -->` is replaced.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import torch

from pipeline.reference import markdown
from preprocessing.settings import ShardConfig
from training.architecture import SIZES, ModelConfig
from training.budget import USUAL_SHARE, state_bytes
from training.finetune import FinetuneConfig
from training.flops import model_flops
from training.masking import MaskingConfig, counts
from training.model import SpatialSpectralMAE, count_parameters
from training.names import METRICS
from training.predict import PredictConfig
from training.pretrain import PretrainConfig
from training.runs import RunConfig
from training.study import StudyConfig
from training.tokens import Layout

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
    "Study": (
        "`python training/study.py`, YAML in `configs/ablation/`: rows that differ, several seeds each.",
        StudyConfig,
        None,
    ),
    "Prediction": ("`python training/predict.py`, YAML in `configs/predict/`.", PredictConfig, None),
}


def configuration() -> str:
    """Return the text of the page."""
    parts = [
        f"## {title}\n{said}\n\n{markdown(model, but)}" for title, (said, model, but) in SECTIONS.items()
    ]
    return "\n\n".join([HEAD, *parts]) + "\n"


def metrics() -> str:
    """Return the table of metrics."""
    return _table(("metric", "says"), [(f"`{name}`", said) for name, said in METRICS.items()])


def sizes() -> str:
    """Return what each model size takes: 12 bands, 8 px cubes, 90 % masked, bf16."""
    rows = []
    for name, size in SIZES.items():
        parameters = parameters_of(name)
        states = (
            state_bytes(parameters, parameters, stage, ranks, "bf16")
            for stage, ranks in ((1, 1), (1, 8), (3, 8), (1, 64), (3, 64))
        )
        rows.append(
            (
                f"`{name}`",
                f"{size.width}/{size.depth}/{size.heads}",
                f"{parameters / 1e6:.1f}",
                *(f"{operations(name, side_px) / 1e9:.3g}" for side_px in (96, 128)),
                *(f"{value / 1e9:.2f}" for value in states),
                f"{12 * parameters / 1e9:.2f}",
            )
        )
    return _table(
        (
            "`model.size`", "width/depth/heads", "M parameters", "GFLOP an image, 96 px", "128 px",
            "GB ZeRO 1, alone", "of 8", "ZeRO 3, of 8", "ZeRO 1, of 64", "ZeRO 3, of 64", "GB a checkpoint",
        ),
        rows,
    )  # fmt: skip


# what docs/scaling.md says it assumes
GPU_FLOPS, SHARE = 989e12, USUAL_SHARE
SAMPLE_BYTES, CORE_SAMPLES_PER_S, LINK_BYTES_PER_S = 150e3, 3000, 50e9


def scaling() -> str:
    """Return what a GPU eats, what a rank sends in a step, and what a checkpoint takes, by model size."""
    rows = []
    for name in ("base", "large", "huge"):
        images_per_s = GPU_FLOPS * SHARE / operations(name, 96)
        gb = 2 * parameters_of(name) / 1e9
        rows.append(
            (
                f"`{name}`",
                f"{images_per_s:.0f}",
                f"{images_per_s * SAMPLE_BYTES / 1e6:.0f}",
                f"{images_per_s / CORE_SAMPLES_PER_S:.1f}",
                f"{2 * gb:.2f}",
                f"{3 * gb:.2f}",
                f"{2 * gb * 1e9 / LINK_BYTES_PER_S * images_per_s:.0f}",
                f"{6 * gb:.2f}",
            )
        )
    head = (
        "`model.size`", "images/s a GPU", "MB/s a GPU", "loader cores a GPU", "GB a rank sends, ZeRO 0 to 2", "ZeRO 3",
        "images a GPU and step where sending takes as long as computing", "GB a checkpoint",
    )  # fmt: skip
    return _table(head, rows)


def parameters_of(size: str) -> int:
    """Return the parameters of a size, by making it without memory."""
    with torch.device("meta"):
        model = SpatialSpectralMAE(ModelConfig(size=size), {"sentinel2": Layout.even(12, 96)})
    return count_parameters(model)


def operations(size: str, side_px: int) -> int:
    """Return the operations of a training step on one image."""
    layout = Layout.even(12, side_px)
    return model_flops(ModelConfig(size=size), layout, *counts(layout.tokens, MaskingConfig().ratio)).training


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *rows))


PARTS: dict[str, dict[str, Callable[[], str]]] = {
    "docs/mlflow.md": {"metrics": metrics},
    "docs/sizes.md": {"sizes": sizes},
    "docs/scaling.md": {"scaling": scaling},
}


def with_parts(text: str, parts: dict[str, Callable[[], str]]) -> str:
    """Return a page's text with its made parts as the code says them now."""
    for name, make in parts.items():
        head = f"<!-- {name}: made by make docs -->"
        pattern = re.compile(rf"^{re.escape(head)}$.*?^<!-- end -->$", flags=re.DOTALL | re.MULTILINE)
        made = f"{head}\n{make()}\n<!-- end -->"
        text, count = pattern.subn(lambda _, made=made: made, text)
        if count != 1:
            raise ValueError(f"a page has {count} parts called {name}; it must have one")
    return text


if __name__ == "__main__":
    (ROOT / PAGE).write_text(configuration(), encoding="utf-8")
    for page, parts in PARTS.items():
        path = ROOT / page
        path.write_text(with_parts(path.read_text(encoding="utf-8"), parts), encoding="utf-8")
    print(f"docs: {PAGE}, and parts of {', '.join(PARTS)}")
