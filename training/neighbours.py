"""Features of whole splits, and what can be told from them without training: k nearest neighbours of pooled ones, and a
linear probe in closed form, of pooled ones or of the cells of a map.

Both read features that are standardised by the known samples, as the probe of MAE reads them through a BatchNorm:
a transformer's features share a large mean, beside which cosines tell little apart.
Shape letters: B batch, N samples or cells, Q queries, D features, C classes, H W pixels, y x cells of a map.
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


@dataclass(frozen=True)
class Cells:
    """One vector a cell of the maps of a whole split, where a pixel of it is labelled."""

    vectors_ND: Vectors
    shares_NC: NDArray[np.float32]
    """Of the classes among a cell's labelled pixels, by their weights."""
    weights_N: NDArray[np.float32]
    """Mean weight of a cell's pixels, 0 for unlabelled ones."""

    @classmethod
    def of(cls, map_BDyx: Tensor, labels_BHW: Tensor, weights_C: Tensor) -> Cells:
        """Take the labelled cells of a batch; weights: of the classes' pixels."""
        known_BHW1 = (labels_BHW >= 0)[..., None]
        weighed = F.one_hot(labels_BHW.clamp(min=0), len(weights_C)) * weights_C * known_BHW1
        mean_BCyx = F.adaptive_avg_pool2d(weighed.permute(0, 3, 1, 2), map_BDyx.shape[-1])
        vectors_ND, mean_NC = _rows(map_BDyx), _rows(mean_BCyx)
        weights_N = mean_NC.sum(1)
        kept = weights_N > 0
        shares_NC = mean_NC[kept] / weights_N[kept, None]
        return cls(vectors_ND[kept].numpy(), shares_NC.numpy(), weights_N[kept].numpy())


def _rows(map_BDyx: Tensor) -> Tensor:
    return map_BDyx.permute(0, 2, 3, 1).flatten(0, 2)


def collect_cells(
    batches: Iterable[Batch], embed: Callable[[Batch], Tensor], weights_C: Tensor, world: World
) -> Cells:
    """Embed the labelled cells of a pass on all ranks; every rank gets all; collective.

    Raises `ContractError` where no pixel is labelled.
    """
    found = [Cells.of(embed(batch), batch.labels_B, weights_C) for batch in batches]
    mine = [(one.vectors_ND, one.shares_NC, one.weights_N) for one in found]
    shared = world.gather(tuple(np.concatenate(parts) for parts in zip(*mine, strict=True)))
    together = Cells(*(np.concatenate(parts) for parts in zip(*shared, strict=True)))
    _require_some(len(together.weights_N))
    return together


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
    _require_some(len(both[0]))
    return Features(*both)


def _require_some(labelled: int) -> None:
    if not labelled:
        raise ContractError(
            "no sample carries a label: there is nothing to learn from. Shard it with `labels`."
        )


def learn(way: Way, known: Features, classes: int, count: int) -> Predict:
    """Return what tells the scores [Q, C] of queries: by the `count` nearest of the known, or by ridge regression."""
    if way == "knn":
        return _votes(known, classes, count)
    return _regression(known.vectors_ND, known.targets(classes), torch.ones(len(known.labels)))


def learn_cells(known: Cells) -> Callable[[Tensor], Tensor]:
    """Return what tells the scores [B, C, y, x] of maps [B, D, y, x], by ridge regression.

    A map that tells the same of all pixels of a cell errs least, over the pixels, where it errs least from their shares.
    """
    regressed = _regression(
        known.vectors_ND, torch.from_numpy(known.shares_NC), torch.from_numpy(known.weights_N)
    )

    def predict(map_BDyx: Tensor) -> Tensor:
        B, _, y, x = map_BDyx.shape
        return regressed(_rows(map_BDyx).numpy()).view(B, y, x, -1).permute(0, 3, 1, 2)

    return predict


def _votes(known: Features, classes: int, count: int) -> Predict:
    """Let the nearest known samples by cosine vote; scores of a query add up to the votes."""
    standard, targets = _standard(known.vectors_ND), known.targets(classes)
    bank = F.normalize(standard(known.vectors_ND).float(), dim=1)

    def predict(queries_QD: Vectors) -> Tensor:
        scores = []
        for start in range(0, len(queries_QD), _CHUNK):
            part = F.normalize(standard(queries_QD[start : start + _CHUNK]).float(), dim=1)
            # few labels may be fewer than the neighbours that are asked for
            near = (part @ bank.T).topk(min(count, len(bank)), dim=1)
            weights = torch.softmax(near.values / TEMPERATURE, dim=1)
            scores.append((weights[:, :, None] * targets[near.indices]).sum(1))
        return torch.cat(scores)

    return predict


def _regression(vectors_ND: Vectors, targets_NC: Tensor, weights_N: Tensor) -> Predict:
    """Regress targets on features: a linear probe without steps, rates or seeds."""
    standard, weights_N1 = _standard(vectors_ND), (weights_N.double() / weights_N.sum())[:, None]
    x_ND, targets_NC = standard(vectors_ND), targets_NC.double()
    # centred by the weights: the offset is no coefficient, and is not drawn to 0
    x_mean, base = (weights_N1 * x_ND).sum(0), (weights_N1 * targets_NC).sum(0)
    x_ND = x_ND - x_mean
    ridge = _RIDGE * len(x_ND) ** -0.5 * torch.eye(x_ND.shape[1], dtype=torch.float64)
    # in float64: a product of features with themselves squares their condition number
    gram, moments = x_ND.T @ (weights_N1 * x_ND), x_ND.T @ (weights_N1 * (targets_NC - base))
    solved: Tensor = torch.linalg.solve(gram + ridge, moments)
    return lambda queries_QD: ((standard(queries_QD) - x_mean) @ solved + base).float()


def _standard(vectors_ND: Vectors) -> Predict:
    """Return what standardises each feature of queries by the known vectors, in float64."""
    vectors = torch.from_numpy(vectors_ND).double()
    mean, deviation = vectors.mean(0), vectors.std(0, correction=0).clamp(min=1e-6)
    return lambda queries_QD: (torch.from_numpy(queries_QD).double() - mean) / deviation
