"""LightningCLI that knows the shipped configs, and says what is wrong without a traceback."""

from __future__ import annotations

from typing import Any, ClassVar

from jsonargparse import ArgumentError, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from virnucpro_pl import devices
from virnucpro_pl.cli.checks import check_devices_option
from virnucpro_pl.cli.literal_paths import read_paths, show_paths, spell_paths
from virnucpro_pl.cli.mistakes import describe_failure, explain, usage_error_in
from virnucpro_pl.errors import UsageError


class LiteralPathParser(LightningArgumentParser):
    """Shows a configuration (`--print_config`) with the paths as they are."""

    def dump(self, namespace: Namespace, **options: Any) -> str:
        """Give a configuration as YAML."""
        text: str = super().dump(show_paths(namespace), **options)
        return text


class UsageCLI(LightningCLI):
    """A subcommand of LightningCLI whose mistakes are told in one sentence."""

    help_command: ClassVar[str]
    """Lists the options."""

    def __init__(
        self,
        model: type[LightningModule],
        data: type[LightningDataModule],
        words: list[str],
        trainer_defaults: dict[str, Any],
        **options: Any,
    ) -> None:
        """Parse the command line and run it.

        Args:
            model: Class of the module, or what all such classes are.
            data: Class of the data module, or what all such classes are.
            words: The command line from the subcommand on, each config a path.
            trainer_defaults: The Trainer's options where nothing else is given.
            **options: More of LightningCLI's own.
        """
        super().__init__(
            model,
            data,
            args=words,
            parser_class=LiteralPathParser,
            parser_kwargs={"prog": "virnucpro-pl", "exit_on_error": False, "allow_abbrev": False},
            save_config_callback=None,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            trainer_defaults={"logger": False, "enable_model_summary": False, **trainer_defaults},
            **options,
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the command line.

        Raises:
            UsageError: In one sentence, if an option is unknown, missing, or of a wrong kind.
        """
        assert isinstance(args, list), "only words are ever parsed"
        command = args[0]
        try:
            self.config = read_paths(parser.parse_args(spell_paths(args)))
        except ArgumentError as error:
            options = self._subcommand_parsers[command]._option_string_actions
            said = explain(read_paths(str(error)), args, options)
            raise UsageError(f"{said} (options are listed by {self.help_command})") from error
        check_devices_option(self.config[command].trainer.devices)

    def before_instantiate_classes(self) -> None:
        """Decide the device, so that the configuration says what runs.

        Raises:
            UsageError: If it is neither the CPU nor an NVIDIA GPU.
        """
        trainer = self.config[self.subcommand].trainer
        trainer.accelerator = devices.resolve_accelerator(trainer.accelerator)

    def instantiate_classes(self) -> None:
        """Make Trainer, model, data and callbacks.

        Raises:
            UsageError: If any of them does not take what is configured.
        """
        devices.check_slurm_tasks()
        try:
            super().instantiate_classes()
        except (MisconfigurationException, ValueError, TypeError) as error:
            raise usage_error_in(error) or UsageError(describe_failure(error)) from error
