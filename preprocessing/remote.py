"""Dask clusters that are there already: reached in bounded time, and refused where they would not give the same bytes."""

from __future__ import annotations

import importlib
import json
import logging
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, ValidationInfo, field_validator

from pipeline import console
from pipeline.config import ROOT, Config, UserPath
from pipeline.errors import ClusterError, MissingInputError
from preprocessing.exclusive import Shared

GONE = (
    "the Dask scheduler is gone, and with it the work in hand. Start the same command again to go on: what is finished"
    " is kept."
)
CONNECT_S = 30.0
WORKERS_S = 60.0
"""How long a cluster may be without any worker."""
PACKAGES = ("dask", "distributed", "numpy", "numcodecs", "zarr", "rasterio")
"""Decide the bytes of a shard, or what a job looks like on its way: equal here and there."""


class DaskConfig(Config):
    """A Dask cluster that is running already; without one `workers` are started on this machine."""

    scheduler_file: UserPath | None = None
    """File in which the scheduler says where it listens (`dask scheduler --scheduler-file`)."""
    address: str | None = Field(default=None, min_length=1, validate_default=True)
    """Where the scheduler listens: `tcp://host:8786`; instead of `scheduler_file`."""

    @field_validator("address")
    @classmethod
    def _only_one(cls, address: str | None, earlier: ValidationInfo) -> str | None:
        if address and earlier.data.get("scheduler_file"):
            raise ValueError("`dask.scheduler_file` names the scheduler already; give one of them")
        return address

    @property
    def is_given(self) -> bool:
        """Whether there is a cluster to connect to."""
        return bool(self.scheduler_file or self.address)

    def scheduler(self) -> str:
        """Return the scheduler's address; raises `MissingInputError` where its file does not tell."""
        if self.address:
            return self.address
        try:
            return str(json.loads(Path(self.scheduler_file or "").read_text(encoding="utf-8"))["address"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise MissingInputError(
                f"no scheduler can be found by {self.scheduler_file} (`dask.scheduler_file`: {error}). Start one with"
                " `dask scheduler --scheduler-file FILE`, or leave the key out to work on this machine."
            ) from error


def distributed() -> Any:
    """Import Dask's scheduler, half a second, only where workers are wanted; its log stays silent."""
    importlib.import_module("dask").config.set({"logging": {"distributed": "critical"}})
    module = importlib.import_module("dask.distributed")
    for name in ("distributed", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return module


def connect(asked: DaskConfig, shared: Shared) -> Any:
    """Return a client of a running cluster whose workers can do this run's work.

    Raises `ClusterError` saying what is wrong: nobody answers, no worker, other packages or another version of the
    project than here, or a worker that does not see the files.
    """
    address = asked.scheduler()
    with ExitStack() as opened:
        client = opened.enter_context(_client(address))
        require_workers(client, address)
        _refuse(address, _differences(client.get_versions(packages=PACKAGES)))
        # stays with the scheduler, for workers that join later
        client.register_plugin(_finds_project())
        told = client.run(caller(), pack(shared.problem), on_error="return")
        _refuse(address, {worker: why for worker, said in told.items() if (why := in_words(said))})
        console.say(f"dask: {_counted(client.nthreads())}, scheduler {address}")
        opened.pop_all()
    return client


def _client(address: str) -> Any:
    dask = distributed()
    try:
        with warnings.catch_warnings():
            # versions are compared below, in words
            mismatch = importlib.import_module("distributed.versions").VersionMismatchWarning
            warnings.simplefilter("ignore", mismatch)
            return dask.Client(address, timeout=CONNECT_S)
    # no such scheme or host, nobody listens, or somebody who is no scheduler
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"no Dask scheduler answers at {address} within {CONNECT_S:g} s. Is it running, and may this machine"
            " reach it? Without `dask` the work is done on this machine."
        ) from error


def require_workers(client: Any, address: str) -> None:
    """Wait for a worker; raises `ClusterError` where none comes, or the scheduler is gone."""
    try:
        client.wait_for_workers(1, timeout=WORKERS_S)
    except TimeoutError as error:
        raise ClusterError(
            f"the Dask scheduler at {address} has no worker, for {WORKERS_S:g} s now. Start some:"
            f" `dask worker {address} --nthreads 1`. What is finished is kept."
        ) from error
    # the connection broke in the middle of the question
    except OSError as error:
        raise ClusterError(GONE) from error


def _counted(threads: dict[str, int]) -> str:
    """Say how many workers there are as yet, from their addresses and numbers of threads."""
    hosts = {urlsplit(worker).hostname for worker in threads}
    said = f"{len(threads)} workers on {len(hosts)} hosts so far"
    several = [n for n in threads.values() if n > 1]
    # harmless but for memory
    return f"{said}, with up to {max(several)} scenes at once in each" if several else said


def pack(function: Callable[..., Any], *arguments: Any) -> bytes:
    """Pack a call of a function of this project for `caller`."""
    return pickle.dumps((function, arguments))


def caller() -> Callable[[bytes], Any]:
    """Return a function that makes a packed call; made here it travels by value.

    A scheduler opens what it is given to hand on, and need not be able to import the project.
    """

    def call(packed: bytes) -> Any:
        # from our own client, like all that Dask moves
        function, arguments = pickle.loads(packed)  # noqa: S301
        return function(*arguments)

    return call


def _finds_project() -> Any:
    """Return a plugin by which workers can import the project where they see its folder."""
    root = str(ROOT)

    def setup(plugin: object, worker: object) -> None:
        if root not in sys.path:
            sys.path.insert(0, root)

    # a class made here travels by value: whoever cannot import the project can still load it
    base = distributed().WorkerPlugin
    return type("FindsProject", (base,), {"setup": setup, "name": "spectral-project"})()


def _differences(versions: Any) -> dict[str, str]:
    """Return worker -> the first package that is another than here."""
    ours = versions["client"]["packages"]
    # one that ended meanwhile says nothing
    theirs = {w: v["packages"] for w, v in versions["workers"].items() if v}
    wrong = {w: next(_unequal(ours, packages, ("python", *PACKAGES)), "") for w, packages in theirs.items()}
    # the scheduler only hands jobs on
    scheduler = next(_unequal(ours, versions["scheduler"]["packages"], ("python", *PACKAGES[:2])), "")
    return {who: why for who, why in {"the scheduler": scheduler, **wrong}.items() if why}


def _unequal(ours: dict[str, str], theirs: dict[str, str], names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        here, there = (_version(name, packages.get(name)) for packages in (ours, theirs))
        if here != there:
            yield f"has {name} {there} and not {here}: start it in the environment of this process, {sys.prefix}"


def _version(name: str, found: str | None) -> str:
    # 3.11.2 and 3.11.9 understand each other
    return ".".join(found.split(".")[:2]) if found and name == "python" else found or "missing"


def in_words(said: Any) -> str:
    """Say what keeps a worker from taking part, from what it said or what happened to it."""
    if isinstance(said, ImportError):
        return f"cannot load the project ({said}): it must see {ROOT}, or have the project installed"
    return str(said)


def _refuse(address: str, problems: dict[str, str]) -> None:
    if problems:
        who, why = next(iter(problems.items()))
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ClusterError(f"of the Dask cluster at {address}, {who}{more} {why}.")
