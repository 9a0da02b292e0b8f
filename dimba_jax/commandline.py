"""What the entry modules share: flags in a set of their own, and errors on one line.

A command's exit status is 0, 2 for what its user can mend (a wrong option, setting, file or row of data), 130 after
Ctrl-C.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from dimba_jax import sampling_flags
from dimba_jax.config import ConfigError
from dimba_jax.errors import UserError

_USERS = (flags.Error, UserError, OSError)  # errors of the user's
USER_ERROR = 2

_DISTRIBUTED_HELP = {
    "distributed": "one of several processes, which JAX finds on Slurm, Open MPI, Kubernetes and TPU pods; "
    "--nodistributed: alone; neither: what the environment says",
    "coordinator_address": "HOST:PORT of process 0; this and the next two where JAX knows no cluster",
    "num_processes": "how many processes there are",
    "process_id": "which of them this is, from 0",
    "cluster_detection_method": "as in jax.distributed.initialize; mpi4py for Open MPI 5",
    "initialization_timeout": "seconds to wait for the other processes; 300 unless given",
}


class Flags:
    """Flags in a set of their own: the commands share names, and may live in one process."""

    def __init__(self) -> None:
        self.values = flags.FlagValues()
        self.values.set_gnu_getopt(True)  # options may stand behind file names
        self._files: list[str] = []
        self.boolean("help", False, "show this help")

    def text(self, name: str, default: str | None, help: str) -> None:
        flags.DEFINE_string(name, default, help, flag_values=self.values)

    def integer(self, name: str, default: int | None, help: str, lower_bound: int | None = None) -> None:
        flags.DEFINE_integer(name, default, help, lower_bound=lower_bound, flag_values=self.values)

    def seed(self, default: int | None, help: str) -> None:
        """--seed: the 32 bits that JAX's keys take; of a larger number they would drop the rest."""
        flags.DEFINE_integer("seed", default, help, 0, (1 << 32) - 1, flag_values=self.values)

    def boolean(self, name: str, default: bool | None, help: str) -> None:
        flags.DEFINE_bool(name, default, help, flag_values=self.values)

    def choice(self, name: str, default: str | None, choices: Sequence[str], help: str) -> None:
        flags.DEFINE_enum(name, default, list(choices), help, flag_values=self.values)

    def listing(self, name: str, default: list[str], help: str) -> None:
        flags.DEFINE_list(name, default, help, flag_values=self.values)

    def files(self, name: str, help: str) -> None:
        """One or more files: --name=A,B, or --name=A --name=B, or --name=A B; None unless given.

        A name with a comma in it can only be given in the last way. With several such flags, bare names are of the one
        that was defined last.
        """
        flags.DEFINE_multi_string(name, None, help, flag_values=self.values)
        self._files.append(name)

    def config(self, help: str, argv: Sequence[str]) -> None:
        config_flags.DEFINE_config_file("config", None, help, flag_values=self.values, sys_argv=list(argv))

    def sampling(self) -> None:
        """One flag for each sampling setting, None unless given."""
        sampling_flags.define(self.values)

    def scan_layers(self) -> None:
        """--[no]scan_layers, None unless given."""
        self.boolean(
            "scan_layers",
            None,
            "layers in a scan, or with --noscan_layers one by one: longer to compile, and faster on a GPU; as the "
            "checkpoint's config has it unless given",
        )

    def distributed(self) -> None:
        """The flags of a run over several processes, None unless given; named as jax.distributed.initialize's."""
        self.boolean("distributed", None, _DISTRIBUTED_HELP["distributed"])
        self.text("coordinator_address", None, _DISTRIBUTED_HELP["coordinator_address"])
        self.integer("num_processes", None, _DISTRIBUTED_HELP["num_processes"])
        self.integer("process_id", None, _DISTRIBUTED_HELP["process_id"])
        self.text("cluster_detection_method", None, _DISTRIBUTED_HELP["cluster_detection_method"])
        self.integer("initialization_timeout", None, _DISTRIBUTED_HELP["initialization_timeout"], lower_bound=1)

    def parse(self, argv: Sequence[str]) -> flags.FlagValues:
        """The values of a command line.

        Raises:
          ConfigError: a recipe that is not there, refuses its argument or lacks a setting.
          absl.flags.Error: another option that is wrong.
        """
        values = self.values
        sys.modules.pop(_RECIPE_MODULE, None)  # else what a recipe lacks would be that of the last one in this process
        try:
            rest = values(list(argv))[1:]
            if "config" in values:
                getattr(values.config, "keys", None)  # ml_collections reports a missing file on first use only
        except flags.IllegalFlagValueError as error:  # ends in the traceback of a recipe that refused its argument
            raise ConfigError(str(error).strip().splitlines()[-1].removeprefix(_CONFIG_ERROR)) from None
        except OSError as error:
            if "No such file" not in str(error):
                raise
            raise ConfigError(f"{_recipe(argv)}: no such file") from None
        except (AttributeError, KeyError) as error:
            if "get_config" in str(error):
                raise ConfigError(
                    f"{_recipe(argv)} has no function get_config: give a recipe as those in configs/"
                ) from None
            raise ConfigError(f"the recipe has no setting {_reason(error)}") from None
        except (TypeError, ValueError) as error:
            raise ConfigError(_reason(error)) from None
        except flags.Error:
            raise
        except Exception as error:  # a recipe is a program, and may fail in any way
            line = (
                error.lineno if isinstance(error, SyntaxError) else traceback.extract_tb(error.__traceback__)[-1].lineno
            )
            raise ConfigError(
                f"{_recipe(argv)}, line {line}: {type(error).__name__}: {_reason(error)}; mend the recipe"
            ) from error
        for name in reversed(self._files):
            if values[name].present:
                named = [file for text in values[name].value or () for file in text.split(",") if file]
                values[name].value, rest = named + rest, []
        if rest and not values.help:
            raise flags.Error(f"unexpected argument {rest[0]!r}: every option is --name=value")
        return values


def _recipe(argv: Sequence[str]) -> str:
    """The recipe as the command line names it."""
    return next((text for text in argv if text.startswith(("--config=", "-config="))), "--config")


_RECIPE_MODULE = "config_config"  # ml_collections' name of it
_CONFIG_ERROR = f"{ConfigError.__module__}.{ConfigError.__name__}: "


def given_distributed(values: flags.FlagValues) -> dict[str, Any]:
    """The arguments of `distributed.initialize` that the command line names."""
    found = {name: values[name].value for name in _DISTRIBUTED_HELP}
    return {name: value for name, value in found.items() if value is not None}


def run(
    command: str,
    doc: str | None,
    parse: Callable[[Sequence[str]], flags.FlagValues],
    body: Callable[[flags.FlagValues], int | None],
    argv: Sequence[str] | None,
) -> int:
    """Parses and runs; returns the exit status. Errors of the user's are one message, without a traceback."""
    try:
        values = parse(sys.argv if argv is None else argv)
        if values.help:
            print(f"{doc}\n{values.get_help()}")
            return 0
        return body(values) or 0
    except (*_USERS, KeyboardInterrupt) as error:
        return say(command, error)


def say(command: str, error: BaseException) -> int:
    """Prints what ended a command, a user's error as one line, others with their traceback; returns the exit status."""
    if isinstance(error, KeyboardInterrupt):
        print(f"{command}: stopped", file=sys.stderr)
        return 130
    if isinstance(error, _USERS):
        print(f"{command}: {error}", file=sys.stderr)
        return USER_ERROR
    traceback.print_exception(error)
    return 1


def output_file(name: str, suffix: str | None = None, reads: Sequence[str | Path] = ()) -> Path:
    """The place of --output, found fit before the work rather than after it.

    Args:
      reads: files that the command reads, which its output must not replace.

    Raises:
      ConfigError: it is a folder, lies in none, ends in another suffix, or is one of those files.
    """
    path = Path(name)
    for file in reads:
        if path.resolve() == Path(file).resolve():
            raise ConfigError(f"--output={path} would replace {file}, which is read: name another file")
    if path.is_dir():
        raise ConfigError(f"--output={path} is a folder: name a file")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--output={path}: there is no folder {path.absolute().parent}; create it first")
    if suffix is not None and path.suffix != suffix:
        raise ConfigError(f"--output={path}: expected a name that ends in {suffix}")
    return path


def workdir(name: str) -> Path:
    """The place of --workdir, which may be there or not.

    Raises:
      ConfigError: it is a file, or lies in one.
    """
    path = Path(name)
    for place in (path, *path.absolute().parents):
        if place.exists():
            if place.is_dir():
                break
            raise ConfigError(f"--workdir={path}: {place} is a file: name a folder, which is created if need be")
    return path


def _reason(error: BaseException) -> str:
    """What ml_collections says, which may be an error inside an error, on one line."""
    while error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    return " ".join(str(error.args[0] if error.args else error).split())
