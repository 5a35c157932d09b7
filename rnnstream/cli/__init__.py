"""The command line: the only place that prints or exits."""

import click

from rnnstream.cli.serve import serve


@click.group()
def main() -> None:
    """Serve trained recurrent networks one token at a time."""


main.add_command(serve)
