"""Archives to shards: readers, radiometry, Zarr, tiling and packing. Never imports torch, mlflow or training."""

from pipeline.errors import MissingPackageError

try:
    import rasterio  # noqa: F401 - only whether it is there
except ImportError as error:
    raise MissingPackageError(
        f"preprocessing needs rasterio, which cannot be imported ({error}). Install it with `make setup`, or with"
        " `pip install -c constraints.txt -e .` in the project's folder."
    ) from error
