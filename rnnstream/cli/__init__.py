"""The command line: the only place that prints or exits.

Results go to stdout, everything else to stderr. Exit status: 0 worked, 1 failed, 2 wrong use, 130 interrupted.
"""

from typing import Any

import click

from rnnstream.cli.bench import bench
from rnnstream.cli.convert import convert
from rnnstream.cli.feed import feed
from rnnstream.cli.inspect import inspect
from rnnstream.cli.keygen import keygen
from rnnstream.cli.selftest import selftest
from rnnstream.cli.serve import serve
from rnnstream.cli.session import session
from rnnstream.cli.store import store
from rnnstream.errors import RnnstreamError
from rnnstream.worker.logs import visible

INTERRUPTED = 130  # as shells have it: 128 + SIGINT


class Commands(click.Group):
    """A group that ends with one sentence where a command fails, or is interrupted."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Click itself ends wrong use with status 2, and is quiet about a reader of stdout that has gone."""
        try:
            return super().invoke(ctx)
        except RnnstreamError as problem:
            # What a worker or a file says may hold anything: a terminal is not to obey it.
            told = "\n".join(map(visible, str(problem).split("\n")))
            click.echo(f"Error: {told}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(INTERRUPTED)


@click.group(cls=Commands)
@click.version_option(package_name="rnnstream")
def main() -> None:
    """Serve trained recurrent networks one token at a time."""


for command in (serve, feed, session, store, keygen, convert, inspect, selftest, bench):
    main.add_command(command)
