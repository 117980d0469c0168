"""Pooled features of whole splits, and what can be told from them without training: k nearest neighbours, and a
linear probe in closed form.

Shape letters: B batch, N samples, Q queries, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import ContractError
from training.data import Batch
from training.world import World

Way = Literal["knn", "linear"]
TEMPERATURE = 0.07
"""Votes weigh exp(cosine / this), as in DINO's protocol."""
_RIDGE = 1.0
_CHUNK = 1024
"""Queries compared at once: all of them would make a matrix of the two splits."""


@dataclass(frozen=True)
class Features:
    """One vector a labelled sample, of a whole split."""

    vectors_ND: NDArray[np.float32]
    labels: NDArray[np.int64]
    """[N], or [N, C] of several classes a sample."""

    def targets(self, classes: int) -> Tensor:
        """Return the labels as 0 and 1, float32 [N, C]."""
        labels = torch.from_numpy(self.labels)
        return labels.float() if labels.ndim == 2 else F.one_hot(labels, classes).float()


def collect(
    batches: Iterable[Batch],
    embed: Callable[[Batch], Tensor],
    usable: Callable[[Batch], Tensor],
    world: World,
) -> Features:
    """Embed the labelled samples of a pass on all ranks; every rank gets all; collective.

    Raises `ContractError` where none is labelled.
    """
    vectors, labels = [], []
    for batch in batches:
        # every rank embeds every batch, labelled or not: under ZeRO-3 the others would wait
        embedded, kept = embed(batch), usable(batch)
        vectors.append(embedded[kept.to(embedded.device)].float().cpu().numpy())
        labels.append(batch.labels_B[kept].numpy())
    mine = np.concatenate(vectors), np.concatenate(labels)
    both = [np.concatenate(parts) for parts in zip(*world.gather(mine), strict=True)]
    if not len(both[0]):
        raise ContractError(
            "no sample carries a label: there is nothing to learn from. Shard it with `labels`."
        )
    return Features(*both)


def vote(known: Features, queries_QD: NDArray[np.float32], classes: int, count: int) -> Tensor:
    """Let the `count` nearest known samples by cosine vote; returns scores [Q, C] that add up to the votes."""
    bank = F.normalize(torch.from_numpy(known.vectors_ND), dim=1)
    targets = known.targets(classes)
    scores = []
    for start in range(0, len(queries_QD), _CHUNK):
        part = F.normalize(torch.from_numpy(queries_QD[start : start + _CHUNK]), dim=1)
        near = (part @ bank.T).topk(min(count, len(bank)), dim=1)
        weights = torch.softmax(near.values / TEMPERATURE, dim=1)
        scores.append((weights[:, :, None] * targets[near.indices]).sum(1))
    return torch.cat(scores)


def regress(known: Features, queries_QD: NDArray[np.float32], classes: int) -> Tensor:
    """Return scores [Q, C] of ridge regression from standardised features to the classes: a linear probe without
    steps, rates or seeds.
    """
    vectors = torch.from_numpy(known.vectors_ND).double()
    mean, deviation = vectors.mean(0), vectors.std(0, correction=0).clamp(min=1e-6)
    x = (vectors - mean) / deviation
    targets = known.targets(classes).double()
    base = targets.mean(0)
    gram = x.T @ x + _RIDGE * len(x) ** 0.5 * torch.eye(x.shape[1], dtype=torch.float64)
    solved = torch.linalg.solve(gram, x.T @ (targets - base))
    asked = (torch.from_numpy(queries_QD).double() - mean) / deviation
    scores: Tensor = asked @ solved + base
    return scores.float()


def predict(way: Way, known: Features, queries_QD: NDArray[np.float32], classes: int, count: int) -> Tensor:
    """Return scores [Q, C] by neighbours or by the linear probe."""
    if way == "knn":
        return vote(known, queries_QD, classes, count)
    return regress(known, queries_QD, classes)
