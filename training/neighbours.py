"""Pooled features of whole splits, and what can be told from them without training: k nearest neighbours, and a
linear probe in closed form.

Both read features that are standardised by the known samples, as the probe of MAE reads them through a BatchNorm:
a transformer's features share a large mean, beside which cosines tell little apart.
Shape letters: B batch, N samples, Q queries, D features, C classes.
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

Vectors = NDArray[np.float32]
Predict = Callable[[Vectors], Tensor]
"""Vectors [Q, D] to numbers of each."""
Way = Literal["knn", "ridge"]
TEMPERATURE = 0.07
"""Votes weigh exp(cosine / this), as in DINO's protocol."""
_RIDGE = 1.0
_CHUNK = 1024
"""Queries compared at once: all of them would make a matrix of the two splits."""


@dataclass(frozen=True)
class Features:
    """One vector a labelled sample, of a whole split."""

    vectors_ND: Vectors
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


def learn(way: Way, known: Features, classes: int, count: int) -> Predict:
    """Return what tells the scores [Q, C] of queries: by the `count` nearest of the known, or by ridge regression."""
    if way == "knn":
        return _votes(known, classes, count)
    return _regression(known, classes)


def _votes(known: Features, classes: int, count: int) -> Predict:
    """Let the nearest known samples by cosine vote; scores of a query add up to the votes."""
    standard, targets = _standard(known), known.targets(classes)
    bank = F.normalize(standard(known.vectors_ND).float(), dim=1)

    def predict(queries_QD: Vectors) -> Tensor:
        scores = []
        for start in range(0, len(queries_QD), _CHUNK):
            part = F.normalize(standard(queries_QD[start : start + _CHUNK]).float(), dim=1)
            near = (part @ bank.T).topk(min(count, len(bank)), dim=1)
            weights = torch.softmax(near.values / TEMPERATURE, dim=1)
            scores.append((weights[:, :, None] * targets[near.indices]).sum(1))
        return torch.cat(scores)

    return predict


def _regression(known: Features, classes: int) -> Predict:
    """Regress the classes on the features, as 0 and 1: a linear probe without steps, rates or seeds."""
    standard, targets = _standard(known), known.targets(classes).double()
    x, base = standard(known.vectors_ND), targets.mean(0)
    gram = x.T @ x + _RIDGE * len(x) ** 0.5 * torch.eye(x.shape[1], dtype=torch.float64)
    solved: Tensor = torch.linalg.solve(gram, x.T @ (targets - base))
    return lambda queries_QD: (standard(queries_QD) @ solved + base).float()


def _standard(known: Features) -> Predict:
    """Return what standardises each feature of vectors by the known ones, in float64."""
    vectors = torch.from_numpy(known.vectors_ND).double()
    mean, deviation = vectors.mean(0), vectors.std(0, correction=0).clamp(min=1e-6)
    return lambda queries_QD: (torch.from_numpy(queries_QD).double() - mean) / deviation
