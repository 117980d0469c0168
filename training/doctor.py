"""What a training would use on this machine, and why: devices, precision, attention, packages, shards, disk, MLflow, Slurm.

`python training/doctor.py [CONFIG] [a.b=c ...]` asks the code that would use them, changes nothing, and returns 1 where
something that was asked for cannot be had.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

if not __package__:  # run by path: `python training/doctor.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from pipeline.config import COMMAND_LINE, ROOT, Config, UserPath, apply_words, build, read_yaml
from pipeline.console import Command, run, say, table
from pipeline.errors import EXIT_DONE, EXIT_FAILURE, MissingPackageError, PipelineError
from training import mlflow_client
from training.attention import ATTENTIONS, backend, naive
from training.data import DataConfig
from training.engine import DTYPES, EngineConfig
from training.flops import measure_peak
from training.sets import open_families
from training.tracking import TrackingConfig
from training.world import World

COMMAND = Command(
    "Tell what a training would use on this machine and why, and what is missing; exit code 1 where something is.",
    "",
    """  python training/doctor.py
  python training/doctor.py configs/pretrain/laptop.yaml data.shards=shards/mine
  python training/doctor.py output=/path/to/runs engine.precision=bf16 attention=xformers
  srun --nodes=1 --gpus-per-node=8 python training/doctor.py tracking.uri=http://mlflow.example:5000""",
)
OK, PROBLEM, ABSENT = "ok", "PROBLEM", "absent"
_NEEDED = ("torch", "deepspeed", "mlflow", "safetensors", "numpy", "numcodecs", "pydantic")
_OPTIONAL = {
    "xformers": "packed rows on GPUs: pip install -c constraints.txt -e '.[cuda]'",
    "s3fs": "shards on object storage: pip install -c constraints.txt -e '.[remote]'",
    "scikit-learn": "baselines on band statistics: pip install -c constraints.txt -e '.[baselines]'",
}
_ASK_S = 20
_LEAST_BYTES = 100e6
"""Below it not even a small run's checkpoints fit."""


class DoctorConfig(Config):
    """The parts of a training's configuration that ask something of the machine."""

    data: DataConfig | None = None
    """The shard sets to open; null opens none."""
    output: UserPath = Path("runs")
    """Folder that runs would be written to."""
    engine: EngineConfig = EngineConfig()
    """DeepSpeed."""
    tracking: TrackingConfig = TrackingConfig()
    """Where runs would be recorded."""
    attention: str = "auto"
    """A key of `ATTENTIONS`; of a configuration, its `model.attention`."""


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    what: str
    state: str
    """`ok`, `absent` where nothing asked for it is missing, or `PROBLEM`."""
    used: str
    """What would be used."""
    why: str = ""
    """What decided it, or what to do."""


def findings(config: DoctorConfig, world: World) -> Iterator[Finding]:
    """Yield what there is, in the order in which one would look for it."""
    yield from _packages()
    yield from _guarded("device", partial(_device, world))
    yield from _guarded("precision", partial(_precision, config.engine, world))
    yield from _guarded("ZeRO", partial(_zero, config.engine, world))
    yield from _attention(config.attention, world)
    if config.data:
        yield from _guarded("shards", partial(_shards, config.data))
    yield _disk(config.output)
    yield _tracker(config.tracking.resolve(config.output))
    yield _slurm()


def _guarded(what: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Turn a deliberate error into a line of the table: the other lines are wanted too."""
    try:
        yield from look()
    except PipelineError as error:
        yield Finding(what, PROBLEM, "-", str(error))


def _packages() -> Iterator[Finding]:
    pinned = _pins()
    yield Finding("python", OK, platform.python_version(), sys.executable)
    for name in (*_NEEDED, *_OPTIONAL):
        needed = name in _NEEDED
        try:
            found = version(name)
        except PackageNotFoundError:
            advice = "make setup installs it" if needed else f"only for {_OPTIONAL[name]}"
            yield Finding(name, PROBLEM if needed else ABSENT, "-", advice)
            continue
        # a build's suffix, +cpu or +cu130, is no other release
        pin = pinned.get(name, "")
        same = not pin or found.partition("+")[0] == pin
        yield Finding(name, OK, found, "" if same else f"tested with {pin} (constraints.txt)")


def _pins() -> dict[str, str]:
    path = ROOT / "constraints.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return dict(line.split("==", 1) for line in lines if "==" in line and not line.startswith("#"))


def _device(world: World) -> Iterator[Finding]:
    device = world.device
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        used = f"{found.name}, {found.total_memory / 1e9:.0f} GB; {torch.cuda.device_count()} visible"
        why = f"rank {world.rank} of {world.size} takes GPU {world.local_rank}; CUDA {torch.version.cuda}"
    else:
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a build without CUDA"
        used = f"CPU, {torch.get_num_threads()} threads of {os.cpu_count()} cores"
        why = f"torch {torch.__version__} sees no GPU ({built})"
    yield Finding("device", OK, used, why)


def _precision(engine: EngineConfig, world: World) -> Iterator[Finding]:
    precision = engine.resolve(world.device)
    peak = measure_peak(world.device, DTYPES[precision])
    chosen = "bf16 on GPUs that have it, fp32 elsewhere" if engine.precision == "auto" else "as configured"
    yield Finding(
        "precision", OK, f"{precision}, {peak / 1e12:.2f} TFLOP/s in a large matrix product", chosen
    )


def _zero(engine: EngineConfig, world: World) -> Iterator[Finding]:
    stage = engine.stage(world)
    alone = "one rank in fp32 shares with nobody" if stage == 0 else "shares the optimiser's state"
    why = alone if engine.zero_stage == "auto" else "as configured"
    yield Finding("ZeRO", OK, f"stage {stage}, {world.size} ranks", why)


def _attention(chosen: str, world: World) -> Iterator[Finding]:
    """Yield whether each backend gives what the plain one does, on this device; only the chosen one must."""
    yield from _guarded("attention", partial(_chosen, chosen))
    for name in ATTENTIONS:
        problem = _try(name, world.device)
        state = OK if not problem else PROBLEM if name == chosen else ABSENT
        yield Finding(f"  {name}", state, "works" if not problem else "-", problem)


def _chosen(name: str) -> Iterator[Finding]:
    backend(name)  # raises for a name that is none
    why = "torch's kernels; xformers for packed rows where it works" if name == "auto" else "as configured"
    yield Finding("attention", OK, name, why)


def _try(name: str, device: torch.device) -> str:
    """Return what a backend lacks; empty where it works."""
    # xformers' flash kernels take no float32, and CPUs are slow in bf16
    precision = torch.bfloat16 if device.type == "cuda" else torch.float32
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, 16, 2, 64, generator=generator).to(device, precision) for _ in range(3)
    )
    try:
        found = ATTENTIONS[name](query, key, value, None)
    # what a library raises for a device it has no kernel for is its own
    except (MissingPackageError, RuntimeError, NotImplementedError, ValueError) as error:
        return str(error).strip().splitlines()[0]
    near = torch.allclose(found.float(), naive(query, key, value).float(), atol=2e-2)
    return "" if near else "differs from the plain attention: do not use it here"


def _shards(data: DataConfig) -> Iterator[Finding]:
    for family in open_families(data):
        bands = ", ".join(family.contract.band_names)
        for source in family.sources:
            why = f"{family.contract.sensor} {family.contract.level}, {family.contract.tile_px} px, {bands}"
            yield Finding("shards", OK, f"{source.name}: {len(source)} samples of {data.split}", why)


def _disk(output: Path) -> Finding:
    there = next(p for p in (output.absolute(), *output.absolute().parents) if p.exists())
    free_bytes = shutil.disk_usage(there).free
    used = f"{output}: {free_bytes / 1e9:.1f} GB free"
    if not os.access(there, os.W_OK) or not there.is_dir() or free_bytes < _LEAST_BYTES:
        return Finding("disk", PROBLEM, used, f"{there} cannot be written to: choose another `output`")
    return Finding("disk", OK, used, "--dry-run of a training tells what its checkpoints take")


def _tracker(uri: str) -> Finding:
    # where options follow a `?` this is no path, and the question decides
    database = Path(uri.removeprefix("sqlite:///"))
    # asking it would make the database
    if uri.startswith("sqlite:///") and "?" not in uri and not database.exists():
        return Finding("MLflow", OK, uri, "the first run makes this file")
    try:
        mlflow_client.connect(uri, retries=0, timeout_s=_ASK_S)
    except PipelineError as error:
        return Finding("MLflow", PROBLEM, uri, f"{error} Runs keep their journal; training/sync.py sends it")
    return Finding("MLflow", OK, uri, "it answers")


def _slurm() -> Finding:
    job = os.environ.get("SLURM_JOB_ID")
    inside = f"inside job {job}" if job else "outside of a job"
    if shutil.which("sbatch") is None:
        return Finding("Slurm", ABSENT, "-", "bash slurm/pretrain.sh runs the same as one process")
    try:
        asked = subprocess.run(
            ["sinfo", "--noheader", "--format=%D nodes of %P"],
            capture_output=True, text=True, check=True, timeout=_ASK_S,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return Finding("Slurm", ABSENT, "-", "sbatch is there, but sinfo has no answer: is slurmctld up?")
    return Finding("Slurm", OK, ", ".join(asked.stdout.split("\n")).strip(", "), inside)


def read(words: Sequence[str]) -> DoctorConfig:
    """Read what matters here of any training's configuration; its other keys are its entry's business."""
    given = any("=" not in word for word in words)
    path, values = COMMAND.split(words)
    tree: dict[str, Any] = apply_words(read_yaml(path) if given else {}, values)
    asked = {key: tree[key] for key in DoctorConfig.model_fields if key in tree}
    model = tree.get("model")
    if isinstance(model, dict) and "attention" in model:
        asked.setdefault("attention", model["attention"])
    return build(DoctorConfig, asked, str(path) if given else COMMAND_LINE, values)


def main(argv: Sequence[str]) -> int:
    """Run the entry; returns the exit code."""
    command = COMMAND.configured_by(DoctorConfig)
    config = read(command.parser().parse_intermixed_args(argv).words)
    found = list(findings(config, World.from_env()))
    say(table(("what", "state", "used", "why"), [(f.what, f.state, f.used, f.why or "-") for f in found]))
    wrong = [f.what.strip() for f in found if f.state == PROBLEM]
    say(f"\n{len(wrong)} problems: {', '.join(wrong)}" if wrong else "\nno problems")
    return EXIT_FAILURE if wrong else EXIT_DONE


if __name__ == "__main__":
    run(main)
