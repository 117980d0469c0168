"""Weights out of a run, at any time: one safetensors file with what they expect of images in its header.

`python training/export.py RUN OUT.safetensors` while the run goes on, after it, or from one checkpoint of it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run by path: `python training/export.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from safetensors import SafetensorError
from safetensors.torch import save_file

from pipeline.console import run, say
from pipeline.errors import EXIT_DONE, OutputError
from training.checkpoint import newest, read_state, read_weights
from training.identity import run_of
from training.sealed import listed
from training.tracking import register

_EXAMPLES = """examples:
  python training/export.py runs/pretrain weights.safetensors
  python training/export.py runs/pretrain encoder.safetensors --prefix encoder.
  python training/export.py runs/pretrain/checkpoints/step-00000500 weights.safetensors --force
  python training/export.py runs/pretrain weights.safetensors --register encoder    a version in MLflow's registry

The weights are float32 and whole, whatever ZeRO stage and number of ranks trained them. The header's entries are texts:
`kind`, `step`, `model` (the configuration's group, as JSON) and `data` (by sensor: contract, bands, statistics and
input normalisation, as JSON). To read them:
  from safetensors import safe_open
  with safe_open("weights.safetensors", "pt") as stream: metadata = stream.metadata()"""


def export(location: Path, out: Path, prefix: str = "") -> int:
    """Write the newest weights of a run, or those of one checkpoint, to `out`; returns how many tensors there are.

    prefix: take only the weights whose names start so, and take it off.
    """
    folder = newest(location)
    state, weights = read_state(folder), read_weights(folder, prefix)
    if not weights:
        raise OutputError(
            f"{folder} has no weights whose names start with `{prefix}`; leave --prefix out to see all."
        )
    records = {sensor: record.model_dump(mode="json") for sensor, record in state.data.sensors.items()}
    metadata = {
        "kind": state.kind,
        "step": str(state.step),
        "model": json.dumps(state.config.get("model", {})),
        "data": json.dumps(records),
    }
    partial = out.with_name(f".{out.name}.partial")
    try:
        save_file(weights, partial, metadata)
        partial.replace(out)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write {out} ({error}); choose another place.") from error
    finally:
        partial.unlink(missing_ok=True)
    say(f"{out}: {len(weights)} tensors of step {state.step} of {folder}")
    return len(weights)


def described(location: Path) -> dict[str, str]:
    """Return what a registered model says of weights: which, what trained them, how long, on which data."""
    folder = newest(location)
    state = read_state(folder)
    return {
        # of the checkpoint: an export's header is written in no fixed order
        "weights_sha256": listed(folder)["weights.safetensors"]["sha256"],
        "kind": state.kind,
        "step": str(state.step),
        "data_digest": state.data.digest,
        "sensors": ", ".join(state.data.sensors),
    }


def main(argv: Sequence[str]) -> int:
    """Run the entry; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python training/export.py",
        description=(__doc__ or "").split("\n")[0],
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("location", type=Path, metavar="RUN", help="run folder, or a checkpoint's folder")
    parser.add_argument("out", type=Path, metavar="OUT", help="file to write")
    parser.add_argument("--prefix", default="", help="only weights whose names start so; it is taken off")
    parser.add_argument("--force", action="store_true", help="replace OUT where it exists")
    parser.add_argument(
        "--register", metavar="NAME", help="make OUT a version of this model in MLflow's registry"
    )
    asked = parser.parse_args(argv)
    if asked.out.exists() and not asked.force:
        raise OutputError(f"{asked.out} exists; --force replaces it.")
    export(asked.location, asked.out, asked.prefix)
    if asked.register:
        tags = described(asked.location) | ({"prefix": asked.prefix} if asked.prefix else {})
        say(register(run_of(asked.location), asked.out, asked.register, tags))
    return EXIT_DONE


if __name__ == "__main__":
    run(main)
