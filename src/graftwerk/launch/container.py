"""The command line that runs a command in a container: Apptainer, Charliecloud or Podman.

The process group is made outside: Slurm starts one container per node, and everything in it sees
the host's network, the host's addresses and the environment of the job.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from graftwerk.config import Node
from graftwerk.paths import paths

Runtime = Literal["apptainer", "singularity", "charliecloud", "podman"]
FILES = {".sif": "apptainer", ".sqfs": "charliecloud", ".squashfs": "charliecloud"}
PASSED_ON = (
    *("SLURM_*", "GRAFTWERK_*", "MASTER_*", "RANK", "WORLD_SIZE", "LOCAL_*", "GROUP_*"),
    *(
        "TORCH*",
        "PET_*",
        "NCCL_*",
        "GLOO_*",
        "CUDA_*",
        "OMP_*",
        "PYTHON*",
        "WANDB_*",
        "TRACKIO_*",
    ),
)
"""Variables that Podman hands on; the others hand on all of them."""


class Container(Node):
    """`image` is a .sif or .sqfs file, an unpacked folder, or the name of a Podman image."""

    main = "image"

    image: str | None = None
    """Unset: no container."""
    runtime: Runtime | Literal["auto"] = "auto"
    """auto: Apptainer for .sif, Charliecloud for .sqfs and folders, else Podman."""
    binds: tuple[str, ...] = ()
    """HOST or HOST:INSIDE, beside the folders that the run's own keys name."""
    gpus: bool = True
    """Hand the GPUs in (`--nv`); Charliecloud's images are prepared by `ch-fromhost`."""
    python: str = "python3"
    """The interpreter inside, with graftwerk's dependencies."""
    args: tuple[str, ...] = Field(default=())
    """Further arguments of the runtime, before the image."""

    @field_validator("binds")
    @classmethod
    def _two_parts(cls, binds: tuple[str, ...]) -> tuple[str, ...]:
        for bind in binds:
            if len(bind.split(":")) > 2 or not all(
                part.startswith("/") for part in bind.split(":")
            ):
                raise ValueError(f"should be like /host or /host:/inside (got {bind!r})")
        return binds

    @property
    def program(self) -> Runtime:
        if self.runtime != "auto":
            return self.runtime
        image = Path(self.image or "")
        if image.suffix in FILES:
            return "apptainer" if FILES[image.suffix] == "apptainer" else "charliecloud"
        return "charliecloud" if image.is_dir() else "podman"


def in_container(
    container: Container,
    *,
    folders: Iterable[Path] = (),
    workdir: Path,
    environment: Mapping[str, str] | None = None,
) -> list[str]:
    """What stands before a command that runs in `container`; nothing where no image is given.

    `folders` and `workdir` are seen inside under their own paths. `environment` names variables
    of the job, which the runtime must let in.
    """
    if container.image is None:
        return []
    own = [str(folder) for folder in outermost([*folders, workdir])]
    binds = [bind if ":" in bind else f"{bind}:{bind}" for bind in [*own, *container.binds]]
    wrap = {"charliecloud": _charliecloud, "podman": _podman}.get(container.program, _apptainer)
    return wrap(container, binds, str(workdir), list(environment or ()))


def _apptainer(c: Container, binds: list[str], workdir: str, names: list[str]) -> list[str]:
    del names
    words = [c.program, "exec", *(["--nv"] if c.gpus else [])]
    words += [word for bind in binds for word in ("--bind", bind)]
    return [*words, "--pwd", workdir, *c.args, _place(c)]


def _charliecloud(c: Container, binds: list[str], workdir: str, names: list[str]) -> list[str]:
    del names
    words = ["ch-run", *(f"--bind={bind}" for bind in binds), f"--cd={workdir}"]
    return [*words, *c.args, _place(c), "--"]


def _podman(c: Container, binds: list[str], workdir: str, names: list[str]) -> list[str]:
    """The process namespace is the host's too, so that signals of Slurm's steps arrive."""
    words = ["podman", "run", "--rm", "--network=host", "--ipc=host", "--pid=host"]
    words += ["--device=nvidia.com/gpu=all"] if c.gpus else []
    words += [f"--volume={bind}" for bind in binds]
    words += [f"--env={name}" for name in (*PASSED_ON, *names)]
    place = _place(c)
    words += [f"--workdir={workdir}", *c.args]
    return [*words, "--rootfs", place] if Path(place).is_dir() else [*words, place]


def _place(container: Container) -> str:
    """A file or folder by its absolute path: jobs start elsewhere."""
    image = Path(container.image or "")
    return str(image.absolute()) if image.suffix in FILES or image.is_dir() else str(image)


def folders_of(tree: Node) -> list[Path]:
    """The absolute folders that the paths in a config tree name, or that hold the files."""
    found = [path.absolute() for _, path in paths(tree)]
    return outermost([path.parent if path.suffix else path for path in found])


def outermost(folders: Iterable[Path]) -> list[Path]:
    """`folders` without those that lie in another, sorted."""
    kept: list[Path] = []
    for folder in sorted(set(folders)):
        if not any(folder.is_relative_to(other) for other in kept):
            kept.append(folder)
    return kept
