"""Machines that are namespaces: each has an address, a hostname and a cable that can be pulled.

Needs root and iproute2. The machines of one rehearsal see each other and nothing else:
10.79.0.254 is `head`, 10.79.0.1 and up are `n1` and up, all behind one switch on `head`.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from graftwerk.rehearse.conf import HEAD
from graftwerk.rehearse.processes import SEARCH, RehearsalError, missing

PROGRAMS = ("ip", "nsenter", "unshare", "mount", "hostname")
ENTER = 'mount --bind "$1" /etc/hosts && hostname "$0" && shift && exec "$@"'


class Machines:
    """`head` and `names` as machines of their own; `folder` holds their /etc/hosts."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.names = list(names)
        self._hosts = folder / "hosts"
        self._mark = hashlib.sha256(str(folder).encode()).hexdigest()[:8]

    @staticmethod
    def check() -> None:
        if os.geteuid() != 0:
            raise RehearsalError(
                "machines with addresses of their own need root; without --machines the nodes "
                "share this machine's address, and an ordinary user can start them"
            )
        if lacking := missing(PROGRAMS):
            raise RehearsalError(f"{', '.join(lacking)}: not installed (iproute2, util-linux)")

    def address(self, name: str) -> str:
        return f"10.79.0.{254 if name == HEAD else 1 + self.names.index(name)}"

    def up(self) -> None:
        hosts = ["127.0.0.1 localhost"]
        hosts += [f"{self.address(name)} {name}" for name in [HEAD, *self.names]]
        self._hosts.write_text("\n".join(hosts) + "\n")
        for name in [HEAD, *self.names]:
            _ip("netns", "add", self._namespace(name))
            self._on(name, "link", "set", "lo", "up")
        self._on(HEAD, "link", "add", "switch", "type", "bridge")
        self._on(HEAD, "addr", "add", f"{self.address(HEAD)}/24", "dev", "switch")
        self._on(HEAD, "link", "set", "switch", "up")
        for name in self.names:
            other = ["peer", "name", "eth0", "netns", self._namespace(name)]
            self._on(HEAD, "link", "add", f"to-{name}", "type", "veth", *other)
            self._on(HEAD, "link", "set", f"to-{name}", "master", "switch", "up")
            self._on(name, "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
            self._on(name, "link", "set", "eth0", "up")

    def down(self) -> None:
        for name in [HEAD, *self.names]:
            ended = ["ip", "netns", "del", self._namespace(name)]
            subprocess.run(ended, env={"PATH": SEARCH}, capture_output=True, check=False)

    def cable(self, name: str, *, plugged: bool) -> None:
        """Pull the cable between a machine and the switch, or put it back."""
        self._on(HEAD, "link", "set", f"to-{name}", "up" if plugged else "down")

    def inside(self, name: str, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` on a machine.

        Not `ip netns exec`, which hides the host's cgroups and so keeps slurmd from starting.
        """
        enter = ["nsenter", f"--net=/run/netns/{self._namespace(name)}"]
        enter += ["unshare", "--uts", "--mount", "sh", "-c", ENTER, name, str(self._hosts)]
        return [*enter, *command]

    def _namespace(self, name: str) -> str:
        return f"graftwerk-{self._mark}-{name}"

    def _on(self, name: str, *words: str) -> None:
        _ip("-n", self._namespace(name), *words)


def _ip(*words: str) -> None:
    done = subprocess.run(
        ["ip", *words], env={"PATH": SEARCH}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RehearsalError(f"ip {' '.join(words)}: {done.stderr.strip()}")
