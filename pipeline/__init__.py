"""What preprocessing and training must agree on, and nothing else.

```
                 slurm/*.sh ── configs/*.yaml
                      │
 preprocessing/  archives -> Zarr -> shards       training/  shards -> weights -> scores
   simulate shard show verify (entries)             pretrain finetune predict study compare export show (entries)
                                                    status sync doctor (entries)
   settings files labelling splits scenes           loop runs world guards engine checkpoint
   locations readers/* markup checksums finding     stream order sets reader data inputs
   selection duplicates rounds planning             tokens masking chosen model schedule
   radiometry masks grids resampling tiling         metrics tasks/* tracking journal panels
   cutting kernel archive conventions profiles      architecture positions projections
   quality packing spool assembly leakage           blocks attention decoder targets handover
   reporting page charts pictures cog growth        weights stages recorded update report flops
   scene_work cluster remote exclusive finished     states sealed feeding watch
   offset_check panels jobs rows strips cells       downstream fitted neighbours plain fraction
   standard_indices contributions codestream        backbones resnet upernet windows mixing
   simulation/* footprints                          offsets storage remote collation budget probing
                                                    memory zero mlflow_client identity
                                                    ledger machine names seeds curves page
                                                    scored protocol evidence model_card provenance
                                                    spectral_backbone/* looking saving spares origins
                      └────────────┬─────────────────────┘
   pipeline/   histogram -> manifest -> contract -> sample ; saliency ; indices -> formulas
               sensors ; keys ; lock -> console -> config -> reference ; errors
```
numpy, PyYAML, pydantic and numcodecs only: importing any of it takes a fraction of a second.
"""

__version__ = "0.1.0"
