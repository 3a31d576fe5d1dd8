"""The commands and their help. Each loads what it needs when it runs, so that help is quick."""

import logging
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from netloader.cli.answers import Answer, Form, People, Programs, Run, carry_out
from netloader.cli.choices import Format, Machine
from netloader.cli.codes import MEANINGS
from netloader.installed import OURS
from netloader.log import quiet_dependencies

CODES = "  ".join(f"{c.value} {c.name.lower()}" for c in MEANINGS)
EPILOG = f"Exit status: {CODES}. Page operate/command of the docs has them in words."

app = typer.Typer(
    name="netloader",
    help="Look at servers of model weights, serve folders, and copy weights from running servers."
    "\n\nStart with: netloader status HOST:PORT",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
config = typer.Typer(no_args_is_help=True, help="Look at settings before an engine starts.")
app.add_typer(config, name="config")

Json = Annotated[
    bool, typer.Option("--json", help="Write one JSON object a line, problems included.")
]
Seconds = Annotated[
    float,
    typer.Option("--timeout", metavar="SECONDS", help="How long a source may take to answer."),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        help="The token of the server. Without it: the variable NETLOADER_TOKEN.",
    ),
]
Source = Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where a server listens.")]
WAIT_S = 10.0


def _form(*, json: bool) -> Form:
    return Programs() if json else People()


def _finish(run: Run, form: Form) -> None:
    raise typer.Exit(carry_out(run, form))


def _version(value: bool) -> None:  # noqa: FBT001 - how typer calls it
    """Say which version this is."""
    if not value:
        return
    try:
        typer.echo(f"{OURS} {version(OURS)}")
    except PackageNotFoundError:
        typer.echo(f"{OURS} is imported from its sources, and not installed")
    raise typer.Exit


@app.callback()
def common(
    *,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the log of netloader on standard error.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Say the version."),
    ] = False,
) -> None:
    """Options of every command."""
    del version
    quiet_dependencies()
    logger = logging.getLogger("netloader")
    logger.addHandler(logging.StreamHandler() if verbose else logging.NullHandler())
    logger.propagate = False
    if verbose:
        logger.setLevel(logging.DEBUG)


@app.command()
def status(
    source: Annotated[
        str, typer.Argument(metavar="HOST:PORT|URL", help="A server, or its page of metrics.")
    ],
    *,
    timeout: Seconds = WAIT_S,
    token_file: TokenFile = None,
    json: Json = False,
) -> None:
    """Say what a server offers, and what it does. Takes none of its places.

    For example:

        netloader status 10.0.0.1:19374

        netloader status 10.0.0.1:19374 --json | jq '.models[].root'

        netloader status http://10.0.0.1:8000/metrics
    """

    def run() -> Answer:
        from netloader.cli import sources
        from netloader.cli import status as command

        return command.run(source, sources.asking(timeout, sources.token_of(token_file)))

    _finish(run, _form(json=json))


@app.command()
def verify(
    first: Annotated[str, typer.Argument(metavar="A", help="A server, as host:port.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another server.")],
    *,
    timeout: Seconds = WAIT_S,
    token_file: TokenFile = None,
    json: Json = False,
) -> None:
    """Say whether two running servers hold the same weights.

    Compares names, shapes and dtypes of all tensors, and the digest over all bytes that each server
    computed; no weights move. Exit status 0: the same. 1: others, or it cannot be told.

    For example:

        netloader verify 10.0.0.1:19374 10.0.0.2:19374
    """

    def run() -> Answer:
        from netloader.cli import sources
        from netloader.cli import verify as command

        options = sources.asking(timeout, sources.token_of(token_file))
        return command.run(first, second, options)

    _finish(run, _form(json=json))


@app.command()
def serve(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder with *.safetensors files.")
    ],
    *,
    host: Annotated[
        str, typer.Option(help="The address to listen at; empty: all of this host.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 0,
    identity: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="A field that clients must have with the same value; may be repeated.",
        ),
    ] = None,
    max_clients: Annotated[int, typer.Option(min=1, help="Clients served at once.")] = 2,
    token_file: TokenFile = None,
    json: Json = False,
) -> None:
    """Serve a folder of safetensors files, without an engine, until Ctrl-C.

    A folder that `netloader pull` wrote is served as its source served it: same identity, names and
    order of tensors. Any other folder has the identity model=NAME-OF-THE-FOLDER and its tensors in
    the order of their names, for clients that embed netloader or for `netloader pull`.

    For example:

        netloader serve ./weights --host 10.0.0.1 --port 19374

        NETLOADER_TOKEN=$(cat token) netloader serve ./weights --identity model=llama
    """
    form = _form(json=json)

    def run() -> Answer:
        from netloader.cli import serve as command
        from netloader.cli import sources

        token = sources.token_of(token_file)
        pairs = tuple(identity or ())
        return command.run(command.Wanted(folder, host, port, pairs, max_clients, token), form)

    _finish(run, form)


@app.command()
def pull(
    source: Annotated[
        list[str], typer.Argument(metavar="HOST:PORT", help="Sources, tried in order.")
    ],
    *,
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="The folder to write; it must not exist, or be empty."),
    ],
    role: Annotated[
        str | None, typer.Option(help="Which of the server's models: target or draft.")
    ] = None,
    timeout: Seconds = WAIT_S,
    token_file: TokenFile = None,
    json: Json = False,
) -> None:
    """Copy the weights of a running server into a folder of safetensors files.

    Every byte is verified, and the folder appears only when it is complete. It holds tensors under
    the names that the server's model has; for vLLM these are not those of the checkpoint, so serve
    the folder with `netloader serve` rather than loading it as a checkpoint.

    For example:

        netloader pull 10.0.0.1:19374 --out ./weights

        netloader pull 10.0.0.1:19374 10.0.0.2:19374 --out ./draft --role draft
    """

    def run() -> Answer:
        from netloader.cli import pull as command
        from netloader.cli import sources

        options = sources.asking(timeout, sources.token_of(token_file))
        return command.run(source, out, role, options)

    _finish(run, _form(json=json))


@app.command()
def check(
    source: Source,
    *,
    model: Annotated[Path, typer.Option(metavar="DIR", help="The folder of the model here.")],
    engine: Annotated[
        str,
        typer.Option(metavar="JSON", help="Arguments of vLLM's engine, as one JSON object."),
    ] = "{}",
    timeout: Seconds = WAIT_S,
    token_file: TokenFile = None,
    json: Json = False,
) -> None:
    """Say whether a source would accept an instance that starts here, without building a model.

    Needs vLLM, which reads the folder as it would at a start. Exit status 1: it would refuse, and
    the table names each field with both values and what to do.

    For example:

        netloader check 10.0.0.1:19374 --model ./llama

        netloader check 10.0.0.1:19374 --model ./llama --engine '{"dtype": "bfloat16"}'
    """

    def run() -> Answer:
        from netloader.cli import check as command
        from netloader.cli import configuration, sources

        options = sources.asking(timeout, sources.token_of(token_file))
        return command.run(source, model, dict(configuration.object_of(engine)), options)

    _finish(run, _form(json=json))


@app.command()
def top(
    source: Annotated[list[str], typer.Argument(metavar="HOST:PORT", help="Servers to watch.")],
    *,
    interval: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="How long between two looks.")
    ] = 2.0,
    times: Annotated[
        int, typer.Option(min=0, metavar="N", help="How many looks; 0: until Ctrl-C.")
    ] = 0,
    timeout: Seconds = WAIT_S,
    token_file: TokenFile = None,
    json: Json = False,
) -> None:
    """Watch many servers: state, clients, bytes sent and the rate since the last look.

    A server counts bytes when a client has all that it asked for, so the rate comes in steps.

    For example:

        netloader top 10.0.0.1:19374 10.0.0.2:19374 --interval 5

        netloader top 10.0.0.1:19374 --times 1 --json
    """
    form = _form(json=json)

    def run() -> Answer:
        from netloader.cli import sources
        from netloader.cli import top as command

        options = sources.asking(timeout, sources.token_of(token_file))
        watch = command.Watch([sources.endpoint_of(text) for text in source], options)
        shown = command.as_data(form) if json else command.on_screen()
        with shown as show:
            return command.run(watch, interval, times, show)

    _finish(run, form)


@app.command()
def bench(
    source: Annotated[
        str | None,
        typer.Argument(metavar="[HOST:PORT]", help="A server; without it, this process itself."),
    ] = None,
    *,
    size: Annotated[
        int, typer.Option(min=1, max=65536, metavar="MIB", help="MiB, without a server.")
    ] = 256,
    times: Annotated[int, typer.Option(min=1, max=100, metavar="N", help="How many times.")] = 3,
    timeout: Seconds = WAIT_S,
    token_file: TokenFile = None,
    json: Json = False,
) -> None:
    """Measure how fast verified bytes arrive in the memory of this host.

    From a server it receives all weights and drops them: that takes one of its places, and as much
    memory here as the weights have. Without a server it measures what this host can do at most.

    For example:

        netloader bench

        netloader bench 10.0.0.1:19374 --times 5
    """

    def run() -> Answer:
        from netloader.cli import bench as command
        from netloader.cli import sources

        options = sources.asking(timeout, sources.token_of(token_file))
        return command.run(source, size, times, options)

    _finish(run, _form(json=json))


@config.command("check")
def config_check(
    configuration: Annotated[
        str,
        typer.Argument(
            metavar="JSON|@FILE", help="What --model-loader-extra-config gets; -: standard input."
        ),
    ],
    *,
    json: Json = False,
) -> None:
    """Name all that is wrong with a configuration, before an engine starts with it.

    Files that it names (CONFIG_FILE, AUTH_TOKEN_FILE) are read on this host.

    For example:

        netloader config check '{"SOURCE": [{"device_id": 0, "sources": ["10.0.0.1:19374"]}]}'

        netloader config check @netloader.json
    """

    def run() -> Answer:
        from netloader.cli import configuration as command

        return command.run(configuration)

    _finish(run, _form(json=json))


@app.command()
def diagram(
    machine: Annotated[Machine, typer.Argument(help="Which machine.")] = Machine.CLIENT,
    *,
    form: Annotated[
        Format, typer.Option("--format", help="As what it is written.")
    ] = Format.MERMAID,
    json: Json = False,
) -> None:
    """Draw a state machine, from the table that it runs by.

    client and server are the two ends of a session, source is one source of a client that has
    several, model is a published model.

    For example:

        netloader diagram server > server.mmd
    """

    def run() -> Answer:
        from netloader.cli import diagram as command

        return command.run(machine, form)

    _finish(run, _form(json=json))
