"""Errors that are shown to people, and the exit codes they end a process with."""

DONE = 0
CRASH = 1
USER_ERROR = 2
DIVERGED = 65
APART = 69
STORAGE_ERROR = 74
AGAIN = 75
STUCK = 76
INTERRUPTED = 130


class GraftwerkError(Exception):
    """Something a person can mend: shown without a traceback."""

    exit_code = USER_ERROR


class ConfigError(GraftwerkError):
    """One or more values of the config tree are wrong; `problems` holds a line for each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class DataError(GraftwerkError):
    """A data set or an image can't be used; names the folder or file."""


class CheckpointError(GraftwerkError):
    """A checkpoint can't be read or does not belong to this run; names the file."""


class DivergedError(GraftwerkError):
    """The loss is no number any more; checkpoints of before are intact."""

    exit_code = DIVERGED


class StorageError(GraftwerkError):
    """Writing failed (full disk, quota, lost mount); what was there before is intact."""

    exit_code = STORAGE_ERROR
