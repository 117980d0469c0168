"""The sensor table: bands by name, with wavelength, width and native pixel size.

Adding a sensor is one entry in `SENSORS`. Bands are chosen by name everywhere, never by position.
Sources: Sentinel-2 Spectral Response Functions (ESA, S2A values); Landsat 8-9 and Landsat 4-7 Data Users
Handbooks (USGS).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.errors import ContractError, unknown


@dataclass(frozen=True)
class Band:
    """One spectral band of a sensor."""

    name: str
    role: str
    """Common name that indices are written in (`red`, `nir`, ...); unique within a sensor."""
    centre_nm: float
    width_nm: float
    gsd_m: float
    """Pixel size as delivered."""


@dataclass(frozen=True)
class Sensor:
    """A family of instruments that share a band table."""

    name: str
    title: str
    """For people."""
    bands: tuple[Band, ...]
    """In wavelength order, as the instrument's handbook lists them."""
    fallbacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Role -> roles that may stand in for it where its band is absent; the use of one is recorded."""
    licence: str = ""

    def __getitem__(self, name: str) -> Band:
        """Return the band called `name`; raises `UnknownNameError` with the nearest name."""
        for band in self.bands:
            if band.name == name:
                return band
        raise unknown("band", name, [b.name for b in self.bands], f"sensor {self.name}")

    def select(self, names: Sequence[str]) -> tuple[Band, ...]:
        """Return the bands called `names`, in that order.

        Raises `ContractError` for a band named twice and `UnknownNameError` for one that is not there.
        """
        twice = sorted({n for n in names if list(names).count(n) > 1})
        if twice:
            raise ContractError(
                f"bands {', '.join(twice)} are listed twice for sensor {self.name}; list each once."
            )
        return tuple(self[n] for n in names)

    def resolve(self, role: str, names: Sequence[str]) -> Band:
        """Return the band among `names` that plays `role`, or the first fallback that is present.

        Raises `ContractError` where no band present can play it.
        """
        # fallbacks come second: nir_narrow stands in for nir only where nir is absent
        present = {b.role: b for b in self.select(names)}
        for candidate in (role, *self.fallbacks.get(role, ())):
            if candidate in present:
                return present[candidate]
        wanted = [b.name for b in self.bands if b.role == role]
        raise ContractError(
            f"no `{role}` band among {', '.join(names)} of sensor {self.name}: add {' or '.join(wanted) or 'one'}"
            " to `bands`, or leave out the index that needs it."
        )


def sensor(name: str) -> Sensor:
    """Return the sensor called `name`; raises `UnknownNameError` with the nearest one."""
    try:
        return SENSORS[name]
    except KeyError:
        raise unknown("sensor", name, SENSORS) from None


_COPERNICUS = (
    "Contains modified Copernicus Sentinel data; free, full and open under the Copernicus data terms."
)
_USGS = "Landsat data courtesy of the U.S. Geological Survey; public domain."

SENSORS: dict[str, Sensor] = {
    "sentinel2": Sensor(
        "sentinel2",
        "Sentinel-2 MSI",
        (
            Band("B01", "coastal", 442.7, 20, 60),
            Band("B02", "blue", 492.7, 65, 10),
            Band("B03", "green", 559.8, 35, 10),
            Band("B04", "red", 664.6, 30, 10),
            Band("B05", "rededge1", 704.1, 14, 20),
            Band("B06", "rededge2", 740.5, 14, 20),
            Band("B07", "rededge3", 782.8, 19, 20),
            Band("B08", "nir", 832.8, 105, 10),
            Band("B8A", "nir_narrow", 864.7, 21, 20),
            Band("B09", "water_vapour", 945.1, 19, 60),
            Band("B10", "cirrus", 1373.5, 29, 60),
            Band("B11", "swir1", 1613.7, 90, 20),
            Band("B12", "swir2", 2202.4, 174, 20),
        ),
        {"nir": ("nir_narrow",)},
        _COPERNICUS,
    ),
    "landsat_oli": Sensor(
        "landsat_oli",
        "Landsat 8-9 OLI",
        (
            # the bands of surface reflectance products; pan, cirrus and thermal are not among them
            Band("B1", "coastal", 442.96, 15.98, 30),
            Band("B2", "blue", 482.04, 60.04, 30),
            Band("B3", "green", 561.41, 57.33, 30),
            Band("B4", "red", 654.59, 37.47, 30),
            Band("B5", "nir", 864.67, 28.25, 30),
            Band("B6", "swir1", 1608.86, 84.72, 30),
            Band("B7", "swir2", 2200.73, 186.66, 30),
        ),
        # as narrow as Sentinel-2's, at the same wavelength
        {"nir_narrow": ("nir",)},
        _USGS,
    ),
    "landsat_tm": Sensor(
        "landsat_tm",
        "Landsat 4-5 TM and 7 ETM+",
        (
            Band("B1", "blue", 477.0, 70, 30),
            Band("B2", "green", 560.0, 80, 30),
            Band("B3", "red", 661.0, 60, 30),
            Band("B4", "nir", 835.0, 130, 30),
            Band("B5", "swir1", 1648.0, 200, 30),
            # B6 is thermal
            Band("B7", "swir2", 2206.0, 260, 30),
        ),
        licence=_USGS,
    ),
}
