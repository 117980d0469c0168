"""Archives to shards: readers, radiometry, Zarr, tiling and packing. Never imports torch, mlflow or training."""
