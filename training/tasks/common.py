"""What several tasks share: heads on pooled features, and refusals of sets with other labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.console import table
from pipeline.contract import DataContract, LabelKind
from pipeline.errors import ContractError


class PooledHead(nn.Module):
    """Global average pool, LayerNorm, Linear: the last feature map to scores [B, class]."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.linear = nn.Linear(width, classes)
        # small, as MAE's probe begins: at first all classes are about equally likely
        nn.init.trunc_normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return class scores [B, class]."""
        scores: Tensor = self.linear(self.norm(pool(maps)))
        return scores


def pool(maps: Sequence[Tensor]) -> Tensor:
    """Average the last map [B, T, D, y, x] to one vector a sample, [B, D]."""
    return maps[-1].mean((1, 3, 4))


def require_labels(contract: DataContract, kind: LabelKind, means: str) -> tuple[str, ...]:
    """Return the classes of a set; raises `ContractError` where it has none, or labels of another kind than `means`
    tells.
    """
    if len(contract.classes) < 2:
        raise ContractError(
            "the shard set has no class labels: shard it with `labels.classes`, or choose another task."
        )
    if contract.label_kind != kind:
        raise ContractError(
            f"the shard set has labels of kind `{contract.label_kind}`, not {means}: shard it with"
            f" `labels.kind={kind}`, or choose another task."
        )
    return contract.classes


def require_two(classes: tuple[str, ...], what: str) -> tuple[str, ...]:
    """Return the classes where they are two, the second being `what`; raises `ContractError` for more."""
    if len(classes) != 2:
        raise ContractError(
            f"the shard set has {len(classes)} classes ({', '.join(classes)}), and this task wants two, the second"
            f" being {what}: set task=segmentation, or shard the set with two `labels.classes`."
        )
    return classes


def matrix(classes: Sequence[str], counted: NDArray[np.int64]) -> str:
    """Return a confusion matrix as a table: true classes in rows."""
    rows = [(name, *(str(n) for n in line)) for name, line in zip(classes, counted, strict=True)]
    return table(("true \\ predicted", *classes), rows)
