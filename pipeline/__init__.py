"""What preprocessing and training must agree on, and nothing else.

```
            slurm/*.sh ── configs/*.yaml
                 │
 preprocessing/  archives -> Zarr -> shards     training/  shards -> weights -> scores
   shard.py simulate.py (entries)                 pretrain.py finetune.py compare.py (entries)
   scenes readers/* radiometry tiling             data engine checkpoint tracking guards
   archive packing quality                        model masking tokens attention schedule metrics tasks/*
                 └────────────────┬───────────────────┘
   pipeline/   sample -> manifest, saliency -> indices -> sensors ; config ; console ; errors
```
numpy, PyYAML, pydantic and numcodecs only: importing any of it takes a fraction of a second.
"""

__version__ = "0.1.0"
