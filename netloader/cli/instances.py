"""The commands that start instances of vLLM, and fill those that wait."""

from typing import Annotated

import typer

from netloader.cli.answers import Answer, Form
from netloader.cli.options import Access, Link, command, source


@command
def run(
    source: Annotated[str, source("SOURCE", "A server:")],
    words: Annotated[
        list[str], typer.Argument(metavar="-- vllm serve...", help="vLLM's command; no model.")
    ],
    *,
    trust: Annotated[
        bool, typer.Option("--trust", help="Take code of the model too (*.py), and let it run.")
    ] = False,
    caches: Annotated[
        bool,
        typer.Option("--caches", help="Take over what the source computed at its start, too."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Fetch, write vLLM's command, and do not run it.")
    ] = False,
    link: Link,
    form: Form,
) -> Answer:
    """Start vLLM without a folder of its model: fetch its files from a running server, too.

    Config, tokenizer, templates and the like are verified and kept in a cache (NETLOADER_CACHE,
    else ~/.cache/netloader). Then vLLM replaces this process, with that folder and this source;
    the rest of its command stays as it is. With --caches it takes over compiled code and sizes
    from the source (page operate/caches of the docs). Once vLLM runs, the exit status is vLLM's.

    For example:

        netloader run 10.0.0.1:19374 -- vllm serve --port 8000

        netloader run redis://registry.example/llm -- vllm serve --dtype bfloat16

        netloader run 10.0.0.1:19374 --caches --token-file tokens -- vllm serve
    """
    from netloader.cli import run as started

    return started.run(started.Wanted(source, words, trust, caches, dry_run, link), form)


@command
def fill(
    standby: Annotated[
        str,
        typer.Argument(
            metavar="STANDBY", help="The HTTP API of an instance: *host:port*, or *https://...*."
        ),
    ],
    source: Annotated[
        list[str] | None, source("SOURCE", "Servers; none: those it was started with:")
    ] = None,
    *,
    wait: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="How long it may take.")
    ] = 600.0,
    access: Access,
) -> Answer:
    """Fill an instance on standby with the weights of a running server; then it answers requests.

    A single source is for every rank; several are distributed over the ranks in turn. Naming a
    source needs a token of the instance, or vLLM's API key, as NETLOADER_TOKEN or in --token-file.
    Exit status 5: it stays on standby and can be filled again; the message says why.

    For example:

        netloader fill 10.0.0.7:8000

        NETLOADER_TOKEN=$(cat token) netloader fill 10.0.0.7:8000 10.0.0.1:19374
    """
    from netloader.cli import fill as filled

    return filled.run(standby, source or [], wait, access)


@command
def standby(
    words: Annotated[
        list[str], typer.Argument(metavar="-- COMMAND...", help="A command that starts vLLM.")
    ],
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write the command, and do not run it.")
    ] = False,
) -> Answer:
    """Start vLLM on standby: ready except for its weights, until `netloader fill` brings them.

    The command replaces this process, with the load format netloader and STANDBY in its
    --model-loader-extra-config; the rest of it stays as it is.

    For example:

        netloader standby -- vllm serve ./llama --port 8000
    """
    from netloader.cli import standby as started

    return started.run(words, dry_run)
