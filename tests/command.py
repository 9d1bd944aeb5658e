"""Words of a command line -> what the ``pararealize`` command, run in this process, prints and exits with."""

from click.testing import Result
from typer.testing import CliRunner

from pararealize_cli.main import app


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])
