"""The commands and their help. Each loads what it needs when it runs, so that help is quick."""

import logging
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from netloader.cli.answers import Answer, Form
from netloader.cli.choices import Format, Machine
from netloader.cli.codes import MEANINGS
from netloader.cli.instances import fill, run, standby
from netloader.cli.options import Access, Link, command, source
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

Servers = Annotated[list[str], source("SOURCE...", "Servers:")]
Server = Annotated[str, source("SOURCE", "A server:")]


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
@command
def status(
    source: Annotated[str, source("SOURCE", "A server, the URL of a page of metrics, or many:")],
    *,
    link: Link,
) -> Answer:
    """Say what servers offer, and what they do. Takes none of their places.

    For example:

        netloader status 10.0.0.1:19374

        netloader status redis://registry.example/llm --json | jq '.models[].root'

        netloader status http://10.0.0.1:8000/metrics
    """
    from netloader.cli import status as asked

    return asked.run(source, link.client)


@app.command()
@command
def verify(
    first: Annotated[str, source("A", "A server:")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one, in the same ways.")],
    *,
    link: Link,
) -> Answer:
    """Say whether two running servers hold the same weights.

    Compares names, shapes and dtypes of all tensors, and the digest over all bytes that each server
    computed; no weights move. Of several servers that are found, the first that answers counts.
    Exit status 0: the same. 1: others, or it cannot be told.

    For example:

        netloader verify 10.0.0.1:19374 10.0.0.2:19374
    """
    from netloader.cli import verify as compared

    return compared.run(first, second, link.client)


@app.command()
@command
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
    publish: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="A registry that is to name this server: redis://host/prefix, etcd://host/prefix.",
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all and compare it before it is offered.")
    ] = False,
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="CKPT", help="Where the checkpoint of a snapshot is now."),
    ] = None,
    access: Access,
    form: Form,
) -> Answer:
    """Serve a folder of safetensors files, without an engine, until Ctrl-C.

    A folder that `netloader snapshot` or `netloader pull` wrote is served as its source served it:
    every rank and role at one port, with the same identities, names and order of tensors, and the
    digests that the bytes matched when they were written: clients compare what they receive with
    these. Any other folder has the identity model=NAME-OF-THE-FOLDER and its tensors in the order
    of their names, for clients that embed netloader or for `netloader pull`.

    For example:

        netloader serve ./weights --host 10.0.0.1 --port 19374

        NETLOADER_TOKEN=$(cat token) netloader serve ./weights --identity model=llama

        netloader serve ./llama.snapshot --host 10.0.0.1 --publish redis://registry.example/fleet

        netloader serve ./weights --tls-cert host.pem --tls-key host.key --tls-ca ca.pem
    """
    from netloader.cli import serve as served

    pairs = tuple(identity or ())
    wanted = served.Wanted(
        folder, host, port, pairs, max_clients, publish, verify, checkpoint, access
    )
    return served.run(wanted, form)


@app.command()
@command
def pull(
    source: Servers,
    *,
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="The folder to write; it must not exist, or be empty."),
    ],
    role: Annotated[
        str | None, typer.Option(help="Which of the server's models: target or draft.")
    ] = None,
    link: Link,
) -> Answer:
    """Copy the weights of a running server into a folder of safetensors files.

    Sources are tried in order. Every byte is verified, and the folder appears only when it is
    complete. It holds tensors under the names that the server's model has; for vLLM these are not
    those of the checkpoint, so serve the folder with `netloader serve` rather than loading it as a
    checkpoint.

    For example:

        netloader pull 10.0.0.1:19374 --out ./weights

        netloader pull redis://registry.example/llm --out ./draft --role draft
    """
    from netloader.cli import pull as pulled

    return pulled.run(source, out, role, link.client)


@app.command()
@command
def snapshot(
    source: Servers,
    *,
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="The folder to write; it must not exist, or be empty."),
    ],
    layout: Annotated[
        str | None,
        typer.Option(help="raw or processed; without it, what the source serves."),
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Take code of the model too (*.py).")
    ] = False,
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="CKPT", help="A checkpoint here whose bytes are not written again."),
    ] = None,
    link: Link,
) -> Answer:
    """Copy all of a running instance into a folder: every rank and role, and the model's files.

    One server names the other ranks on its host; of an instance on several hosts give one server of
    each. Every byte is verified, and the folder appears only when it is complete. `netloader serve`
    offers it as the instance was offered, also to `netloader run`.

    For example:

        netloader snapshot 10.0.0.1:19374 --out /nvme/llama.snapshot

        netloader snapshot 10.0.0.1:19374 10.0.0.2:19374 --out ./llama --layout processed

        netloader snapshot 10.0.0.1:19374 --out ./llama --checkpoint /models/llama
    """
    from netloader.cli import snapshot as taken

    return taken.run(taken.Asked(source, out, layout, trust, checkpoint), link.client)


@app.command()
@command
def check(
    source: Server,
    *,
    model: Annotated[Path, typer.Option(metavar="DIR", help="The folder of the model here.")],
    engine: Annotated[
        str,
        typer.Option(metavar="JSON", help="Arguments of vLLM's engine, as one JSON object."),
    ] = "{}",
    link: Link,
) -> Answer:
    """Say whether a source would accept an instance that starts here, without building a model.

    Needs vLLM, which reads the folder as it would at a start. Exit status 1: it would refuse, and
    the table names each field with both values and what to do. Of several servers that are found,
    the one with the fewest differences counts.

    For example:

        netloader check 10.0.0.1:19374 --model ./llama

        netloader check redis://registry.example/llm --model ./llama --engine '{"dtype": "half"}'
    """
    from netloader.cli import check as compared
    from netloader.cli import configuration

    return compared.run(source, model, dict(configuration.object_of(engine)), link.client)


@app.command()
@command
def top(
    source: Servers,
    *,
    interval: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="How long between two looks.")
    ] = 2.0,
    times: Annotated[
        int, typer.Option(min=0, metavar="N", help="How many looks; 0: until Ctrl-C.")
    ] = 0,
    link: Link,
    form: Form,
) -> Answer:
    """Watch many servers: state, clients, bytes sent and the rate since the last look.

    Servers that are looked up are looked up each time, so the table follows the fleet. A server
    counts bytes when a client has all that it asked for, so the rate comes in steps.

    For example:

        netloader top redis://registry.example/llm

        netloader top 10.0.0.1:19374 10.0.0.2:19374 --times 1 --json
    """
    from netloader.cli import top as watched

    return watched.run(watched.Watch(source, link.client), interval, times, form)


@app.command()
@command
def bench(
    source: Annotated[
        str | None, source("[SOURCE]", "A server; without it, this process itself.")
    ] = None,
    *,
    size: Annotated[
        int, typer.Option(min=1, max=65536, metavar="MIB", help="MiB, without a server.")
    ] = 256,
    times: Annotated[int, typer.Option(min=1, max=100, metavar="N", help="How many times.")] = 3,
    link: Link,
) -> Answer:
    """Measure how fast verified bytes arrive in the memory of this host.

    From a server it receives all weights and drops them: that takes one of its places, and as much
    memory here as the weights have. Without a server it measures what this host can do at most.

    For example:

        netloader bench

        netloader bench 10.0.0.1:19374 --times 5
    """
    from netloader.cli import bench as measured

    return measured.run(source, size, times, link.client)


for start in (run, standby, fill):
    app.command()(start)


@config.command("check")
@command
def config_check(
    configuration: Annotated[
        str,
        typer.Argument(
            metavar="JSON|@FILE", help="What --model-loader-extra-config gets; -: standard input."
        ),
    ],
) -> Answer:
    """Name all that is wrong with a configuration, before an engine starts with it.

    Files that it names (CONFIG_FILE, AUTH_TOKEN_FILE, TLS_CERT ...) are read on this host.

    For example:

        netloader config check '{"SOURCE": [{"device_id": 0, "sources": ["10.0.0.1:19374"]}]}'

        netloader config check @netloader.json
    """
    from netloader.cli import configuration as checked

    return checked.run(configuration)


@app.command()
@command
def diagram(
    machine: Annotated[Machine, typer.Argument(help="Which machine.")] = Machine.CLIENT,
    *,
    written: Annotated[
        Format, typer.Option("--format", help="As what it is written.")
    ] = Format.MERMAID,
) -> Answer:
    """Draw a state machine, from the table that it runs by.

    client and server are the two ends of a session, source is one source of a client that has
    several, model is a published model.

    For example:

        netloader diagram server > server.mmd
    """
    from netloader.cli import diagram as drawn

    return drawn.run(machine, written)
