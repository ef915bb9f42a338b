"""Charliecloud and Podman run for real; Apptainer's command lines are only compared with text."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from conftest import require_program
from graftwerk.launch import snapshot, state
from graftwerk.launch.config import Launch
from graftwerk.launch.container import Container, folders_of, in_container, outermost
from graftwerk.launch.submit import submit
from graftwerk.pipeline import Pipeline
from graftwerk.rehearse.cluster import Cluster
from graftwerk.run import Run
from running import PYTHON, TINY, command, until

LOOK = (
    "import json, os; print(json.dumps([os.getcwd(), sorted(os.listdir('/')), dict(os.environ)]))"
)
PODMAN = ("--runtime=runc", "--ulimit=nofile=4096:4096", "--ulimit=nproc=4096:4096")
"""What Podman needs where it runs in a container itself; elsewhere it does no harm."""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system of its own, whose programs are the host's, bound to it."""
    root = tmp_path_factory.mktemp("image")
    host = {Path("/usr"), Path("/root"), tmp_path_factory.getbasetemp(), Path(sys.base_prefix)}
    for folder in [*host, Path("/etc"), Path("/proc"), Path("/dev"), Path("/sys"), Path("/tmp")]:
        (root / folder.relative_to("/")).mkdir(parents=True, exist_ok=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    for name in ("passwd", "group", "hosts", "resolv.conf"):
        (root / "etc" / name).touch()
    (root / "inside").touch()
    return root


def container(image: Path, runtime: str) -> Container:
    args = PODMAN if runtime == "podman" else ()
    facts = {"image": str(image), "runtime": runtime, "gpus": False, "args": args}
    return Container.model_validate({**facts, "binds": ("/usr",)})


@pytest.mark.parametrize(("runtime", "program"), [("charliecloud", "ch-run"), ("podman", "podman")])
def test_real_containers(runtime: str, program: str, image: Path, tmp_path: Path) -> None:
    require_program(program)
    box = container(image, runtime)
    wrap = in_container(box, workdir=tmp_path, environment={"COLOUR": "blue"})
    command = [*wrap, box.python, "-c", LOOK]
    env = os.environ | {"USER": "root", "COLOUR": "blue", "SLURM_JOB_ID": "7"}
    said = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    workdir, files, seen = json.loads(said.splitlines()[-1])
    assert workdir == str(tmp_path)
    assert "inside" in files
    assert (seen["COLOUR"], seen["SLURM_JOB_ID"]) == ("blue", "7")


@pytest.mark.parametrize(("runtime", "program"), [("charliecloud", "ch-run"), ("podman", "podman")])
def test_one_container_on_each_node(
    runtime: str, program: str, image: Path, tmp_path: Path, slurm: Cluster
) -> None:
    require_program(program)
    box = container(image, runtime)
    show = "import os; print(os.path.exists('/inside'), os.environ['SLURM_NODEID'])"
    command = [*in_container(box, workdir=tmp_path), box.python, "-c", show]
    said = slurm.run("srun", "--nodes=2", *command, env={"USER": "root"}).stdout
    assert sorted(said.splitlines()) == ["True 0", "True 1"]


@pytest.mark.parametrize(
    ("container", "expected"),
    [
        (
            Container(image="/images/graftwerk.sif"),
            "apptainer exec --nv --bind /data:/data --bind /home/ada/project:/home/ada/project "
            "--pwd /home/ada/project /images/graftwerk.sif torchrun x.py",
        ),
        (
            Container(
                image="/i/a.sif", runtime="singularity", gpus=False, binds=("/a:/b",), args=("-e",)
            ),
            "singularity exec --bind /data:/data --bind /home/ada/project:/home/ada/project "
            "--bind /a:/b --pwd /home/ada/project -e /i/a.sif torchrun x.py",
        ),
        (
            Container(image="/images/graftwerk.sqfs"),
            "ch-run --bind=/data:/data --bind=/home/ada/project:/home/ada/project "
            "--cd=/home/ada/project /images/graftwerk.sqfs -- torchrun x.py",
        ),
        (Container(), "torchrun x.py"),
    ],
)
def test_rendered_lines(container: Container, expected: str) -> None:
    home, data = Path("/home/ada/project"), [Path("/data"), Path("/data/train")]
    command = in_container(container, folders=data, workdir=home)
    assert shlex.join([*command, "torchrun", "x.py"]) == expected


def test_podman_takes_names_of_images() -> None:
    box = Container(image="registry.example/graftwerk:1")
    command = in_container(box, workdir=Path("/w"), environment={"COLOUR": "blue"})
    assert command[:2] == ["podman", "run"]
    assert command[-1] == "registry.example/graftwerk:1"
    assert {"--device=nvidia.com/gpu=all", "--env=SLURM_*", "--env=COLOUR"} <= set(command)


@pytest.mark.parametrize("bind", ["relative", "/a:/b:ro", "/a:b"])
def test_binds_that_not_every_runtime_knows(bind: str) -> None:
    with pytest.raises(ValidationError, match="should be like /host or /host:/inside"):
        Container(image="x.sif", binds=(bind,))


def test_folders_of_a_run(tmp_path: Path) -> None:
    facts = {"data": {"kind": "folder", "path": tmp_path / "images"}}
    run = Run.model_validate(facts | {"model": {"pretrained": tmp_path / "weights" / "a.pth"}})
    assert folders_of(run) == sorted(
        [tmp_path / "images", tmp_path / "weights", Path("runs").absolute()]
    )


@pytest.mark.parametrize(("runtime", "program"), [("charliecloud", "ch-run"), ("podman", "podman")])
def test_a_submitted_run_is_trained_in_its_container(
    runtime: str,
    program: str,
    image: Path,
    tmp_path: Path,
    slurm: Cluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The program in the job is a stand-in that needs Python alone."""
    require_program(program)
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copy(Path(__file__).with_name("payload.py"), package / "__main__.py")
    monkeypatch.setattr(snapshot, "PACKAGE", package)
    for name, value in slurm.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    run = Run(name="boxed", launch=Launch(container=container(image, runtime)))
    assert submit(Pipeline.of(run), "boxed", [], dry_run=False) == 0

    def finished() -> bool:
        return state.status(run.folder, {}).state == "finished"

    logs = Path("runs/sweeps")
    until(finished, tell=lambda: [path.read_text() for path in logs.glob("*/logs/*.out")])


def test_charliecloud_trains(image: Path, tmp_path: Path, slurm: Cluster) -> None:
    """The image has nothing but the host's Python, and torch, at their own places."""
    require_program("ch-run")
    prefix = Path(sys.prefix).resolve()
    host = outermost([Path("/usr"), prefix, Path(sys.base_prefix)])
    for folder in host:
        (image / folder.relative_to("/")).mkdir(parents=True, exist_ok=True)
    keys = {"image": image, "runtime": "charliecloud", "gpus": "false"}
    keys |= {"python": prefix / "bin" / "python"}
    keys["binds"] = json.dumps([str(folder) for folder in host])
    words = [f"launch.container.{key}={value}" for key, value in keys.items()]
    slurm.run(*command("run", TINY, "steps=1", "--on=slurm", *words), env=PYTHON, cwd=tmp_path)
    (run,) = tmp_path.glob("runs/tiny-*")
    attempts = run / "attempts.jsonl"
    until(lambda: attempts.exists() and "ended" in attempts.read_text())
    said = [path.read_text() for path in tmp_path.glob("runs/sweeps/*/logs/*.out")]
    assert state.status(run, {}).state == "finished", said
