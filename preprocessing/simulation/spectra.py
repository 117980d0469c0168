"""Reflectance spectra of the simulated ground, by wavelength, so that every sensor of the table is served.

Rounded from what spectral libraries show for such surfaces (USGS splib07, ECOSTRESS): plausible, not measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

KNOTS_NM = (443, 490, 560, 665, 705, 740, 783, 842, 865, 945, 1375, 1610, 2200)
"""Wavelengths of the tables below; between them spectra are interpolated linearly."""


@dataclass(frozen=True)
class Material:
    """A surface and its reflectance."""

    name: str
    reflectance: tuple[float, ...]
    """One value for each of `KNOTS_NM`."""
    scl: int = 5
    """Class a scene classification gives it (Sentinel-2 SCL code)."""

    def at(self, centre_nm: float) -> float:
        """Return the reflectance at a wavelength."""
        return float(np.interp(centre_nm, KNOTS_NM, self.reflectance))


_VEGETATION, _WATER = 4, 6

MATERIALS: tuple[Material, ...] = (
    Material(
        "clear water",
        (0.030, 0.030, 0.028, 0.015, 0.010, 0.008, 0.007, 0.006, 0.006, 0.005, 0.003, 0.003, 0.002),
        _WATER,
    ),
    Material(
        "turbid water",
        (0.050, 0.060, 0.085, 0.060, 0.050, 0.030, 0.028, 0.024, 0.022, 0.015, 0.006, 0.006, 0.004),
        _WATER,
    ),
    Material(
        "conifers",
        (0.018, 0.020, 0.035, 0.022, 0.050, 0.150, 0.190, 0.210, 0.220, 0.210, 0.100, 0.100, 0.045),
        _VEGETATION,
    ),
    Material(
        "broadleaves",
        (0.020, 0.025, 0.050, 0.025, 0.085, 0.270, 0.340, 0.370, 0.380, 0.360, 0.200, 0.170, 0.075),
        _VEGETATION,
    ),
    Material(
        "wheat",
        (0.025, 0.030, 0.065, 0.035, 0.110, 0.300, 0.380, 0.420, 0.430, 0.400, 0.250, 0.200, 0.100),
        _VEGETATION,
    ),
    Material(
        "maize",
        (0.030, 0.035, 0.075, 0.045, 0.120, 0.270, 0.330, 0.360, 0.370, 0.350, 0.220, 0.220, 0.120),
        _VEGETATION,
    ),
    Material(
        "rapeseed",
        (0.035, 0.045, 0.150, 0.110, 0.190, 0.330, 0.380, 0.410, 0.420, 0.390, 0.250, 0.220, 0.120),
        _VEGETATION,
    ),
    Material(
        "grass",
        (0.035, 0.040, 0.080, 0.060, 0.120, 0.240, 0.280, 0.310, 0.320, 0.300, 0.220, 0.240, 0.140),
        _VEGETATION,
    ),
    Material(
        "stubble",
        (0.060, 0.080, 0.130, 0.180, 0.210, 0.240, 0.260, 0.290, 0.300, 0.290, 0.300, 0.360, 0.270),
    ),
    Material(
        "light soil",
        (0.090, 0.110, 0.160, 0.220, 0.240, 0.260, 0.280, 0.300, 0.310, 0.310, 0.340, 0.400, 0.350),
    ),
    Material(
        "dark soil",
        (0.040, 0.050, 0.070, 0.100, 0.115, 0.130, 0.145, 0.160, 0.165, 0.170, 0.210, 0.250, 0.210),
    ),
    Material(
        "asphalt",
        (0.075, 0.085, 0.100, 0.110, 0.115, 0.120, 0.125, 0.130, 0.130, 0.135, 0.150, 0.165, 0.160),
    ),
    Material(
        "tiled roof",
        (0.070, 0.080, 0.110, 0.190, 0.220, 0.240, 0.250, 0.260, 0.265, 0.260, 0.300, 0.350, 0.330),
    ),
    Material(
        "concrete",
        (0.200, 0.230, 0.260, 0.280, 0.290, 0.300, 0.305, 0.310, 0.310, 0.315, 0.340, 0.370, 0.350),
    ),
)  # fmt: skip
# water vapour above a cloud absorbs at 945 and 1375 nm, its drops and ice in the shortwave infrared
CLOUD = Material("cloud", (0.72, 0.72, 0.70, 0.70, 0.71, 0.72, 0.72, 0.72, 0.72, 0.55, 0.30, 0.55, 0.42), 9)

_NUMBERS = {material.name: number for number, material in enumerate(MATERIALS)}


def material_number(name: str) -> int:
    """Return a material's position in `MATERIALS`."""
    return _NUMBERS[name]
