"""What a server's metrics are made of: less than it says to `status`, for who asks ten times a second."""

from __future__ import annotations

from functools import partial
from typing import Any

from .metrics_address import MetricsAddress
from .metrics_socket import MetricsSocket
from .report import product
from .server_status import Asked, cpu_seconds, memory, started


def metrics_socket(server: Asked, address: MetricsAddress) -> MetricsSocket:
    """What serves them there, once it is started."""
    access = server.config.server.access("metrics")
    return MetricsSocket(server.loop, address, partial(server_metrics, server), access=access)


def server_metrics(server: Asked) -> dict[str, dict[str, Any]]:
    """What `exposition.Exposition` takes, by the server's name."""
    counted = server.controller.hub.counted()
    return {
        server.steering.called: {
            "server": {
                "usbvfiod": server.version,
                "started": started(server),
                "cpu_seconds": cpu_seconds(),
                "lateness": server.lateness.look(),
            },
            "client": server.transport.client,
            "memory": memory(server),
            "attachments": [
                {
                    "number": each.number,
                    "name": each.spec.name,
                    "spec": each.spec.text,
                    "state": each.state.value,
                    "port": each.port_id,
                    "plugs": each.plugs,
                    "product": product(each),
                    "device": {"vendor_id": each.info.vendor_id, "product_id": each.info.product_id},
                    "endpoints": counted.get(each.port_id, ()),
                }
                for each in server.attachments
            ],
        }
    }
