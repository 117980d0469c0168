"""Weights out of a run, at any time: a folder with the encoder, what it expects of images, its card and its code.

`python training/export.py RUN [OUT]` while the run goes on, after it, or from one checkpoint of it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if not __package__:  # run by path: `python training/export.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from pipeline import __version__
from pipeline.console import run, say
from pipeline.errors import EXIT_DONE, OutputError
from training import spectral_backbone
from training.architecture import ModelConfig
from training.checkpoint import FORMAT_VERSION as CHECKPOINT_FORMAT
from training.checkpoint import State, newest, read_state, read_weights
from training.identity import run_of
from training.inputs import SensorInput
from training.model import Encoder
from training.model_card import Licences, card, provenance, sources
from training.origins import STATE
from training.sealed import listed, seal
from training.spectral_backbone import FORMAT_VERSION, load_backbone
from training.spectral_backbone.load import CONFIG, WEIGHTS
from training.tracking import register

_EXAMPLES = """examples:
  python training/export.py runs/pretrain                           into runs/pretrain/export
  python training/export.py runs/pretrain encoder --licence "CC BY 4.0"   for sets that state none
  python training/export.py runs/pretrain/checkpoints/step-00000500 encoder --force
  python training/export.py runs/pretrain --register encoder        a version in MLflow's registry

OUT then holds model.safetensors (float32, whole, whatever ZeRO stage and number of ranks trained them), config.json,
state.json (what `finetune.py init=OUT` starts from), README.md (the model card) and spectral_backbone/, which loads it
with nothing but torch and safetensors:
  sys.path.insert(0, "OUT"); from spectral_backbone import load_backbone
  backbone = load_backbone("OUT")"""
# two implementations add up in another order; features are of order 1 after the last norm
_TOLERANCE = 1e-4


def export(location: Path, out: Path, licence: str | None = None, force: bool = False) -> Path:
    """Write the encoder of the newest weights of a run, or of one checkpoint, to the folder `out`; returns it.

    licence: of the data whose source states none. force: replace an export that is there.
    Raises `ContractError` where a licence is missing, `OutputError` where the folder cannot be written.
    """
    folder = newest(location)
    state, weights = read_state(folder), read_weights(folder, "encoder.")
    if "norm.weight" not in weights:
        raise OutputError(
            f"{folder} holds no transformer encoder; only those are exported. Its weights are in"
            f" {folder / 'weights.safetensors'}."
        )
    licences = Licences.of(state, licence)
    config = configuration(state, _checksum(folder), licences)
    with _replacing(out, force) as partial:
        save_file(weights, partial / WEIGHTS, {"format": "pt"})
        (partial / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
        (partial / STATE).write_text(json.dumps(_shared(state).model_dump(mode="json"), indent=1) + "\n")
        (partial / "README.md").write_text(card(state, licences, run_of(location)))
        _copy_code(partial)
        # before it has its name: what gives other features is never left behind
        _prove(partial, state, weights)
        seal(partial, FORMAT_VERSION)
    say(f"{out}: encoder of step {state.step} of {folder}")
    return out


@contextmanager
def _replacing(out: Path, force: bool) -> Iterator[Path]:
    """Give a folder that becomes `out` when all in it is written."""
    if out.exists() and not force:
        raise OutputError(f"{out} exists; --force replaces it.")
    # --force is for exports: no slip of the pen may cost another folder
    if out.exists() and not (out / CONFIG).exists():
        raise OutputError(f"{out} is no export and is not replaced; choose another place.")
    partial = out.with_name(f".{out.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        # only now: the export of before stands until this one is proven
        if out.exists():
            shutil.rmtree(out)
        partial.rename(out)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write {out} ({error}); choose another place.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def configuration(state: State, checkpoint_sha256: str, licences: Licences) -> dict[str, Any]:
    """Return the `config.json` of an export."""
    model = ModelConfig.model_validate(state.config["model"])
    size = model.dimensions
    architecture = {"width": size.width, "depth": size.depth, "heads": size.heads}
    architecture |= model.model_dump(
        mode="json", include={"size", "patch_px", "positions", "spectral_position", "class_token"}
    )
    sets = [
        s.model_dump(mode="json", include={"name", "digest", "samples", "weight"}) for s in state.data.sets
    ]
    return {
        "format_version": FORMAT_VERSION,
        "architecture": architecture,
        "sensors": {
            name: _sensor(SensorInput.of(record, model)) for name, record in state.data.sensors.items()
        },
        "training": {"kind": state.kind, "step": state.step, "data_digest": state.data.digest, "sets": sets},
        "licences": list(licences.lines()),
        "checkpoint_sha256": checkpoint_sha256,
        "code_version": __version__,
    }


def _shared(state: State) -> State:
    """Return what a training must know to start from an export: no paths, and the sets of all that came before."""
    own = (s.model_copy(update={"path": "", "provenance": provenance(s)}) for s in sources(state)[0])
    data = state.data.model_copy(update={"sets": tuple(own)})
    # of the configuration the model alone: the rest names folders of one machine
    kept = {"format_version": CHECKPOINT_FORMAT, "config": {"model": state.config["model"]}, "data": data}
    return state.model_copy(update=kept)


def _sensor(images: SensorInput) -> dict[str, Any]:
    """Return what an encoder expects of the images of one sensor."""
    record, layout, recorded = images.record, images.layout, images.normaliser.recorded
    contract = record.contract
    bands = [contract.bands[i] for i in contract.band_positions(record.bands)]
    return {
        "level": contract.level,
        "gsd_m": contract.gsd_m,
        "image_px": record.image_px,
        "bands": [b.model_dump(mode="json") for b in bands],
        "groups": [[record.bands[c] for c in members] for members in layout.members],
        "shared_projection": layout.shared,
        "normalisation": {
            "kind": recorded.kind,
            "scale": recorded.scale,
            "nodata": contract.nodata,
            "clip": recorded.clip,
            "shift": recorded.shift.tolist(),
            "span": recorded.span.tolist(),
        },
        "statistics": [s.model_dump(mode="json") for s in record.statistics],
    }


def _copy_code(folder: Path) -> None:
    source = Path(spectral_backbone.__file__).parent
    # what is compiled is of this machine's Python alone
    shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__"))


def _prove(folder: Path, state: State, weights: Mapping[str, Tensor]) -> None:
    """Raise `OutputError` unless the folder, opened as anybody would, gives the features of the run's encoder."""
    model = ModelConfig.model_validate(state.config["model"])
    images = {name: SensorInput.of(record, model) for name, record in state.data.sensors.items()}
    encoder = Encoder(model, {name: one.layout for name, one in images.items()}).eval()
    encoder.load_state_dict(weights)
    for name, one in images.items():
        shape = (1, one.layout.channels, one.record.image_px, one.record.image_px)
        # as products store reflectance, 0 to 0.6: normalisation is proven with the encoder
        image = torch.randint(0, 6000, shape, generator=torch.Generator().manual_seed(0)).to(torch.int16)
        with torch.inference_mode():
            ours = encoder.everything(one.normaliser(image), name)
            theirs = load_backbone(folder, name).forward_features(image)
        off = float((ours - theirs).abs().max())
        if not off < _TOLERANCE:
            raise OutputError(
                f"the export gives other features than the run's encoder (off by {off:.2g} for {name}), so it is not"
                " written: that is an error of this program, please report it."
            )


def described(out: Path) -> dict[str, str]:
    """Return what a registered model says of an export: which weights, what trained them, how long, on which data."""
    # of the export, not of the run: that may have saved newer weights since
    state, config = read_state(out), json.loads((out / CONFIG).read_text())
    return {
        "export_format": str(config["format_version"]),
        "weights_sha256": config["checkpoint_sha256"],
        "kind": state.kind,
        "step": str(state.step),
        "data_digest": state.data.digest,
        "sensors": ", ".join(state.data.sensors),
    }


def _checksum(folder: Path) -> str:
    found: str = listed(folder)["weights.safetensors"]["sha256"]
    return found


def main(argv: Sequence[str]) -> int:
    """Run the entry; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python training/export.py",
        description=(__doc__ or "").split("\n")[0],
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("location", type=Path, metavar="RUN", help="run folder, or a checkpoint's folder")
    parser.add_argument(
        "out",
        type=Path,
        nargs="?",
        metavar="OUT",
        help="folder to write; without, export/ in the run's folder",
    )
    parser.add_argument("--licence", metavar="NAME", help="licence of the data whose source states none")
    parser.add_argument("--force", action="store_true", help="replace OUT where it is an export")
    parser.add_argument(
        "--register", metavar="NAME", help="make OUT a version of this model in MLflow's registry"
    )
    asked = parser.parse_args(argv)
    out = asked.out or run_of(asked.location) / "export"
    export(asked.location, out, asked.licence, asked.force)
    if asked.register:
        say(register(run_of(asked.location), out, asked.register, described(out)))
    return EXIT_DONE


if __name__ == "__main__":
    run(main)
