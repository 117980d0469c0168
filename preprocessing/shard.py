"""Entry: scenes of an archive to a shard set.

python preprocessing/shard.py [CONFIG.yaml] [a.b=c ...] [--dry-run | --grow | --clean]
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path

if not __package__:  # run by path: `python preprocessing/shard.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline import config, console
from pipeline import histogram as histograms
from pipeline import manifest as manifests
from pipeline.errors import (
    EXIT_DONE,
    ConfigError,
    OutputError,
    PipelineError,
    RejectedError,
)
from pipeline.lock import locked
from pipeline.manifest import Manifest, Shard
from preprocessing import (
    archive,
    assembly,
    contributions,
    finished,
    growth,
    packing,
    planning,
    quality,
    reporting,
    rounds,
    settings,
    spool,
)
from preprocessing.cluster import Pool, interruptible
from preprocessing.contributions import Contributions
from preprocessing.exclusive import Shared
from preprocessing.finding import Found, find_scenes
from preprocessing.growth import Earlier
from preprocessing.jobs import WORK_FOLDER, SceneJob
from preprocessing.readers import READERS
from preprocessing.readers.product import raster_beside
from preprocessing.rounds import Outcome
from preprocessing.settings import ShardConfig
from preprocessing.spool import Spool

TOLD = 5
"""Scenes named on the screen; the others are counted."""
COMMAND = console.Command(
    "Turn satellite scenes into a Zarr archive and WebDataset shards with a manifest. The same command again goes on\n"
    "where it stopped. On a finished set it makes again what depends on scenes whose files changed (in size or time\n"
    "of change), came or went, and does nothing where all are the same.",
    "configs/shard/default.yaml",
    "  python preprocessing/shard.py scenes=/path/to/archive output=/path/to/shards workers=4\n"
    "  python preprocessing/shard.py scenes=/path/to/archive output=/path/to/shards dask.scheduler_file=/path/to/file\n"
    "  python preprocessing/shard.py configs/shard/landsat_c2.yaml scenes=/path/to/landsat --dry-run\n"
    "  python preprocessing/shard.py scenes=/path/to/archive output=/path/to/shards select.max_cloud=0.4 --grow\n"
    "  python preprocessing/shard.py output=/path/to/shards --clean",
)


def main(argv: Sequence[str]) -> int:
    """Run the entry; returns the exit code."""
    arguments = parser().parse_intermixed_args(argv)
    path, words = COMMAND.split(arguments.words)
    request = config.load(ShardConfig, path, words)
    if request.dask.is_given:
        # workers elsewhere have a working folder of their own
        request = request.model_copy(update={"output": request.output.absolute()})
    if arguments.clean:
        finished.clean(request)
        return EXIT_DONE
    # before the lock: a dry run, and a wrong path, must not touch the output
    found = find_scenes(request, planning=arguments.dry_run and not arguments.grow)
    earlier: tuple[Earlier, ...] = ()
    if arguments.grow:
        request, found, earlier = growth.beside(request, found)
        if earlier and not found.total:
            console.say(f"no scene is new to {', '.join(e.made.name for e in earlier)}; nothing was done.")
            return EXIT_DONE
    check_labels(request, found.jobs)
    check_listed(request, found.jobs)
    if arguments.dry_run:
        show_plan(request, found)
    else:
        start(request, found, earlier)
    return EXIT_DONE


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = COMMAND.configured_by(ShardConfig).parser()
    for flag, meaning in (
        ("--dry-run", "plan: scenes, tiles, bytes, time; write nothing"),
        ("--clean", "free the archive of a finished set, keep its shards"),
        ("--grow", "put new scenes into a numbered set beside a finished one"),
    ):
        made.add_argument(flag, action="store_true", help=meaning)
    return made


def start(request: ShardConfig, found: Found, earlier: tuple[Earlier, ...]) -> None:
    """Make the set, alone on its output; raises `OutputError` where that cannot be written."""
    if found.unselected and not found.total:
        left_out = ", ".join(f"{n} {reason}" for reason, n in found.why_unselected().items())
        raise ConfigError(f"no scene is left ({left_out}): change `select`.")
    try:
        with interruptible(), locked(request.output):
            # a first try with wrong bands stores nothing, and must not block the second
            shard(request, found, settings.agree(request, finished.is_fresh(request.output)), earlier)
    except OSError as error:
        if isinstance(error, PipelineError):
            raise
        raise OutputError(
            f"cannot write to {request.output} ({error}). Free space or permissions, then start the same"
            " command again: what is finished is kept."
        ) from error


def check_labels(request: ShardConfig, jobs: Collection[SceneJob]) -> None:
    """Raise `ConfigError` where labels are asked for and no scene has a class raster."""
    # now, not after hours of work; that a raster labels anything is seen when tiles are cut
    known = any(job.scene.labels or job.scene.given.classes is not None for job in jobs)
    if request.labels and jobs and not known:
        product = next(iter(jobs)).scene.location
        where = (
            f"under `files.labels`, {request.files.labels or 'which is not set'}"
            if request.files
            else f"beside its product, as {raster_beside(product).name} beside {product.name}"
        )
        raise ConfigError(
            f"`labels` is set and none of the {len(jobs)} scenes in {request.scenes} has a class raster: put each"
            f" {where}, or take `labels` out."
        )


def check_listed(request: ShardConfig, jobs: Collection[SceneJob]) -> None:
    """Raise `ConfigError` where the set's lists are to divide the scenes and have none of them."""
    if request.split.by == "set" and jobs and not any(job.scene.given.split for job in jobs):
        source = READERS[request.reader].lists_from if request.reader in READERS else ""
        name = next(iter(jobs)).scene.given.name or next(iter(jobs)).scene.id
        raise ConfigError(
            f"`split.by` is `set` and nothing says which split {name} or any other of the {len(jobs)} scenes belongs"
            f" to: give the set's lists in `split.files`{f' (from {source})' if source else ''}, or set `split.by` to"
            " `scene`, which is no official split."
        )


def show_plan(request: ShardConfig, found: Found) -> None:
    """Tell what a run would do: all settings, as a configuration file has them, the scenes and what they cost."""
    console.say(config.dump(request))
    plan = planning.estimate(request, found)
    console.say(planning.describe(request, found, plan))
    planning.check_space(plan, request.output)


def shard(
    request: ShardConfig, found: Found, changed: Sequence[str], earlier: tuple[Earlier, ...] = ()
) -> None:
    """Make the shard set, or see that it is made."""
    begin = time.monotonic()
    if finished.is_finished(request, found):
        # a run that was killed at its very end left it
        shutil.rmtree(request.output / WORK_FOLDER, ignore_errors=True)
        console.say(finished.already(request))
        return
    moved = settings.source_changes(settings.read_sources(request.output) or found.sources, found.sources)
    if moved:
        console.say(
            f"the scenes are not those this set was made of ({moved}): the difference is made up for."
        )
    if changed:
        console.say(f"settings changed ({'; '.join(changed)}): what depends on them is made again.")
    planning.check_space(planning.estimate(request, found), request.output)
    # locks among the work: what a kill leaves of them goes with it
    locks = request.output / WORK_FOLDER / "locks"
    # first: a cluster that is not there must cost nothing
    with Pool(request.workers, Shared(locks, (request.scenes.absolute(),)), request.dask) as pool:
        # from here on the set is not whole: training must not start on it
        (request.output / manifests.NAME).unlink(missing_ok=True)
        archive.create(request.output / archive.FOLDER)
        outcome = work_scenes(request, found, pool, earlier)
        spools = [outcome.spools[name] for name in sorted(outcome.spools)]
        splits = pack(request, spools, pool)
    settings.write_sources(request.output, found.sources)
    made = finish(request, found, outcome, (splits, earlier))
    report(request, made, outcome, time.monotonic() - begin)


def work_scenes(request: ShardConfig, found: Found, pool: Pool, earlier: tuple[Earlier, ...] = ()) -> Outcome:
    """Bring all scenes to samples; raises `RejectedError` where too many cannot be used."""
    still = [r for r in found.rejections if r.tried != quality.OPENING]
    if still:
        name = request.output / quality.REJECTED
        console.say(
            f"{len(still)} scenes stay rejected; remove their lines from {name} to have them tried again."
        )
    outcome = rounds.run(found, pool, lambda job: growth.without_ground_of(earlier, found, job))
    rejections = outcome.rejections
    quality.write_rejected(request.output, rejections)
    for decision in outcome.decisions:
        console.say(decision.text)
    # a line people wrote is a wish; after all were tried: the list is complete, and what is done is kept
    failed = [r for r in rejections if r.tried]
    if len(failed) > request.allowed_rejections(found.total):
        raise RejectedError(
            f"{len(failed)} of {found.total} scenes were rejected, more than max_rejected"
            f" {request.max_rejected} allows; the first: {failed[0].reason} All reasons:"
            f" {request.output / quality.REJECTED}. Repair them or raise max_rejected."
        )
    return outcome


def pack(request: ShardConfig, spools: Sequence[Spool], pool: Pool) -> dict[str, tuple[Shard, ...]]:
    """Write all shards; returns them by split."""
    per_shard = packing.samples_per_shard(assembly.sample_bytes(request), request.shard_mb)
    plan = packing.plan(spools, request.seed, per_shard)
    if not plan.get("train"):
        dropped = quality.total_tiles([assembly.record(s) for s in spools])
        raise ConfigError(
            f"no training tile is left ({dropped}): lower `min_valid` or `min_clear`, or change `split`."
        )
    check_labelled(request, spools)
    jobs = [
        packing.PackJob(job, request.output, request.output / WORK_FOLDER)
        for part in plan.values()
        for job in part
    ]
    progress = console.Progress("shards", len(jobs), "shards")
    done: dict[str, Shard] = {}
    for result in pool.run(packing.work, jobs, lambda job: job.job.path):
        done[result.path] = result
        progress.advance()
    return {split: tuple(done[job.path] for job in part) for split, part in plan.items()}


def check_labelled(request: ShardConfig, spools: Sequence[Spool]) -> None:
    """Raise `ConfigError` where labels are asked for and no training tile has one."""
    wanted = request.labels
    if wanted and not any(s.labelled for made in spools for s in made.segments if s.split == "train"):
        last = wanted.first_code + len(wanted.classes) - 1
        raise ConfigError(
            f"no training tile of {request.scenes} has a label: nowhere does one of the values {wanted.first_code}"
            f" to {last} of the class rasters cover {wanted.min_share:.0%} of a tile. Compare `labels.first_code` and"
            " `labels.classes` with the rasters, or lower `labels.min_share`."
        )


def check_statistics(request: ShardConfig, given: Contributions) -> None:
    """Tell which scenes gave nothing to the statistics; raises `ConfigError` where none gave anything."""
    for scene, reason in list(given.left_out.items())[:TOLD]:
        console.say(
            f"warning: {scene} is left out of the statistics: {reason}. Its tiles are in the set: add it to"
            f" {request.output / quality.REJECTED} and start again to leave them out too."
        )
    if len(given.left_out) > TOLD:
        console.say(f"warning: and {len(given.left_out) - TOLD} more, see {quality.REPORT}.")
    if given.left_out and not given.total.any():
        raise ConfigError(
            f"no scene of {request.scenes} gives statistics: compare `offset` and `files.scale`."
        )


def finish(
    request: ShardConfig,
    found: Found,
    outcome: Outcome,
    packed: tuple[dict[str, tuple[Shard, ...]], tuple[Earlier, ...]],
) -> Manifest:
    """Write the quality report and, last, the manifest; then remove the work folder."""
    work_folder, (splits, earlier) = request.output / WORK_FOLDER, packed
    spools = [outcome.spools[name] for name in sorted(outcome.spools)]
    by_scene = spool.Histograms(work_folder, [made.scene for made in spools])
    given = contributions.gather(request.bands, by_scene)
    check_statistics(request, given)
    made_of = assembly.manifest(request, spools, splits, given)
    made_of = made_of.model_copy(update={"earlier": tuple(e.made.name for e in earlier)})
    histograms.write(request.output, request.bands, given.total)
    inputs = reporting.Inputs(request, made_of, spools, outcome, found, by_scene, given)
    leaks = reporting.write(inputs)["leakage"]["pairs"]
    if leaks:
        console.say(f"warning: {leaks} pairs of training and other tiles share ground, see {quality.REPORT}.")
    # before the manifest: a reader that lists the folders must not find more than it names
    packing.remove_others(request.output, [s.path for part in splits.values() for s in part])
    manifests.write(made_of, request.output)
    # after it: until the manifest stands a rerun still needs the work
    shutil.rmtree(work_folder)
    if not request.keep_zarr:
        shutil.rmtree(request.output / archive.FOLDER, ignore_errors=True)
    return made_of


def report(request: ShardConfig, made: Manifest, outcome: Outcome, seconds: float) -> None:
    """End with one table and what to do next."""
    tiles = quality.total_tiles(made.scenes)
    size = sum(s.size_bytes for part in made.splits.values() for s in part)
    rows = [["scenes", f"{len(made.scenes)}"], ["scenes rejected", f"{len(outcome.rejections)}"]]
    if outcome.decisions:
        rows.append(["duplicates left out", f"{sum(not d.kept for d in outcome.decisions)}"])
    rows += [
        [f"tiles {name}" if name in made.splits else f"dropped: {name}", f"{n}"] for name, n in tiles.items()
    ]
    if made.contract.classes:
        rows.append(["without label", f"{sum(s.unlabelled for s in made.scenes)}"])
    rows += [
        ["shards", f"{sum(map(len, made.splits.values()))}"],
        ["megabytes", f"{size / 1e6:.1f}"],
        ["seconds", f"{seconds:.1f}"],
    ]
    console.say(console.table([made.name, ""], rows))
    console.say(f"Next: {assembly.next_command(made, request.output)}")


if __name__ == "__main__":
    console.run(main)
