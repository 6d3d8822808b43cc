"""The interface of a USB Attached SCSI device (UAS-3 5.3.3): its class, its pipes, their streams."""

from __future__ import annotations

from dataclasses import replace

from ..usb.descriptors import Endpoint, bulk_endpoint
from ..usb.speed import Speed
from . import information_units as iu

INTERFACE_CLASS = (0x08, 0x06, 0x62)  # mass storage, SCSI transparent, UAS (5.3.3.3)
DATA_IN, DATA_OUT, STATUS, COMMAND = 0x81, 0x02, 0x83, 0x04
"""Addresses of the pipes' endpoints."""

STREAMS = 16
"""Streams of the status and data pipes at SuperSpeed, and so commands at a time."""


def pipes(speed: Speed) -> tuple[Endpoint, ...]:
    """The endpoints of the UAS alternate setting (5.3.3), with their pipe usage descriptors behind them."""
    usages = (
        (COMMAND, iu.COMMAND_PIPE, False),
        (STATUS, iu.STATUS_PIPE, True),
        (DATA_IN, iu.DATA_IN_PIPE, True),
        (DATA_OUT, iu.DATA_OUT_PIPE, True),
    )
    endpoints = []
    for address, usage, has_streams in usages:
        endpoint = bulk_endpoint(address, speed)
        companion = endpoint.companion
        if companion is not None and has_streams:
            companion = replace(companion, attributes=STREAMS.bit_length() - 1)
        endpoints.append(replace(endpoint, companion=companion, extra=iu.pipe_usage(usage)))
    return tuple(endpoints)
