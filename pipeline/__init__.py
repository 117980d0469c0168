"""What preprocessing and training must agree on, and nothing else.

```
                 slurm/*.sh ── configs/*.yaml
                      │
 preprocessing/  archives -> Zarr -> shards       training/  shards -> weights -> scores
   simulate shard show verify (entries)             pretrain finetune compare (entries)
   settings scenes locations readers/* radiometry   loop runs world guards engine checkpoint
   grids resampling tiling cutting quality          data reader tokens masking model attention
   archive conventions packing spool assembly       schedule metrics tasks/*
   profiles masks markup checksums files labelling splits
   finding selection duplicates rounds planning
   leakage reporting
   scene_work kernel cluster simulation/*           tracking journal panels
                      └────────────┬─────────────────────┘
   pipeline/   manifest -> contract -> sample ; saliency ; indices ; sensors ; keys
               lock -> console -> config -> reference ; errors
```
numpy, PyYAML, pydantic and numcodecs only: importing any of it takes a fraction of a second.
"""

__version__ = "0.1.0"
