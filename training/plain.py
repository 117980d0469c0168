"""The plain baselines: logistic regression and random forest on statistics of the bands, with scikit-learn.

Tiles are told by mean and deviation of each band over their measured pixels; pixels by their own values and by mean
and deviation around them; pairs by how these differ. Index statistics may be added.
Shape letters: B batch, C bands, H W pixels, F statistics, N rows, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.contract import DataContract
from pipeline.errors import ContractError, MissingPackageError
from pipeline.keys import hash_text
from pipeline.sample import NODATA
from training.data import Batch

Kind = Literal["logistic", "forest"]
Rows = NDArray[np.float32]
AROUND_PX = 5
"""Side of the neighbourhood of a pixel."""
PIXELS_EACH = 256
"""Pixels of an image to learn from: neighbours are much alike."""
TREES = 200


@dataclass(frozen=True)
class Statistics:
    """Which statistics are taken of images [B, C, H, W]."""

    contract: DataContract
    bands: tuple[str, ...]
    """Of the images, in order."""
    indices: bool = False
    """Whether to add those of the set's indices; ones whose bands are not there are left out."""

    def tiles(self, batch: Batch) -> Rows:
        """Return mean and deviation of each layer over the measured pixels of each tile, [B, F]."""
        layers, seen = self._layers(batch.image_BCHW)
        count = seen.sum((2, 3)).clamp(min=1)
        mean = (layers * seen).sum((2, 3)) / count
        squares = ((layers - mean[..., None, None]) ** 2 * seen).sum((2, 3)) / count
        return torch.cat([mean, squares.sqrt()], 1).numpy()

    def pixels(self, batch: Batch) -> Rows:
        """Return each pixel's values, mean and deviation around it, [B, F, H, W]; of pairs the absolute differences."""
        here = self._around(batch.image_BCHW)
        if batch.after_BCHW is not None:
            here = (self._around(batch.after_BCHW) - here).abs()
        return here.numpy()

    def _around(self, image_BCHW: Tensor) -> Tensor:
        layers, seen = self._layers(image_BCHW)
        # padding counts as unmeasured above and below: quotients at the edge stay right
        share = F.avg_pool2d(seen, AROUND_PX, 1, AROUND_PX // 2).clamp(min=1e-6)
        mean = F.avg_pool2d(layers * seen, AROUND_PX, 1, AROUND_PX // 2) / share
        square = F.avg_pool2d(layers**2 * seen, AROUND_PX, 1, AROUND_PX // 2) / share
        # rounding can leave a variance just below 0, whose root is NaN
        return torch.cat([layers, mean, (square - mean**2).clamp(min=0).sqrt()], 1)

    def _layers(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return reflectance, with indices where asked for, and where it was measured, 0 or 1; 0 elsewhere."""
        measured = (image_BCHW != NODATA).all(1, keepdim=True).float()
        layers = image_BCHW.float() * self.contract.scale * measured
        if self.indices:
            layers = torch.cat([layers, *(layers.new_tensor(i)[:, None] for i in self._indices(layers))], 1)
        return layers, measured

    def _indices(self, layers: Tensor) -> list[NDArray[np.float32]]:
        of_band = dict(zip(self.bands, layers.numpy().swapaxes(0, 1), strict=False))
        wanted = {name: self.contract.index_bands[name] for name in self.contract.indices}
        there = {name: bands for name, bands in wanted.items() if set(bands) <= of_band.keys()}
        return [self.contract.index(n)(*(of_band[b] for b in bands)) for n, bands in there.items()]


def some_pixels(rows_BFHW: Rows, batch: Batch, seed: int) -> tuple[Rows, NDArray[np.int64]]:
    """Return the statistics [N, F] and classes [N] of some labelled pixels of each image, drawn by its key."""
    found = []
    for rows, labels, key in zip(rows_BFHW, batch.labels_B.numpy(), batch.keys, strict=True):
        known = np.flatnonzero(labels >= 0)
        # by the sample's key: the same pixels however ranks share the samples
        rng = np.random.default_rng(hash_text("pixels", seed, key))
        chosen = rng.choice(known, min(PIXELS_EACH, known.size), replace=False)
        found.append((rows.reshape(len(rows), -1).T[chosen], labels.ravel()[chosen]))
    vectors, classes = zip(*found, strict=True)
    return np.concatenate(vectors), np.concatenate(classes)


class Plain:
    """A classifier of scikit-learn, of rows of statistics."""

    def __init__(self, kind: Kind, seed: int, weights: Sequence[float] | None = None) -> None:
        """weights: of the classes; None weighs rows alike. Raises `MissingPackageError` without scikit-learn."""
        by_class = None if weights is None else dict(enumerate(weights))
        self._model = _make(kind, seed, by_class)
        self._models: list[Any] = []
        self._several = False

    def fit(self, vectors_NF: Rows, labels: NDArray[np.int64]) -> None:
        """Learn from rows and their classes, [N] or, several a row, [N, K].

        Raises `ContractError` where there are none.
        """
        if not len(labels):
            raise ContractError(
                "no sample carries a label: there is nothing to learn from. Shard it with `labels`."
            )
        # one model a class where a row has several; a class with one value in all rows needs none
        columns = labels.T if labels.ndim == 2 else labels[None]
        self._several = labels.ndim == 2
        self._models = [_fitted(self._model, vectors_NF, column) for column in columns]

    def scores(self, vectors_NF: Rows, classes: int) -> Tensor:
        """Return the probability of each class, [N, K]."""
        if self._several:
            return torch.from_numpy(np.stack([_spread(m, vectors_NF, 2)[:, 1] for m in self._models], 1))
        return torch.from_numpy(_spread(self._models[0], vectors_NF, classes))


def _make(kind: Kind, seed: int, weights: dict[int, float] | None) -> Any:
    try:
        from sklearn.ensemble import RandomForestClassifier
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise MissingPackageError(
            f"mode={kind} needs scikit-learn; install it with `pip install -c constraints.txt -e '.[baselines]'`."
        ) from error
    if kind == "forest":
        return RandomForestClassifier(TREES, random_state=seed, class_weight=weights, n_jobs=-1)
    # scaled first: the penalty would press on dark bands, which need large coefficients, most
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, class_weight=weights))


def _fitted(model: Any, vectors_NF: Rows, column: NDArray[np.int64]) -> Any:
    from sklearn.base import clone
    from sklearn.dummy import DummyClassifier

    # logistic regression refuses rows of one class, which few labels of many classes give
    one = len(np.unique(column)) == 1
    return (DummyClassifier(strategy="most_frequent") if one else clone(model)).fit(vectors_NF, column)


def _spread(model: Any, vectors_NF: Rows, classes: int) -> NDArray[np.float32]:
    """Return probabilities [N, classes], 0 for a class that was not learned."""
    found = np.zeros((len(vectors_NF), classes), np.float32)
    found[:, model.classes_] = model.predict_proba(vectors_NF)
    return found
