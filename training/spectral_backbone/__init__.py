"""An exported encoder as a plain torch module: `load_backbone(folder)` is all that is needed.

This package needs torch and safetensors and nothing else of the project; `training/export.py` copies it beside the
weights, so that a folder opens with the code it was written for, wherever it is:

    sys.path.insert(0, "encoder")               # the exported folder
    from spectral_backbone import load_backbone
    backbone = load_backbone("encoder")
"""

from .bands import BandMismatch
from .features import FeatureInfo, FeatureMaps
from .load import FORMAT_VERSION, BackboneError, load_backbone
from .model import SpectralBackbone

__all__ = [
    "FORMAT_VERSION",
    "BackboneError",
    "BandMismatch",
    "FeatureInfo",
    "FeatureMaps",
    "SpectralBackbone",
    "load_backbone",
]
