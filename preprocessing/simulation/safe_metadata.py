"""The XML of a simulated Sentinel-2 product: what readers (GDAL's too) look for, in the specification's own places."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.sensors import SENSORS
from preprocessing.simulation.raster import PLACE, Place

_HEAD = '<?xml version="1.0" encoding="UTF-8" standalone="no"?>\n'
_NOTE = "<!-- Simulated scene: no satellite took it. -->\n"


@dataclass(frozen=True)
class Description:
    """What the metadata says of one simulated product."""

    name: str
    """Product name without .SAFE."""
    level: str
    """L1C or L2A."""
    baseline: str
    time: str
    """Sensing time, ISO 8601 with Z."""
    granule: str
    images: Sequence[str]
    """Image files relative to the product, without ending."""
    size_px: int
    """Side of the 10 m grid."""
    quantification: int
    offset_dn: int
    """The specification's ADD_OFFSET for every band; 0 before baseline 04.00, whose metadata has none."""
    place: Place = PLACE
    prefix: str = ""
    """What stands before names that are L2A's own."""

    @property
    def processing_level(self) -> str:
        """Return the level as the XML spells it."""
        return f"Level-{self.level.removeprefix('L')}"


def product_xml(what: Description) -> str:
    """Return MTD_MSIL2A.xml or MTD_MSIL1C.xml."""
    root = f"{what.processing_level}_User_Product"
    space = f"https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_{what.processing_level}.xsd"
    return f"""{_HEAD}{_NOTE}<n1:{root} xmlns:n1="{space}">
  <n1:General_Info>
    <Product_Info>
      <PRODUCT_START_TIME>{what.time}</PRODUCT_START_TIME>
      <PRODUCT_STOP_TIME>{what.time}</PRODUCT_STOP_TIME>
      <PRODUCT_URI>{what.name}.SAFE</PRODUCT_URI>
      <PROCESSING_LEVEL>{what.processing_level}</PROCESSING_LEVEL>
      <PRODUCT_TYPE>S2MSI{what.level[1:]}</PRODUCT_TYPE>
      <PROCESSING_BASELINE>{what.baseline}</PROCESSING_BASELINE>
      <GENERATION_TIME>{what.time}</GENERATION_TIME>
      <Datatake datatakeIdentifier="G{what.name[:3]}_{_compact(what.time)}_000001_N{what.baseline}">
        <SPACECRAFT_NAME>Sentinel-2A</SPACECRAFT_NAME>
        <DATATAKE_TYPE>INS-NOBS</DATATAKE_TYPE>
        <DATATAKE_SENSING_START>{what.time}</DATATAKE_SENSING_START>
        <SENSING_ORBIT_NUMBER>22</SENSING_ORBIT_NUMBER>
        <SENSING_ORBIT_DIRECTION>DESCENDING</SENSING_ORBIT_DIRECTION>
      </Datatake>
      <Query_Options completeSingleTile="true"><PRODUCT_FORMAT>SAFE_COMPACT</PRODUCT_FORMAT></Query_Options>
      <Product_Organisation><Granule_List>
        <Granule datastripIdentifier="{_datastrip(what)}" granuleIdentifier="{_tile(what)}" imageFormat="JPEG2000">
{_lines(10, (f"<IMAGE_FILE>{image}</IMAGE_FILE>" for image in what.images))}
        </Granule>
      </Granule_List></Product_Organisation>
    </Product_Info>
{_characteristics(what)}
  </n1:General_Info>
</n1:{root}>
"""


def _characteristics(what: Description) -> str:
    quantification = f'<QUANTIFICATION_VALUE unit="none">{what.quantification}</QUANTIFICATION_VALUE>'
    # the two levels spell the same number differently
    if what.level == "L2A":
        named = quantification.replace("QUANTIFICATION", f"{what.prefix}BOA_QUANTIFICATION")
        quantification = f"<QUANTIFICATION_VALUES_LIST>{named}</QUANTIFICATION_VALUES_LIST>"
    return f"""    <Product_Image_Characteristics>
{_lines(6, (_special_value(name, number) for name, number in (("NODATA", 0), ("SATURATED", 65535))))}
      <Image_Display_Order>
        <RED_CHANNEL>3</RED_CHANNEL><GREEN_CHANNEL>2</GREEN_CHANNEL><BLUE_CHANNEL>1</BLUE_CHANNEL>
      </Image_Display_Order>
      {quantification}
{_offsets(what)}
      <Spectral_Information_List>
{_lines(8, (_spectral_information(number) for number in range(13)))}
      </Spectral_Information_List>
    </Product_Image_Characteristics>"""


def _special_value(name: str, dn: int) -> str:
    return (
        f"<Special_Values><SPECIAL_VALUE_TEXT>{name}</SPECIAL_VALUE_TEXT>"
        f"<SPECIAL_VALUE_INDEX>{dn}</SPECIAL_VALUE_INDEX></Special_Values>"
    )


def _offsets(what: Description) -> str:
    # older baselines do not write zeros, they leave the list out
    if not what.offset_dn:
        return ""
    name, around = (
        ("BOA_ADD_OFFSET", "BOA_ADD_OFFSET_VALUES_LIST")
        if what.level == "L2A"
        else ("RADIO_ADD_OFFSET", "Radiometric_Offset_List")
    )
    values = (f'<{name} band_id="{number}">{what.offset_dn}</{name}>' for number in range(13))
    return f"      <{around}>\n{_lines(8, values)}\n      </{around}>"


def _spectral_information(number: int) -> str:
    band = SENSORS["sentinel2"].bands[number]
    # physicalBand has no leading zeros, as opposed to file names
    low, high = band.centre_nm - band.width_nm / 2, band.centre_nm + band.width_nm / 2
    return (
        f'<Spectral_Information bandId="{number}" physicalBand="{band.name.replace("B0", "B")}">'
        f"<RESOLUTION>{band.gsd_m:g}</RESOLUTION><Wavelength>"
        f'<MIN unit="nm">{low:g}</MIN><MAX unit="nm">{high:g}</MAX><CENTRAL unit="nm">{band.centre_nm:g}</CENTRAL>'
        "</Wavelength></Spectral_Information>"
    )


def tile_xml(what: Description) -> str:
    """Return MTD_TL.xml: the grids of the granule."""
    root = f"{what.processing_level}_Tile_ID"
    space = f"https://psd-14.sentinel2.eo.esa.int/PSD/S2_PDI_{what.processing_level}_Tile_Metadata.xsd"
    sides = {gsd: what.size_px * 10 // gsd for gsd in (10, 20, 60)}
    sizes = (
        f'<Size resolution="{gsd}"><NROWS>{side}</NROWS><NCOLS>{side}</NCOLS></Size>'
        for gsd, side in sides.items()
    )
    places = (
        f'<Geoposition resolution="{gsd}"><ULX>{what.place.left_m:.0f}</ULX><ULY>{what.place.top_m:.0f}</ULY>'
        f"<XDIM>{gsd}</XDIM><YDIM>-{gsd}</YDIM></Geoposition>"
        for gsd in sides
    )
    return f"""{_HEAD}{_NOTE}<n1:{root} xmlns:n1="{space}">
  <n1:General_Info>
    <TILE_ID metadataLevel="Brief">{_tile(what)}</TILE_ID>
    <DATASTRIP_ID metadataLevel="Standard">{_datastrip(what)}</DATASTRIP_ID>
    <SENSING_TIME metadataLevel="Standard">{what.time}</SENSING_TIME>
  </n1:General_Info>
  <n1:Geometric_Info>
    <Tile_Geocoding metadataLevel="Brief">
      <HORIZONTAL_CS_NAME>WGS84 / UTM zone {what.place.crs[-2:]}N</HORIZONTAL_CS_NAME>
      <HORIZONTAL_CS_CODE>{what.place.crs}</HORIZONTAL_CS_CODE>
{_lines(6, sizes)}
{_lines(6, places)}
    </Tile_Geocoding>
  </n1:Geometric_Info>
</n1:{root}>
"""


def manifest_xml(product: Path) -> str:
    """Return manifest.safe: size and SHA3-256 of every file that stands in the product."""
    # sorted, so that equal products have equal bytes
    files = sorted(p for p in product.rglob("*") if p.is_file())
    objects = (_data_object(path, path.relative_to(product).as_posix()) for path in files)
    version = "esa/safe/sentinel/1.1/sentinel-2/msi/archive_user_product"
    return f"""{_HEAD}{_NOTE}<xfdu:XFDU xmlns:xfdu="urn:ccsds:schema:xfdu:1" version="{version}">
  <dataObjectSection>
{_lines(4, objects)}
  </dataObjectSection>
</xfdu:XFDU>
"""


def _data_object(path: Path, name: str) -> str:
    # the algorithm and the upper case of products since 2021
    digest = hashlib.sha3_256(path.read_bytes()).hexdigest().upper()
    kind = "text/xml" if path.suffix == ".xml" else "application/octet-stream"
    return (
        f'<dataObject ID="{path.stem}_Data"><byteStream mimeType="{kind}" size="{path.stat().st_size}">'
        f'<fileLocation href="./{name}" locatorType="URL"/>'
        f'<checksum checksumName="SHA3-256">{digest}</checksum></byteStream></dataObject>'
    )


def _lines(indent: int, texts: Iterable[str]) -> str:
    return "\n".join(" " * indent + text for text in texts)


def _compact(time: str) -> str:
    return time.split(".")[0].replace("-", "").replace(":", "").rstrip("Z")


def _tile(what: Description) -> str:
    time, tile = _compact(what.time), what.granule.split("_")[1]
    return f"S2A_OPER_MSI_{what.level}_TL_SIML_{time}_A000001_{tile}_N{what.baseline}"


def _datastrip(what: Description) -> str:
    return f"S2A_OPER_MSI_{what.level}_DS_SIML_{_compact(what.time)}_S{_compact(what.time)}_N{what.baseline}"
