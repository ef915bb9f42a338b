"""The `graftwerk` command. Nothing is imported before it is needed: help answers at once."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from graftwerk import __version__
from graftwerk.errors import (
    CRASH,
    DONE,
    INTERRUPTED,
    STORAGE_ERROR,
    DataError,
    GraftwerkError,
    StorageError,
)

if TYPE_CHECKING:
    from graftwerk.pipeline import Pipeline

GRAMMAR = """\
key=value sets any key of the config tree; the order does not matter, and --key=value and
--key value mean the same. `graftwerk show RECIPE` prints every key. RECIPE is a name from
`graftwerk recipes`, a .toml or .json file, FILE.py:FUNCTION, or a run folder."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (docs/exit-codes.md)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # files have names of any bytes
    options, rest = _parser().parse_known_args(words)
    try:
        if options.at is not None:
            from graftwerk.launch.remote import there

            return there(options.at, words[2:] if words[0] == "--at" else words[1:])
        overrides = rest if options.takes_keys else _no_more(rest)
        return options.command(options, overrides, words)
    except GraftwerkError as error:
        _tell(error)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            traceback.print_exc()
            return CRASH
        place = error.filename or "the disk"
        _tell(StorageError(f"{place}: {error.strerror}; make room and give the command again"))
        return STORAGE_ERROR
    except Exception:
        traceback.print_exc()
        return CRASH


def _parser() -> argparse.ArgumentParser:
    from graftwerk.data.commands import add_commands as add_data
    from graftwerk.doctor.options import add_commands as add_doctor
    from graftwerk.launch.options import add_commands as add_launch
    from graftwerk.rehearse.options import add_actions
    from graftwerk.sync.options import add_commands as add_sync
    from graftwerk.verify.options import add_commands as add_verify

    parser = argparse.ArgumentParser(
        "graftwerk",
        description="Train image classifiers, five ways cheaper.",
        epilog="graftwerk COMMAND --help says more.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"graftwerk {__version__}")
    parser.add_argument(
        "--at", metavar="PROFILE", help="give the command on the login node of a cluster's profile"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        function: Callable[[argparse.Namespace, list[str], list[str]], int],
        help: str,
        *,
        usage: str,
        takes_keys: bool = True,
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name := function.__name__.replace("_", "-"),
            help=help,
            description=f"{help[0].upper()}{help[1:]}.",
            usage=f"graftwerk {name} {usage}",
            epilog=GRAMMAR if takes_keys else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        sub.set_defaults(command=function, takes_keys=takes_keys)
        return sub

    sub = command(
        run,
        "train, or go on where the same command stopped",
        usage="RECIPE [--jobs N] [--on slurm [--dry-run]] [key=value …]",
    )
    sub.add_argument("recipe")
    sub.add_argument(
        "--jobs", type=int, default=1, help="runs of a grid or pipeline trained at a time"
    )
    sub.add_argument("--on", choices=("local", "slurm"), default="local", help="who trains")
    sub.add_argument("--dry-run", action="store_true", help="print it, start nothing")
    sub = command(
        show, "print the resolved config and what follows from it", usage="RECIPE [key=value …]"
    )
    sub.add_argument("recipe")
    add_launch(command)
    add_verify(command)
    add_doctor(command)
    command(recipes, "list the recipes", usage="", takes_keys=False)
    sub = command(
        report,
        "what the runs of a recipe reached, and the device-hours of each",
        usage="RECIPE [--json] [key=value …]",
    )
    sub.add_argument("recipe")
    sub.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    sub = command(
        evaluate,
        "score a run, an exported folder or a weight file on the validation images",
        usage="RUN_OR_FILE [--recipe RECIPE] [--checkpoint best|last] [--json] [key=value …]",
    )
    sub.add_argument("source", type=Path)
    sub.add_argument("--recipe", help="the model and data that a weight file is meant for")
    sub.add_argument("--checkpoint", choices=("best", "last"), default="best")
    sub.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    sub = command(
        export,
        "write a run's network for timm: model.safetensors, config.json, a model card",
        usage="RUN --to DIR [--format timm|compact|stages] [--divide MODULES] "
        "[--checkpoint best|last] [--weights auto|raw|ema]",
        takes_keys=False,
    )
    sub.add_argument("source", type=Path)
    sub.add_argument("--to", type=Path, required=True)
    sub.add_argument("--checkpoint", choices=("best", "last"), default="best")
    sub.add_argument(
        "--format",
        choices=("timm", "compact", "stages"),
        default="timm",
        help="compact: of sparse weights only what is not zero; stages: a file of Deep Incubation",
    )
    sub.add_argument("--divide", default="", help="stages: blocks of each module, as [3,3,3,3]")
    sub.add_argument(
        "--weights", choices=("auto", "raw", "ema"), default="auto", help="auto: EMA where kept"
    )
    add_sync(command)
    sub = command(
        reconstruct,
        "draw what a SparK run makes of images: input, visible part, hidden patches rebuilt",
        usage="RUN IMAGE… [--mask-ratio SHARE] [--seed NUMBER] [--to FILE.png]",
        takes_keys=False,
    )
    sub.add_argument("source", type=Path)
    sub.add_argument("images", type=Path, nargs="+")
    sub.add_argument("--mask-ratio", type=float, help="share that is hidden; default: the run's")
    sub.add_argument("--seed", type=int, default=0, help="of the masks")
    sub.add_argument("--to", type=Path, default=Path("reconstruction.png"))
    sub = command(
        data,
        "pack, inspect, verify or stage a data set, or measure its loader",
        usage="COMMAND PATH [option …]",
        takes_keys=False,
    )
    add_data(sub)
    sub = command(
        rehearse,
        "a Slurm cluster of one's own on this machine, and accidents to order",
        usage="ACTION [option …]",
        takes_keys=False,
    )
    add_actions(sub)
    return parser


def _no_more(rest: Sequence[str]) -> list[str]:
    if rest:
        raise GraftwerkError(f"{' '.join(rest)}: not understood here")
    return []


def _tell(error: GraftwerkError) -> None:
    """On rank 0 alone, or with the rank's number where it is another's."""
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    mark = "" if rank == "0" else f"[rank {rank}] "
    for line in str(error).splitlines():
        print(f"{mark}{line}", file=sys.stderr)


def _pipeline(recipe: str, words: Sequence[str]) -> Pipeline:
    """The graph that a recipe stands for; of one run, in most cases."""
    from graftwerk.config import parse_overrides
    from graftwerk.recipes import find_pipeline

    return find_pipeline(recipe).override(parse_overrides(words))


def run(options: argparse.Namespace, words: list[str], arguments: list[str]) -> int:
    pipeline = _pipeline(options.recipe, words)
    if options.on == "slurm":
        from graftwerk.launch.submit import submit

        return submit(pipeline, options.recipe, words, dry_run=options.dry_run)
    if options.dry_run:
        runs = pipeline.resolved().values()
        print("\n".join([*pipeline.drawing(), *(str(one.folder) for one in runs)]))
        return DONE
    from graftwerk.launch.here import run_here

    return run_here(pipeline, options.recipe, words, arguments, options.jobs)


def show(options: argparse.Namespace, words: list[str], arguments: list[str]) -> int:
    del arguments
    pipeline = _pipeline(options.recipe, words)
    wanted = pipeline.resolved()
    from graftwerk.start import describe

    with contextlib.suppress(BrokenPipeError):
        if len(wanted) > 1:
            print("\n".join(pipeline.drawing()), end="\n\n")
        print("\n\n".join(describe(one) for one in wanted.values()))
    return DONE


def report(options: argparse.Namespace, words: list[str], arguments: list[str]) -> int:
    del arguments
    from graftwerk.report import report

    print(report(_pipeline(options.recipe, words), as_json=options.json))
    return DONE


def recipes(options: argparse.Namespace, words: list[str], arguments: list[str]) -> int:
    del options, words, arguments
    from graftwerk.recipes import shipped, summary

    known = shipped()
    width = max(len(name) for name in known)
    for name, function in known.items():
        print(f"{name:{width}}  {summary(function)}")
    return DONE


def evaluate(options: argparse.Namespace, words: list[str], arguments: list[str]) -> int:
    del arguments
    from graftwerk.config import parse_overrides
    from graftwerk.score import score

    print(
        score(
            options.source,
            options.recipe,
            parse_overrides(words),
            which=options.checkpoint,
            as_json=options.json,
        )
    )
    return DONE


def export(options: argparse.Namespace, words: list[str], arguments: list[str]) -> int:
    del words, arguments
    from graftwerk.score import export_run, export_stages

    chosen = options.source, options.to, options.checkpoint, options.weights
    if options.format == "stages":
        print(export_stages(*chosen, options.divide))
        return DONE
    compact = options.format == "compact"
    print(export_run(*chosen, compact=compact))
    return DONE


def reconstruct(options: argparse.Namespace, words: list[str], arguments: list[str]) -> int:
    del words, arguments
    from graftwerk.reconstruct import reconstruct

    print(
        reconstruct(
            options.source,
            options.images,
            options.to,
            mask_ratio=options.mask_ratio,
            seed=options.seed,
        )
    )
    return DONE


def data(options: argparse.Namespace, words: list[str], arguments: list[str]) -> int:
    del words, arguments
    try:
        return options.act(options)
    except OSError as error:
        if error.filename is None or error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DataError(f"{os.fsdecode(error.filename)}: {error.strerror}") from None


def rehearse(options: argparse.Namespace, words: list[str], arguments: list[str]) -> int:
    del words, arguments
    from graftwerk.rehearse.commands import rehearse

    return rehearse(options)
