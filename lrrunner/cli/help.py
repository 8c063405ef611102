"""``lrrunner --help``: Hydra's help with our text, and without options that are not for users. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser, run_and_report
from hydra.core.global_hydra import GlobalHydra

from lrrunner.config.command_line import CommandLine
from lrrunner.config.composition import search_path
from lrrunner.config.override_errors import LAUNCH_FILES
from lrrunner.config.schema import register_schema


class _Help(Hydra):
    """Hydra, with another list of groups."""

    def format_config_groups(self, predicate: Callable[[str], bool], compact: bool = True) -> str:
        """Each group with its options, one group a line."""
        groups = [group for group in self.list_all_config_groups() if predicate(group) and group != LAUNCH_FILES]
        return "".join(f"{group}: {', '.join(self._options(group))}\n" for group in sorted(groups))

    def _options(self, group: str) -> list[str]:
        options = self.config_loader.get_group_options(group)
        return sorted(option for option in options if not option.startswith("base_"))


def print_help(arguments: Sequence[str], command_line: CommandLine) -> None:
    """Print the help text and the configuration that the overrides give.

    Args:
        arguments: Of this process.
        command_line: The same, parsed.
    """
    register_schema()
    parser = get_args_parser()
    GlobalHydra.instance().clear()
    hydra = _Help.create_main_hydra2("lrrunner", search_path(command_line))
    run_and_report(lambda: hydra.app_help(command_line.config_name, parser, parser.parse_args(arguments)))
