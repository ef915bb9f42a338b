"""The text of a private cluster's `slurm.conf`: no cgroups, no systemd, no accounting."""

from __future__ import annotations

import getpass
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HEAD = "head"


@dataclass(frozen=True)
class Node:
    name: str
    host: str
    address: str
    port: int


SLURM = """\
ClusterName=rehearsal
SlurmctldHost={head.host}({head.address})
SlurmctldPort={head.port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=12
MpiDefault=none
MessageTimeout=60
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
SlurmdTimeout=30
KillWait={grace}
MinJobAge=3600
GresTypes=gpu
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
"""
PARTITIONS = """\
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime={grace} State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=off State=UP
"""


def slurm_conf(
    folder: Path,
    head: Node,
    nodes: Sequence[Node],
    *,
    cpus: int,
    gpus: int,
    grace: int,
    first_job: int,
    settings: Mapping[str, str],
) -> str:
    """A default partition `main`, whose jobs those of `high` preempt and requeue.

    A requeued job may start again when its credential has expired: after 5 s instead of the usual
    two minutes. `settings` are lines of `slurm.conf` that replace or join those above.
    """
    text = SLURM.format(folder=folder, head=head, user=getpass.getuser(), grace=grace)
    lines = dict(line.split("=", 1) for line in text.splitlines())
    lines["FirstJobId"] = str(first_job)
    if head.host == nodes[0].host:
        lines["CommunicationParameters"] = "NoInAddrAny,NoCtldInAddrAny"
    lines |= settings
    text = "".join(f"{key}={value}\n" for key, value in lines.items())
    for node in nodes:
        text += (
            f"NodeName={node.name} NodeHostname={node.host} NodeAddr={node.address} "
            f"Port={node.port} CPUs={cpus} RealMemory=16000 Gres=gpu:{gpus} State=UNKNOWN\n"
        )
    return text + PARTITIONS.format(grace=grace)


def gres_conf(nodes: Sequence[Node], devices: Sequence[Path]) -> str:
    """Devices that only look like GPUs: enough for ``--gpus`` and CUDA_VISIBLE_DEVICES."""
    return "".join(
        f"NodeName={node.name} Name=gpu File={device}\n" for node in nodes for device in devices
    )
