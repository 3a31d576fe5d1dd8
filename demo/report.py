"""What a person sees at the end: where the weights came from, how fast, and both answers."""

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from demo.paths import BARE_MODEL, MODEL, shown, weight_files
from demo.servers import DemoError, Server

Record = Mapping[str, Any]
"""One line of a LOG_JSON file."""

COLUMN: Final = 44
WHY: Final = re.compile(r"netloader\.(reason|detail|remedy|difference|weights_dirty)|exception\.m")
PHASE: Final = re.compile(r"netloader\.phase\.(\w+)\.duration_s")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said to one prompt."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str


@dataclass(frozen=True, slots=True)
class Exchange:
    """One prompt and what both servers said to it."""

    prompt: str
    by_server: Answer
    by_client: Answer

    @property
    def same(self) -> bool:
        return self.by_server == self.by_client


def read_records(log: Path) -> list[Record]:
    """All records of a JSON-lines log; none if it was never written."""
    if not log.is_file():
        return []
    lines = log.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def client_session(log: Path) -> Record:
    """The line that tells how the client got its weights; DemoError unless it got them all."""
    records = read_records(log)
    sessions = [
        record
        for record in records
        if record.get("event") == "netloader.session.closed"
        and record.get("netloader.side") == "client"
    ]
    if not sessions:
        events = ", ".join(sorted({str(record.get("event")) for record in records})) or "nothing"
        raise DemoError(f"{shown(log)} tells of no session of the client, only of: {events}")
    last = sessions[-1]
    if str(last.get("netloader.outcome")).lower() != "done":
        raise DemoError(f"the client did not get the weights: {json.dumps(last, indent=2)}")
    if any(record.get("event") == "netloader.fallback.engaged" for record in records):
        raise DemoError(f"the client fell back to the ordinary loader, see {shown(log)}")
    if not last.get("netloader.transfer.bytes"):
        raise DemoError(f"the client is done without one byte: {json.dumps(last, indent=2)}")
    return last


def troubles(folder: Path) -> str:
    """What netloader itself warned of in any of the logs: why a demo failed is often there."""
    lines = [
        f"    {log.stem}: {record['event']}  {telling(record)}"
        for log in sorted(folder.glob("*.jsonl"))
        for record in read_records(log)
        if record.get("severity") not in ("DEBUG", "INFO")
    ]
    return "\n".join(["\nwhat netloader warned of:", *lines]) if lines else ""


def telling(record: Record) -> str:
    """The fields that say why, without those that say where, when and how much."""
    found = (f"{key.removeprefix('netloader.')}={record[key]}" for key in record if WHY.match(key))
    return "  ".join(found)


def print_report(server: Server, client: Server, session: Record, talks: list[Exchange]) -> bool:
    """Print it all; whether every answer was the same."""
    print()
    for line in transfer_lines(server, client, session):
        print(line)
    print(f"\nanswers at temperature 0\n  {'server':<{COLUMN}}  client")
    for talk in talks:
        print("\n".join(talk_lines(talk)))
    same = all(talk.same for talk in talks)
    tokens = sum(len(talk.by_server.token_ids) for talk in talks)
    print(f"\nidentical: {'yes' if same else 'NO'}   ({len(talks)} answers, {tokens} tokens)")
    return same


def transfer_lines(server: Server, client: Server, session: Record) -> Iterator[str]:
    """Who started how, and what moved between them."""
    on_disk = sum(path.stat().st_size for path in weight_files(MODEL))
    here = len(list(BARE_MODEL.iterdir()))
    yield "start-up"
    yield f"  server  {server.ready_after_s:6.1f} s   from its own disk, {on_disk:,} bytes"
    yield f"  client  {client.ready_after_s:6.1f} s   from the server; its own disk has none of"
    yield f"                     them, only {here} files of configuration and tokenizer"
    yield ""
    yield "transfer, as the client logged it"
    yield f"  outcome    {show(session, 'netloader.outcome')} ({show(session, 'netloader.reason')})"
    peer = f"{show(session, 'network.peer.address')}:{show(session, 'network.peer.port')}"
    yield f"  source     {peer}, attempt {show(session, 'netloader.source.attempt')}"
    yield f"  bytes      {show(session, 'netloader.transfer.bytes')}"
    yield f"  seconds    {show(session, 'netloader.transfer.duration_s')}"
    rate = session.get("netloader.transfer.throughput_bytes_per_s")
    yield f"  rate       {'?' if rate is None else f'{rate / 2**30:.2f} GiB/s'}"
    yield f"  phases     {phases(session)}"
    yield ""
    yield "logs"
    for log in (server.log, client.log):
        yield f"  {shown(log)}  {shown(log.with_suffix('.jsonl'))}"


def show(record: Record, key: str) -> str:
    """One field for reading; a field that is not there is shown as such, not hidden."""
    value = record.get(key, "?")
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) and value > 99_999 else str(value)


def phases(record: Record) -> str:
    """Seconds in each state, in the order in which the session went through them."""
    found = [(match[1], record[key]) for key in record if (match := PHASE.fullmatch(key))]
    return "  ".join(f"{name.lower()} {seconds:.3f} s" for name, seconds in found) or "?"


def talk_lines(talk: Exchange) -> Iterator[str]:
    """Prompt, then both answers in two columns."""
    yield f"\n  > {talk.prompt}{'' if talk.same else '     <-- DIFFERENT'}"
    left, right = (
        textwrap.wrap(" ".join(answer.text.split()), COLUMN) or ["(nothing)"]
        for answer in (talk.by_server, talk.by_client)
    )
    for row in range(max(len(left), len(right))):
        cells = [column[row] if row < len(column) else "" for column in (left, right)]
        yield f"  {cells[0]:<{COLUMN}}  {cells[1]}".rstrip()
