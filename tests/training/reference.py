"""The model and its loss written a second time: one image, one cube, one head after the other, in float64.

It shares nothing with the package but names of weights, so that a mistake has to be made twice to pass. Positions are
(group, row, column); nothing is batched, gathered, packed or fused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Cube = tuple[int, int, int]
"""Spectral group, row and column of the patch."""


@dataclass(frozen=True)
class Reference:
    """A model as plain numbers."""

    weights: Mapping[str, Tensor]
    """float64, by the names of the fast model's state."""
    sensor: str
    groups: tuple[tuple[int, ...], ...]
    """Channels of each spectral group."""
    waves_nm: tuple[tuple[float, float], ...]
    """Centre and width of each channel."""
    side: int
    patch_px: int
    heads: int
    decoder_heads: int
    positions: str = "learnable"
    spectral_position: str = "table"
    shared: bool = True
    cross: bool = False
    target: str = "unit"

    def get(self, name: str) -> Tensor:
        return self.weights[name]

    def count(self, stem: str) -> int:
        """How many numbered modules there are below a name."""
        return len({n[len(stem) + 1 :].split(".")[0] for n in self.weights if n.startswith(f"{stem}.")})

    # cubes

    def token(self, number: int) -> Cube:
        group, place = divmod(number, self.side**2)
        return group, *divmod(place, self.side)

    def cube(self, image: Tensor, cube: Cube) -> list[Tensor]:
        """The voxels of a cube, band by band."""
        group, row, col = cube
        p = self.patch_px
        return [
            image[c, row * p : (row + 1) * p, col * p : (col + 1) * p].reshape(-1) for c in self.groups[group]
        ]

    def projection(self, stem: str, group: int) -> str:
        return f"{stem}.shared" if self.shared else f"{stem}.{self.sensor}.{group}"

    # positions

    def position(self, half: str, cube: Cube, width: int) -> Tensor:
        group, row, col = cube
        stem = f"{half}.positions"
        place = row * self.side + col
        if self.positions == "vanilla":
            return self.get(f"{stem}.joint.{self.sensor}.weight")[group * self.side**2 + place]
        code = width // 4 if width < 512 else 128 * -(-width // 512)
        zeros = torch.zeros(code, dtype=torch.float64)
        if self.positions == "sincos":
            half_width = (width - code) // 2
            spatial = torch.cat([waves(col, half_width), waves(row, half_width), zeros])
        else:
            spatial = self.get(f"{stem}.spatial.{self.side}.weight")[place]
        if self.spectral_position == "wavelength":
            parts = [self.by_wave(stem, *self.waves_nm[c]) for c in self.groups[group]]
            return spatial + sum(parts) / len(parts)
        if self.positions == "sincos":
            return spatial + torch.cat([torch.zeros(width - code, dtype=torch.float64), waves(group, code)])
        return spatial + self.get(f"{stem}.spectral.{self.sensor}.weight")[group]

    def by_wave(self, stem: str, centre_nm: float, width_nm: float) -> Tensor:
        features = []
        for value, low, high, octaves in ((centre_nm, 400, 2500, 5), (width_nm, 10, 400, 3)):
            within = math.log(value / low) / math.log(high / low)
            angles = [within * math.pi * 2**k for k in range(octaves)]
            features += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        x = torch.tensor(features, dtype=torch.float64)
        return self.linear(f"{stem}.by_wave.2", gelu(self.linear(f"{stem}.by_wave.0", x)))

    # layers

    def linear(self, name: str, x: Tensor) -> Tensor:
        return self.get(f"{name}.weight") @ x + self.get(f"{name}.bias")

    def norm(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean()
        return centred / (centred.pow(2).mean() + 1e-6).sqrt() * self.get(f"{name}.weight") + self.get(
            f"{name}.bias"
        )

    def attend(
        self, name: str, queries: list[Tensor], keys: list[Tensor], values: list[Tensor], heads: int
    ) -> list[Tensor]:
        width = len(queries[0]) // heads
        out = []
        for query in queries:
            parts = []
            for h in range(heads):
                part = slice(h * width, (h + 1) * width)
                weights = (torch.stack(keys)[:, part] @ query[part] / math.sqrt(width)).exp()
                parts.append(weights / weights.sum() @ torch.stack(values)[:, part])
            out.append(self.linear(f"{name}.project", torch.cat(parts)))
        return out

    def perceptron(self, name: str, x: Tensor) -> Tensor:
        y = gelu(self.linear(f"{name}.mlp.0", self.norm(f"{name}.norm_2", x)))
        return x + self.linear(f"{name}.mlp.2", y)

    def self_block(self, name: str, tokens: list[Tensor], heads: int) -> list[Tensor]:
        width = len(tokens[0])
        fused = [self.linear(f"{name}.attention.qkv", self.norm(f"{name}.norm_1", x)) for x in tokens]
        queries, keys, values = ([f[i * width : (i + 1) * width] for f in fused] for i in range(3))
        seen = self.attend(f"{name}.attention", queries, keys, values, heads)
        return [self.perceptron(name, x + y) for x, y in zip(tokens, seen, strict=True)]

    def cross_block(self, name: str, tokens: list[Tensor], context: list[Tensor], heads: int) -> list[Tensor]:
        width = len(tokens[0])
        queries = [self.linear(f"{name}.attention.query", self.norm(f"{name}.norm_1", x)) for x in tokens]
        fused = [self.linear(f"{name}.attention.key_value", x) for x in context]
        keys, values = ([f[i * width : (i + 1) * width] for f in fused] for i in range(2))
        seen = self.attend(f"{name}.attention", queries, keys, values, heads)
        return [self.perceptron(name, x + y) for x, y in zip(tokens, seen, strict=True)]

    # the two halves

    def encode(self, image: Tensor, shown: list[Cube]) -> list[Tensor]:
        """Class token first where there is one, then the shown cubes."""
        tokens = []
        for cube in shown:
            voxels = torch.cat(self.cube(image, cube))
            embedded = self.linear(self.projection("encoder.embed", cube[0]), voxels)
            tokens.append(embedded + self.position("encoder", cube, len(embedded)))
        if "encoder.class_token" in self.weights:
            tokens = [self.get("encoder.class_token"), *tokens]
        for i in range(self.count("encoder.blocks")):
            tokens = self.self_block(f"encoder.blocks.{i}", tokens, self.heads)
        return [self.norm("encoder.norm", x) for x in tokens]

    def decode(self, encoded: list[Tensor], shown: list[Cube], hidden: list[Cube]) -> dict[Cube, Tensor]:
        """Predicted voxels of every cube that was decoded."""
        seen = [self.linear("decoder.enter", x) for x in encoded]
        width, first = len(seen[0]), len(seen) - len(shown)
        for i, cube in enumerate(shown):
            seen[first + i] = seen[first + i] + self.position("decoder", cube, width)
        asked = [self.get("decoder.mask_token") + self.position("decoder", cube, width) for cube in hidden]
        blocks = [f"decoder.blocks.{i}" for i in range(self.count("decoder.blocks"))]
        if self.cross:
            for name in blocks:
                asked = self.cross_block(name, asked, seen, self.decoder_heads)
            decoded = dict(zip(hidden, asked, strict=True))
        else:
            tokens = seen + asked
            for name in blocks:
                tokens = self.self_block(name, tokens, self.decoder_heads)
            decoded = dict(zip(shown + hidden, tokens[first:], strict=True))
        return {
            cube: self.linear(self.projection("decoder.leave", cube[0]), self.norm("decoder.norm", x))
            for cube, x in decoded.items()
        }

    # the loss

    def wanted(self, image: Tensor, cube: Cube) -> Tensor:
        bands = self.cube(image, cube)
        if self.target == "signed":
            return 2 * torch.cat(bands) - 1
        if self.target == "cube_standardised":
            return standardised(torch.cat(bands))
        if self.target == "band_standardised":
            return torch.cat([standardised(band) for band in bands])
        return torch.cat(bands)

    def losses(
        self, image: Tensor, shown: list[int], hidden: list[int], valid: list[bool]
    ) -> tuple[Tensor, Tensor]:
        """Summed errors of one image: of the hidden valid cubes, and of the sums over groups at valid places."""
        seen, asked = ([self.token(n) for n in part] for part in (shown, hidden))
        predicted = self.decode(self.encode(image, seen), seen, asked)
        of_cubes = of_sums = torch.zeros((), dtype=torch.float64)
        for cube in asked:
            if valid[cube[1] * self.side + cube[2]]:
                of_cubes = of_cubes + (predicted[cube] - self.wanted(image, cube)).pow(2).mean()
        for place in range(self.side**2):
            column = [(g, *divmod(place, self.side)) for g in range(len(self.groups))]
            if valid[place] and self.shared and all(c in predicted for c in column):
                off = sum(predicted[c] for c in column) - sum(self.wanted(image, c) for c in column)
                of_sums = of_sums + off.pow(2).mean()
        return of_cubes, of_sums


def waves(at: float, width: int) -> Tensor:
    angles = [at / 10000 ** (k / (width // 2)) for k in range(width // 2)]
    return torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles], dtype=torch.float64)


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def standardised(x: Tensor) -> Tensor:
    return (x - x.mean()) / ((x - x.mean()).pow(2).mean() + 1e-6).sqrt()


def choose(scores: list[float], valid: list[bool], n_shown: int) -> tuple[list[int], list[int]]:
    """Shown and hidden tokens of one image: lowest scores shown, invalid cubes hidden first, ties by number."""
    order = sorted(range(len(scores)), key=lambda n: (not valid[n % len(valid)], scores[n], n))
    return sorted(order[:n_shown]), sorted(order[n_shown:])


def saliency_scores(
    noise: list[float], saliency: list[float], strength: float, hide: bool, draw: str
) -> list[float]:
    """SSDTM's scores of one image's tokens, as METHOD's sentence has them."""
    mean = sum(saliency) / len(saliency)
    deviation = math.sqrt(sum((s - mean) ** 2 for s in saliency) / len(saliency))
    scores = []
    for n, u in enumerate(noise):
        z = (saliency[n % len(saliency)] - mean) / max(deviation, 1e-6)
        gumbel = -math.log(-math.log(u))
        sign = 1 if hide else -1
        # hidden: the hidden are the weighted sample; shown: the shown are, weighted the other way round
        scores.append(sign * strength * z + gumbel if draw == "hidden" else -(-sign * strength * z + gumbel))
    return scores
