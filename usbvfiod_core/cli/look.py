"""Commands that show a running server: list, status, watch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import click

from ..daemon.host_devices import News
from ..daemon.report import sentence
from ..memory import HOW_TO_SHARE, NOTICED_SIZE
from .control import Connect, ControlConnection, control_options
from .output import print_object, print_one_line, print_table, say
from .quantities import duration, microseconds, size


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@control_options
def list_attachments(as_json: bool, connect: Connect) -> None:
    """List what a running server keeps plugged in, and where each stands."""
    with connect() as server:
        answer = server.request("list")
    if as_json:
        print_object(answer)
    elif answer["attachments"]:
        _print_attachments(answer["attachments"])
    else:
        say("no attachments", err=True)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@control_options
def status(as_json: bool, connect: Connect) -> None:
    """Show a running server: its VM, its devices, and what each of their endpoints has done."""
    with connect() as server:
        answer = server.request("status")
    if as_json:
        print_object(answer)
    else:
        _print_status(answer)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@control_options
def watch(as_json: bool, connect: Connect) -> None:
    """Print what happens to attachments, and which devices come and go, until interrupted."""
    news = News()
    with connect() as server:
        try:
            for event in _all_events(server):
                if as_json:
                    print_one_line(event)
                elif event["event"] != "device" or news.is_new(event):
                    say(f"{time.strftime('%H:%M:%S')}  {sentence(event)}")
        except KeyboardInterrupt:
            return


def _all_events(server: ControlConnection) -> Iterator[dict[str, Any]]:
    """What there is, as events, then the events."""
    events = server.events(devices=True)
    for attachment in next(events)["attachments"]:
        yield {"event": "attachment", "attachment": attachment}
    yield from events


def _print_attachments(attachments: list[dict[str, Any]]) -> None:
    titles = ("NUMBER", "NAME", "STATE", "PORT", "ID", "PRODUCT", "SERIAL", "WHERE", "SPEC", "NOTE")
    print_table(titles, [_row(attachment) for attachment in attachments])


def _row(attachment: dict[str, Any]) -> tuple[str, ...]:
    device = attachment["device"] or {}
    vendor = f"{device['vendor_id']:04x}:{device['product_id']:04x}" if device else ""
    port = str(attachment["port"]) if attachment["port"] else ",".join(f"({port})" for port in attachment["ports"])
    reason = attachment["reason"] or attachment["note"]
    if attachment["next_try"] is not None and attachment["state"] == "retrying":
        reason += f"; again in {attachment['next_try']:.1f} s"
    return (
        str(attachment["number"]),
        attachment["name"],
        attachment["state"],
        port,
        vendor,
        attachment["product"] if device else "",
        device.get("serial", ""),
        device.get("port_path", ""),
        attachment["spec"],
        reason,
    )


def _print_status(answer: dict[str, Any]) -> None:
    server, client, memory = answer["server"], answer["client"], answer["memory"]
    serving = "serving" if server["serving"] else f"waiting for {', '.join(server['missing']) or 'devices'}"
    process = f"process {server['pid']} ({server['build']})"
    where = f" on {server['socket']}" if server["socket"] else ""
    say(f"server   {process}, {serving}{where}, for {duration(server['seconds'])}")
    held, missing = server["sandbox"]["stages"], server["sandbox"]["missing"]
    say(f"sandbox  {', '.join(held) or 'none'}" + (f"; missing: {', '.join(missing)}" if missing else ""))
    if client is None:
        say("client   none is connected")
    else:
        name = client["name"] or "a client"
        say(f"client   {name}, process {client['pid']}; {size(memory['shared'])} of memory shared")
        if memory["unshared"] and not memory["shared"]:
            say(f"         the guest's memory is not shared ({HOW_TO_SHARE})")
        elif memory["unshared"] >= NOTICED_SIZE:
            say(f"         {size(memory['unshared'])} of the guest's memory are not shared ({HOW_TO_SHARE})")
    quiesced = server.get("quiesced")  # a server of an earlier version does not say it
    if quiesced is not None:
        say(f"quiesced the guest has seen no device for {duration(quiesced)}; `usbvfiod resume` plugs them in")
    if not answer["attachments"]:
        return
    say()
    _print_attachments(answer["attachments"])
    rows = [
        (
            attachment["name"] or str(attachment["number"]),
            f"{endpoint['address']:02x}",
            endpoint["type"],
            endpoint["state"].lower(),
            str(endpoint["transfers"]),
            size(endpoint["bytes"]),
            ", ".join(f"{count} {error}" for error, count in endpoint["errors"].items()),
            str(endpoint["missed"]) if endpoint["type"] == "isochronous" else "",
            *(microseconds(endpoint[part]) for part in ("p50", "p90", "p99")),
        )
        for attachment, endpoint in _endpoints(answer)
    ]
    if rows:
        say()
        titles = (
            "DEVICE",
            "EP",
            "TYPE",
            "STATE",
            "TRANSFERS",
            "BYTES",
            "ERRORS",
            "MISSED",
            "P50",
            "P90",
            "P99",
        )
        print_table(titles, rows)


def _endpoints(answer: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each endpoint with its attachment."""
    for attachment in answer["attachments"]:
        for endpoint in attachment["endpoints"]:
            yield attachment, endpoint
