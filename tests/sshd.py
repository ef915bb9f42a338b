"""A real sshd on the loopback address, whose logins see a private Slurm."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from conftest import SEARCH
from graftwerk.ports import free_port
from running import until

PROGRAMS = ("sshd", "ssh", "ssh-keygen", "rsync")
SERVER = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
SetEnv {variables}
"""
CLIENT = """\
Host login
    HostName 127.0.0.1
    Port {port}
    User {user}
    IdentityFile {folder}/user
    IdentitiesOnly yes
    StrictHostKeyChecking no
    UserKnownHostsFile {folder}/known
    LogLevel ERROR
"""


@contextmanager
def private_sshd(folder: Path, variables: Mapping[str, str]) -> Generator[Path]:
    """The client's config file, in which the host is called `login`."""
    folder.mkdir()
    for name in ("host", "user"):
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(keygen, check=True)
    port = free_port()
    settings = " ".join(f"{name}={value}" for name, value in variables.items())
    (folder / "sshd_config").write_text(SERVER.format(port=port, folder=folder, variables=settings))
    config = folder / "config"
    config.write_text(CLIENT.format(port=port, folder=folder, user=getpass.getuser()))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd confines itself
    program = shutil.which("sshd", path=SEARCH)
    assert program is not None
    server = subprocess.Popen([program, "-D", "-e", "-f", str(folder / "sshd_config")])
    try:
        login = ["ssh", "-F", config, "login", "true"]
        until(lambda: subprocess.run(login, check=False).returncode == 0, server)
        yield config
    finally:
        server.terminate()
        server.wait()
