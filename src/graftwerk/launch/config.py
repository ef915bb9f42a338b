"""Config of the launcher: where and how a run is started, never what is trained."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from graftwerk import config
from graftwerk.config import Node, Plain, nearest
from graftwerk.errors import ConfigError
from graftwerk.launch.container import Container

PROFILES = "GRAFTWERK_CLUSTERS"
"""The environment variable that names another file of profiles."""


def _duration(text: str) -> str:
    """Slurm's spellings; raises ValueError for others."""
    seconds_of(text)
    return text


def seconds_of(limit: str) -> int:
    """Of Slurm's ``MINUTES``, ``M:S``, ``H:M:S``, ``D-H``, ``D-H:M`` and ``D-H:M:S``."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", limit.strip())
    if match is None:
        raise ValueError(f"should be like '30', '12:00:00' or '2-00:00:00' (got {limit!r})")
    days, *parts = (int(part) if part else None for part in match.groups())
    numbers = [part for part in parts if part is not None]
    if days is None and len(numbers) < 3:
        numbers = [0, *numbers]
    hours, minutes, seconds = [*numbers, 0, 0][:3]
    return (((days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


class Slurm(Node):
    """A job of Slurm. What is unset is the site's default."""

    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    exclude: str | None = None
    """Nodes that are not wanted: ``gpu[07-09]``."""
    nodes: int = Field(default=1, ge=1)
    gpus: int = Field(default=0, ge=0)
    """Of each node; as many processes are started there. 0: `processes` of them, on the CPU."""
    cpus: int | None = Field(default=None, ge=1)
    """Of each node."""
    memory: str | None = Field(default=None, pattern=r"^\d+[KMGT]?$")
    """Of each node: ``64G``."""
    time: Annotated[str, AfterValidator(_duration)] | None = None
    """The limit of one attempt: minutes, ``H:M:S`` or ``D-H:M:S``."""
    signal: int = Field(default=120, ge=1, le=65535)
    """Seconds before the limit at which the run is asked to save and to queue again."""
    deadline: int = Field(default=30, ge=1)
    """Seconds before the limit at which a run that did not end is killed, and queued again."""
    throttle: int | None = Field(default=None, ge=1)
    """So many elements of a job array run at a time."""
    mail: str | None = None
    """An address that hears of the ends of jobs."""
    modules: tuple[str, ...] = ()
    """For ``module load``."""
    conda: str | None = None
    """The name or folder of an environment to activate."""
    venv: Path | None = None
    """The folder of a virtual environment to activate."""
    setup: tuple[str, ...] = ()
    """Shell lines that run before training, after the environment is active."""
    environment: dict[str, str] = Field(default_factory=dict)
    extra: dict[str, str | bool] = Field(default_factory=dict)
    """Any other option of sbatch by its long name: ``extra.gres=gpu:a100:4``; true: a bare one."""


class Launch(Node):
    """Where and how: none of it counts in a run's name."""

    profile: str | None = None
    """A table of the file of profiles, whose keys stand for what is not set here."""
    pack: int = Field(default=1, ge=1)
    """Runs that share a job, and its GPU, at a time."""
    attempts: int = Field(default=30, ge=1)
    """Starts of a run, after which it isn't queued again by itself."""
    slurm: Slurm = Slurm()
    container: Container = Container()

    host: str | None = None
    """The login node that `--at PROFILE` works on: ``user@login``, or a name of ssh's config."""
    storage: Path | None = None
    """The folder there in which each working folder gets one of its own name."""
    leave_out: tuple[str, ...] = ()
    """Patterns of rsync for files that stay here, beside what git ignores."""
    ssh: str = "ssh"
    """The command that connects, with options of one's own."""


def profiles_file() -> Path:
    named = os.environ.get(PROFILES)
    home = Path(os.environ.get("XDG_CONFIG_HOME", "~/.config")).expanduser()
    return Path(named) if named else home / "graftwerk" / "clusters.toml"


def with_profile(launch: Launch) -> Launch:
    """`launch` with its profile's keys where it sets none itself.

    Raises ConfigError for an unknown profile, and for unknown keys in it.
    """
    if launch.profile is None:
        return launch
    file = profiles_file()
    try:
        profiles = tomllib.loads(file.read_text())
    except FileNotFoundError:
        raise ConfigError(
            [f"launch.profile: {file} does not exist ({PROFILES} names it)"]
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError([f"{file}: can't be read ({error})"]) from None
    if launch.profile not in profiles:
        known = nearest(launch.profile, profiles) or f"; there are: {', '.join(profiles) or 'none'}"
        raise ConfigError([f"launch.profile: no {launch.profile!r} in {file}{known}"])
    own = config.dump(launch, explicit=True)
    try:
        return config.load(Launch, _merged(profiles[launch.profile], own))
    except ConfigError as error:
        lines = [f"{file}: {launch.profile}.{problem}" for problem in error.problems]
        raise ConfigError(lines) from None


def _merged(base: Plain, over: Mapping[str, Any]) -> Plain:
    both = dict(base)
    for key, value in over.items():
        nested = isinstance(value, Mapping) and isinstance(both.get(key), dict)
        both[key] = _merged(both[key], value) if nested else value
    return both
