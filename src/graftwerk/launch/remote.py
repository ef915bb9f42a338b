"""From a laptop: the same commands on a cluster's login node, over one ssh connection.

A profile with `launch.host` and `launch.storage` stands for a cluster elsewhere. The working folder
travels by rsync to ``STORAGE/NAME``, NAME being its own, and graftwerk with it; there the command
itself is run. All state stays there, so the connection may close and the laptop sleep.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import graftwerk
from graftwerk.errors import DONE, ConfigError, GraftwerkError
from graftwerk.launch.config import PROFILES, Launch, profiles_file, with_profile
from graftwerk.launch.script import preparation

PACKAGE = Path(graftwerk.__file__).parent
INSIDE = ".graftwerk"
"""In the project's folder there: the package and the profiles."""
UNREACHABLE = 255
LARGEST_FILE = "2m"
"""What is larger is no code."""


def there(profile: str, words: Sequence[str]) -> int:
    """``graftwerk --at PROFILE *words``: run ``graftwerk *words`` on its host; the exit code.

    ``run`` sends the working folder first. ``--out FILE`` of ``results`` is written here.

    Raises ConfigError for a profile without host or storage, GraftwerkError where the host can't be
    reached or has no room.
    """
    launch = with_profile(Launch(profile=profile))
    host = Host(launch)
    if words[0] == "run":
        host.send(Path.cwd())
        words = [*words, "--on=slurm", f"launch.profile={profile}"]
    words, out = _without_out(words)
    kept = f"{INSIDE}/{out.name}" if out else ""
    code = host.graftwerk([*words, f"--out={kept}"] if out else words)
    if out and code == DONE:
        host.fetch(kept, out)
    return code


class Host:
    """A login node, and the folder there that belongs to the working folder here."""

    def __init__(self, launch: Launch) -> None:
        if launch.host is None or launch.storage is None:
            missing = "host" if launch.host is None else "storage"
            name = launch.profile
            problem = f"launch.{missing}: profile {name!r} needs host and storage for --at"
            raise ConfigError([problem])
        for program in ("ssh", "rsync"):
            if shutil.which(program) is None:
                raise GraftwerkError(f"{program}: not installed on this machine; --at needs it")
        self.launch, self.name = launch, launch.host
        self.folder = launch.storage / Path.cwd().name

    def send(self, workdir: Path) -> None:
        """Make the folder there a copy of `workdir`, but for what git ignores and `leave_out`."""
        self._run(*self._ssh, self.name, f"mkdir -p {shlex.quote(str(self.folder / INSIDE))}")
        to = f"{self.name}:{self.folder}"
        left = [".git", f"/{INSIDE}", "/runs", "__pycache__", *self.launch.leave_out]
        patterns = [f"--exclude={pattern}" for pattern in left]
        ignored = [f"--max-size={LARGEST_FILE}", "--filter=:- .gitignore"]
        self._rsync("--delete", *patterns, *ignored, f"{workdir}/", f"{to}/")
        package = [str(PACKAGE), str(profiles_file())]
        self._rsync("--delete", "--exclude=__pycache__", *package, f"{to}/{INSIDE}/")

    def graftwerk(self, words: Sequence[str]) -> int:
        """``graftwerk *words`` in the folder there, in the environment that the jobs have too."""
        slurm = self.launch.slurm
        python = "python" if slurm.conda or slurm.venv else "python3"
        inside = self.folder / INSIDE
        variables = {"PYTHONPATH": inside, PROFILES: inside / profiles_file().name}
        script = [
            f"cd {shlex.quote(str(self.folder))} || exit 2",
            # Git tells code from what is ignored, for the snapshot of each submission.
            "[ -d .git ] || git init --quiet 2>/dev/null",
            f"[ ! -d .git ] || printf '/{INSIDE}\\n/runs\\n__pycache__\\n' > .git/info/exclude",
            *preparation(slurm),
            *(f"export {name}={shlex.quote(str(value))}" for name, value in variables.items()),
            f"exec {python} -m graftwerk {shlex.join(words)}",
        ]
        command = f"bash -lc {shlex.quote(chr(10).join(script))}"
        code = subprocess.run([*self._ssh, self.name, command], check=False).returncode
        if code == UNREACHABLE:
            raise GraftwerkError(f"{self.name}: the connection failed; see what ssh said")
        return code

    def fetch(self, path: str, to: Path) -> None:
        self._rsync(f"{self.name}:{self.folder}/{path}", str(to))

    @property
    def _ssh(self) -> list[str]:
        """One connection for all commands, which stays for ten minutes."""
        runtime = os.environ.get("XDG_RUNTIME_DIR")
        socket = Path(runtime) if runtime else Path.home() / ".ssh"
        socket.mkdir(mode=0o700, exist_ok=True)
        master = ["ControlMaster=auto", "ControlPersist=600", f"ControlPath={socket}/gw-%C"]
        return [*shlex.split(self.launch.ssh), *(w for option in master for w in ("-o", option))]

    def _rsync(self, *words: str) -> None:
        self._run("rsync", "--archive", "--compress", f"--rsh={shlex.join(self._ssh)}", *words)

    def _run(self, *command: str) -> None:
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise GraftwerkError(f"{self.name}: {command[0]} failed: {done.stderr.strip()}")


def _without_out(words: Sequence[str]) -> tuple[list[str], Path | None]:
    """`words` without ``--out FILE``, and FILE."""
    rest: list[str] = []
    out: Path | None = None
    given = iter(words)
    for word in given:
        if word == "--out":
            out = Path(next(given))
        elif word.startswith("--out="):
            out = Path(word.removeprefix("--out="))
        else:
            rest.append(word)
    return rest, out
