"""The command line ``gfshadow``."""

import click

from torch_gfshadow.cli._group import OneLineErrors
from torch_gfshadow.cli.bound import bound
from torch_gfshadow.cli.demo import demo
from torch_gfshadow.cli.doctor import doctor
from torch_gfshadow.cli.plugins import plugins
from torch_gfshadow.cli.report import report
from torch_gfshadow.cli.reproduce import reproduce
from torch_gfshadow.cli.step_size import step_size
from torch_gfshadow.cli.tail import tail


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="torch-gfshadow", prog_name="gfshadow")
def main() -> None:
    """torch_gfshadow: how far gradient descent drifts from gradient flow, with error bars."""


main.add_command(demo)
main.add_command(reproduce)
main.add_command(bound)
main.add_command(step_size)
main.add_command(plugins)
main.add_command(report)
main.add_command(tail)
main.add_command(doctor)
