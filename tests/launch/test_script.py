"""The rendered job script, profiles of clusters, and the snapshot of the code."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from graftwerk.cli import main
from graftwerk.errors import ConfigError
from graftwerk.launch import snapshot
from graftwerk.launch.config import Launch, Slurm, seconds_of, with_profile
from graftwerk.launch.script import Job, render
from graftwerk.run import Run

ME = {f"GIT_{who}_{what}": "a@b.c" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def script(
    launch: Launch, *, processes: int = 1, count: int = 1, wrap: tuple[str, ...] = ()
) -> str:
    folder = Path("/work dir")
    job = Job("name", launch, processes, folder / "1.txt", count, folder, folder, Path("/code"))
    text = render(job, "python3", wrap)
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    return text


def test_every_key_is_an_option_of_sbatch() -> None:
    slurm = Slurm.model_validate(
        {
            "account": "a1", "partition": "gpu", "qos": "long", "constraint": "a100", "nodes": 16,
            "gpus": 8, "cpus": 64, "memory": "480G", "time": "2-00:00:00", "exclude": "g[1-3]",
            "reservation": "r", "mail": "me@x.org", "throttle": 20, "modules": ["cuda/12"],
            "venv": "/env", "setup": ["ulimit -n 4096"], "environment": {"NAME": "two words"},
            "extra": {"gres": "tmp:10G", "exclusive": True, "contiguous": False},
        }
    )  # fmt: skip
    lines = script(Launch(slurm=slurm), processes=8, count=550).splitlines()
    options = {line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")}
    assert options == {
        "job-name=name", "array=0-549%20", "output=/work dir/%A_%a.out", "open-mode=append",
        "requeue", "account=a1", "partition=gpu", "qos=long", "constraint=a100", "reservation=r",
        "exclude=g[1-3]", "nodes=16", "ntasks-per-node=1", "gpus-per-node=8", "cpus-per-task=64",
        "mem=480G", "time=2-00:00:00", "signal=USR2@120", "mail-user=me@x.org",
        "mail-type=END,FAIL", "gres=tmp:10G", "exclusive",
    }  # fmt: skip
    order = ["module load cuda/12", "source /env/bin/activate", "export NAME='two words'"]
    assert [lines.index(line) for line in [*order, "ulimit -n 4096"]] == sorted(
        lines.index(line) for line in [*order, "ulimit -n 4096"]
    )
    text = "\n".join(lines)
    assert "cd '/work dir' || exit 2" in text
    assert "srun --nodes=16 --ntasks=16 --ntasks-per-node=1 --kill-on-bad-exit=1" in text
    assert "--nnodes=16 --nproc-per-node=8" in text
    assert '--rdzv-backend=c10d --rdzv-id="$job" --rdzv-endpoint="$head:$port"' in text
    assert f"limit={2 * 86400 - 30} " in text


def test_one_process_needs_no_torchrun_and_a_wrapper_comes_before_it() -> None:
    text = script(Launch(pack=8), count=20, wrap=("apptainer", "exec", "my image.sif"))
    assert "torchrun --" not in text
    assert "#SBATCH --array=0-2\n" in text
    assert "apptainer exec 'my image.sif' \\\n        python3 -m graftwerk run" in text
    assert "--overlap" in text


def test_runs_that_share_a_job_meet_at_ports_of_their_own() -> None:
    text = script(Launch(pack=4), processes=2, count=4)
    head = text[text.index("port=") : text.index("  # of the first run")]
    loop = text[text.index("children=()") : text.index("again= failure")]
    tell = 'runs=(a b c)\nattempt() { echo "$1 $2"; }\n'
    env = {"SLURM_JOB_ID": "66999999"}
    said = subprocess.run(
        ["bash"],
        input=f"{tell}{head}\n{loop}\nwait",
        env=env,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    port = 10000 + 4 * 66999999 % 20000
    assert sorted(said.splitlines()) == [f"a {port}", f"b {port + 1}", f"c {port + 2}"]


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [("30", 1800), ("1:30", 90), ("2:00:00", 7200), ("1-0", 86400), ("1-2:30", 95400)],
)
def test_time_limits_are_spelled_as_in_slurm(limit: str, seconds: int) -> None:
    assert seconds_of(limit) == seconds


def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> Path:
    file = tmp_path / "clusters.toml"
    file.write_text(text)
    monkeypatch.setenv("GRAFTWERK_CLUSTERS", str(file))
    return file


def test_a_profile_stands_for_what_is_not_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = '[big]\nattempts = 5\n[big.slurm]\npartition = "gpu"\nnodes = 4\nextra = {gres = "x"}\n'
    profiles(tmp_path, monkeypatch, text)
    launch = with_profile(Launch(profile="big", slurm=Slurm(nodes=2)))
    assert (launch.slurm.partition, launch.slurm.nodes, launch.attempts) == ("gpu", 2, 5)
    assert launch.slurm.extra == {"gres": "x"}
    assert Run(launch=launch).hash == Run().hash


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[bigg]", "launch.profile: no 'big' in FILE; did you mean 'bigg'?"),
        ("[big.slurm]\nnode = 3", "FILE: big.slurm.node: unknown key; did you mean 'nodes'?"),
        ("[big", "FILE: can't be read ("),
        (None, "launch.profile: FILE does not exist (GRAFTWERK_CLUSTERS names it)"),
    ],
)
def test_mistakes_in_profiles_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, said: str
) -> None:
    file = profiles(tmp_path, monkeypatch, text or "")
    if text is None:
        file.unlink()
    with pytest.raises(ConfigError) as error:
        with_profile(Launch(profile="big"))
    assert str(error.value).startswith(said.replace("FILE", str(file)))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("launch.slurm.nodes=0", "launch.slurm.nodes: should be at least 1 (got 0)"),
        ("launch.slurm.memory=lots", "launch.slurm.memory: "),
        ("launch.slurm.time=soon", "launch.slurm.time: should be like '30', '12:00:00'"),
        ("launch.slurm.gpu=1", "launch.slurm.gpu: unknown key; did you mean 'gpus'?"),
    ],
)
def test_impossible_resources_are_refused(
    capsys: pytest.CaptureFixture[str], word: str, said: str
) -> None:
    assert main(["run", "digits", "--on", "slurm", "--dry-run", word]) == 2
    assert said in capsys.readouterr().err


def test_dry_run_prints_the_scripts_of_a_graph_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "spark_digits", "--on", "slurm", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("#!/bin/bash") == 2
    assert "#SBATCH --dependency=afterok:JOB_OF_pretrain" in shown
    assert "#SBATCH --kill-on-invalid-dep=yes" in shown
    assert main(["run", "spark_digits", "--dry-run"]) == 0
    assert "stage 2  finetune  ← pretrain" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_snapshot_is_what_git_would_know(tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / "runs").mkdir(parents=True)
    for name in ("kept.py", "changed.py", "ignored.py", "new.py", "runs/log.txt"):
        (work / name).write_text("before")
    (work / ".gitignore").write_text("ignored.py")
    (work / "data.bin").write_bytes(bytes(snapshot.LARGEST_FILE + 1))
    for command in (["init"], ["add", "kept.py", "changed.py"], ["commit", "-m", "x"]):
        subprocess.run(["git", *command], cwd=work, env=os.environ | ME, check=True)
    (work / "changed.py").write_text("after")
    code = snapshot.snapshot(work, tmp_path, without=work / "runs")
    found = {path.name for path in (code / "tree").rglob("*") if path.is_file()}
    assert found == {"kept.py", "changed.py", "new.py", ".gitignore"}
    assert (code / "tree/changed.py").read_text() == "after"
    assert (code / "graftwerk/cli.py").exists()
    assert snapshot.snapshot(work, tmp_path, without=work / "runs") == code
    (work / "changed.py").write_text("later")
    assert snapshot.snapshot(work, tmp_path, without=work / "runs") != code


def test_more_code_than_any_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("1")
    monkeypatch.setattr(snapshot, "LARGEST", 10)
    with pytest.raises(ConfigError, match=r"MiB of code.*\.gitignore"):
        snapshot.snapshot(tmp_path, tmp_path / "to", without=tmp_path / "runs")
