"""What the entry modules share: flags in a set of their own, sampling options, and errors on one line.

A command's exit status is 0, 2 for what its user can mend (a wrong option, setting, file or row of data), 130 after
Ctrl-C.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from dimba_jax.config import ConfigError, RunConfig, SamplingConfig, from_config_dict, to_dict
from dimba_jax.errors import UserError

USER_ERROR = 2

_SAMPLING_HELP = {
    "sampler": "ddpm, ddim or dpmpp; this and the following default to the checkpoint's config",
    "steps": "denoising steps, up to the process's timesteps",
    "eta": "DDIM's share of ancestral noise",
    "guidance": "classifier-free guidance; 1 is off",
    "clamp_from": "round predictions to embeddings at t up to this; 0: never",
    "temperature": "standard deviation of the starting noise",
    "num_samples": "texts for each prompt",
    "batch_size": "rows of one compiled call",
    "early_exit": "stop after so many steps without a changed token; 0: never",
    "ema": "take the averaged parameters",
}


class Flags:
    """Flags in a set of their own: the commands share names, and may live in one process."""

    def __init__(self) -> None:
        self.values = flags.FlagValues()
        self.boolean("help", False, "show this help")

    def text(self, name: str, default: str | None, help: str) -> None:
        flags.DEFINE_string(name, default, help, flag_values=self.values)

    def integer(self, name: str, default: int | None, help: str, lower_bound: int | None = None) -> None:
        flags.DEFINE_integer(name, default, help, lower_bound=lower_bound, flag_values=self.values)

    def boolean(self, name: str, default: bool | None, help: str) -> None:
        flags.DEFINE_bool(name, default, help, flag_values=self.values)

    def choice(self, name: str, default: str, choices: Sequence[str], help: str) -> None:
        flags.DEFINE_enum(name, default, list(choices), help, flag_values=self.values)

    def listing(self, name: str, default: list[str], help: str) -> None:
        flags.DEFINE_list(name, default, help, flag_values=self.values)

    def config(self, help: str, argv: Sequence[str]) -> None:
        config_flags.DEFINE_config_file("config", None, help, flag_values=self.values, sys_argv=list(argv))

    def sampling(self) -> None:
        """One flag for each sampling setting, None unless given."""
        define = {
            str: flags.DEFINE_string,
            int: flags.DEFINE_integer,
            float: flags.DEFINE_float,
            bool: flags.DEFINE_bool,
        }
        defaults = dataclasses.asdict(SamplingConfig())
        for name, text in _SAMPLING_HELP.items():
            define[type(defaults[name])](name, None, text, flag_values=self.values)

    def parse(self, argv: Sequence[str]) -> flags.FlagValues:
        """The values of a command line.

        Raises:
          ConfigError: a recipe that is not there, refuses its argument or lacks a setting.
          absl.flags.Error: another option that is wrong.
        """
        values = self.values
        try:
            rest = values(list(argv))[1:]
            if "config" in values:
                getattr(values.config, "keys", None)  # ml_collections reports a missing file on first use only
        except flags.IllegalFlagValueError as error:  # ends in the traceback of a recipe that refused its argument
            raise ConfigError(str(error).strip().splitlines()[-1].removeprefix(_CONFIG_ERROR)) from None
        except OSError as error:
            if "No such file" not in str(error):
                raise
            name = next((text for text in argv if text.startswith(("--config=", "-config="))), "--config")
            raise ConfigError(f"{name}: no such file") from None
        except (AttributeError, KeyError) as error:
            raise ConfigError(f"the recipe has no setting {_reason(error)}") from None
        except (TypeError, ValueError) as error:
            raise ConfigError(_reason(error)) from None
        if rest and not values.help:
            raise flags.Error(f"unexpected argument {rest[0]!r}: every option is --name=value")
        return values


_CONFIG_ERROR = f"{ConfigError.__module__}.{ConfigError.__name__}: "


def given_sampling(values: flags.FlagValues) -> dict[str, Any]:
    """The sampling settings that the command line names."""
    return {name: values[name].value for name in _SAMPLING_HELP if values[name].value is not None}


def sampling_settings(config: RunConfig, given: dict[str, Any]) -> SamplingConfig:
    """The checkpoint's sampling settings with the given ones in their place, checked against its process."""
    values = to_dict(config)
    return from_config_dict(values | {"sampling": values["sampling"] | given}).sampling


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
    except (flags.Error, UserError, OSError) as error:
        print(f"{command}: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print(f"{command}: stopped", file=sys.stderr)
        return 130


def output_file(name: str, suffix: str | None = None) -> Path:
    """The place of --output, found fit before the work rather than after it.

    Raises:
      ConfigError: it is a folder, lies in none, or ends in another suffix.
    """
    path = Path(name)
    if path.is_dir():
        raise ConfigError(f"--output={path} is a folder: name a file")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--output={path}: there is no folder {path.absolute().parent}; create it first")
    if suffix is not None and path.suffix != suffix:
        raise ConfigError(f"--output={path}: expected a name that ends in {suffix}")
    return path


def _reason(error: BaseException) -> str:
    """What ml_collections says, which may be an error inside an error, on one line."""
    while error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    return " ".join(str(error.args[0] if error.args else error).split())
