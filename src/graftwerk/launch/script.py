"""The job script: plain bash that somebody who never saw this project can read and submit.

A script serves a job array. Each element takes its runs from a list, one folder a line, trains them
side by side and queues itself again where one of them has more to do.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from graftwerk.errors import AGAIN, APART, STUCK, USER_ERROR
from graftwerk.launch.attend import ATTENDED
from graftwerk.launch.config import Launch, Slurm, seconds_of
from graftwerk.paths import SNAPSHOT
from graftwerk.run import Run

IDLE = 3
"""So many starts from the same checkpoint are no bad luck any more."""

SIGNAL = "USR2"


@dataclass(frozen=True)
class Job:
    """An array of equal jobs."""

    name: str
    launch: Launch
    processes: int
    """Workers on each node."""
    runs: Path
    """The list: a run folder in every line."""
    count: int
    output: Path
    """The folder of what the jobs say."""
    workdir: Path
    code: Path
    """The snapshot that they run."""
    folders: tuple[Path, ...] = ()
    """What the runs read and write, for a container to bind."""
    needs: tuple[str, ...] = ()
    """Job ids, of array elements too, that must have succeeded."""

    @property
    def elements(self) -> int:
        return -(-self.count // self.launch.pack)


def processes_of(run: Run) -> int:
    return run.launch.slurm.gpus or run.processes


def directives(job: Job) -> list[str]:
    """The `#SBATCH` lines."""
    slurm = job.launch.slurm
    throttle = f"%{slurm.throttle}" if slurm.throttle else ""
    options: dict[str, str | int | bool | None] = {
        "job-name": job.name,
        "array": f"0-{job.elements - 1}{throttle}",
        "output": f"{job.output}/%A_%a.out",
        "open-mode": "append",
        "requeue": True,
        "account": slurm.account,
        "partition": slurm.partition,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "reservation": slurm.reservation,
        "exclude": slurm.exclude,
        "nodes": slurm.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": slurm.gpus or None,
        "cpus-per-task": slurm.cpus,
        "mem": slurm.memory,
        "time": slurm.time,
        "signal": f"{SIGNAL}@{slurm.signal}" if slurm.time else None,
        "mail-user": slurm.mail,
        "mail-type": "END,FAIL" if slurm.mail else None,
        "dependency": f"afterok:{':'.join(job.needs)}" if job.needs else None,
        "kill-on-invalid-dep": "yes" if job.needs else None,
    } | slurm.extra
    return [
        f"#SBATCH --{name}" if value is True else f"#SBATCH --{name}={value}"
        for name, value in options.items()
        if value is not None and value is not False
    ]


def preparation(slurm: Slurm) -> list[str]:
    """Modules, environments and the user's own lines."""
    lines = [f"module load {shlex.quote(name)}" for name in slurm.modules]
    if slurm.conda:
        name = shlex.quote(slurm.conda)
        lines += ['eval "$(conda shell.bash hook)"', f"conda activate {name}"]
    if slurm.venv:
        lines.append(f"source {shlex.quote(f'{slurm.venv}/bin/activate')}")
    lines += [f"export {key}={shlex.quote(value)}" for key, value in slurm.environment.items()]
    return lines + list(slurm.setup)


def command(job: Job, python: str) -> list[str]:
    """What each node runs: one process as it is, several under torchrun."""
    train = '-m graftwerk run "$run" log.console=lines'
    if job.launch.slurm.nodes * job.processes == 1:
        return [f"{python} {train}"]
    return [
        f"{python} -m graftwerk.launch.torchrun",
        f"--nnodes={job.launch.slurm.nodes} --nproc-per-node={job.processes}",
        '--rdzv-backend=c10d --rdzv-id="$job" --rdzv-endpoint="$head:$port"',
        train,
    ]


def render(job: Job, python: str, wrap: Sequence[str] = ()) -> str:
    """The whole script; `wrap` comes before the command of a node, as a container's does."""
    slurm = job.launch.slurm
    srun = [
        f"srun --nodes={slurm.nodes} --ntasks={slurm.nodes} --ntasks-per-node=1"
        " --kill-on-bad-exit=1" + " --overlap" * (job.launch.pack > 1),
        '${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"}',
    ]
    if slurm.time:
        srun.insert(0, 'timeout --signal=KILL "$((limit - SECONDS))"')
    pieces = [*srun, *([shlex.join(wrap)] if wrap else []), *command(job, python)]
    return TEMPLATE.format(
        directives="\n".join(directives(job)),
        workdir=shlex.quote(str(job.workdir)),
        code=shlex.quote(str(job.code)),
        preparation="\n".join(preparation(slurm)) or ": # no modules, no environment",
        grace=max(1, slurm.signal - slurm.deadline),
        signal=SIGNAL,
        limit=max(1, seconds_of(slurm.time) - slurm.deadline) if slurm.time else 0,
        runs=shlex.quote(str(job.runs)),
        pack=job.launch.pack,
        attempts=job.launch.attempts,
        idle=IDLE,
        line=" \\\n        ".join(pieces),
        again=f"{AGAIN} | {APART} | 137 | 143",
        SNAPSHOT=SNAPSHOT,
        ATTENDED=ATTENDED,
        AGAIN=AGAIN,
        STUCK=STUCK,
        USER_ERROR=USER_ERROR,
    )


TEMPLATE = """\
#!/bin/bash
{directives}

cd {workdir} || exit {USER_ERROR}
{preparation}
export PYTHONPATH={code}:{code}/tree${{PYTHONPATH:+:$PYTHONPATH}}
export PYTHONSAFEPATH=1 {SNAPSHOT}={code}/tree  # what was submitted, not what is here now
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIG{signal}  # torchrun passes them on
export {ATTENDED}=1 PET_SHUTDOWN_TIMEOUT={grace} TORCH_ELASTIC_SHUTDOWN_TIMEOUT={grace}
export USER="${{USER:-$(id -un)}}"  # which ch-run needs, and some environments lack
limit={limit}  # seconds until this job ends a run by itself

element=${{SLURM_ARRAY_TASK_ID:-0}}
job=${{SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}_$element
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
head=$(scontrol show node "$first" | sed -n 's/.*NodeAddr=\\([^ ]*\\).*/\\1/p')
port=$((10000 + SLURM_JOB_ID * {pack} % 20000))  # of the first run; the others' follow
mapfile -t runs < <(tail -n "+$((element * {pack} + 1))" {runs} | head -n {pack})
if [ "${{#runs[@]}}" = 0 ]; then
    echo "element $element is beyond the list "{runs} >&2
    exit {USER_ERROR}
fi

# Wait for process $1, through the signals that interrupt `wait`, and return its code.
ended() {{
    local code
    wait "$1"
    code=$?
    while kill -0 "$1" 2>/dev/null; do
        wait "$1"
        code=$?
    done
    return "$code"
}}

# One attempt at the run in $1, whose processes meet at port $2. What is counted stands in its
# attempts.jsonl.
attempt() {{
    local run=$1 port=$2 log=$1/attempts.jsonl code child from number same
    trap : TERM USR1 {signal}  # the step saves; this shell must see how it ended
    from=$(ls "$run/checkpoints" 2>/dev/null | grep '^step-' | tail -n 1)
    number=$(($(grep -c '"began"' "$log" 2>/dev/null) + 1))
    same=$(($(grep -c "\\"from\\": \\"$from\\"" "$log" 2>/dev/null) + 0))
    give_up() {{
        echo "$run: $1" >&2
        printf '{{"attempt": %d, "ended": %d, "code": {STUCK}, "reason": "%s"}}\\n' \\
            "$number" "$(date +%s)" "$1" >> "$log"
    }}
    if [ "$number" -gt {attempts} ]; then
        give_up "{attempts} attempts, as many as launch.attempts allows"
        return {STUCK}
    elif [ "$same" -ge {idle} ]; then
        give_up "no progress: $same attempts began at ${{from:-the beginning}}"
        return {STUCK}
    fi
    printf '{{"attempt": %d, "began": %d, "from": "%s", "job": "%s", "node": "%s"}}\\n' \\
        "$number" "$(date +%s)" "$from" "$job" "$SLURM_JOB_NODELIST" >> "$log"
    export GRAFTWERK_CODE=$run/.code-$job-$number
    {line} &
    child=$!
    ended "$child"
    code=$?
    if [ -s "$GRAFTWERK_CODE" ]; then code=$(cat "$GRAFTWERK_CODE"); fi
    rm -f "$GRAFTWERK_CODE"
    printf '{{"attempt": %d, "ended": %d, "code": %d}}\\n' \\
        "$number" "$(date +%s)" "$code" >> "$log"
    return "$code"
}}

trap : TERM USR1 {signal}
children=()
for run in "${{runs[@]}}"; do
    attempt "$run" "$((port + ${{#children[@]}}))" &
    children+=($!)
done
again= failure=0
for child in "${{children[@]}}"; do
    ended "$child"
    code=$?
    case $code in
        0) ;;
        {again}) again=yes ;;
        *) failure=$code ;;
    esac
done
if [ -n "$again" ]; then
    # Not where somebody else has cancelled, preempted or requeued this job.
    if scontrol show job "$job" | grep -q 'JobState=RUNNING'; then
        scontrol requeue "$job"
        sleep 60
    fi
    exit {AGAIN}
fi
exit "$failure"
"""
