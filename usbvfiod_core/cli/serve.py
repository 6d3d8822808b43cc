"""Bare `usbvfiod`: what is done with a command line that has been read, before there is a server, and the server."""

from __future__ import annotations

import os

from ..daemon import log, places
from ..daemon.activation import serving_them, take_sockets
from ..daemon.config import CommandLine
from ..daemon.config_file import ConfigFile
from ..daemon.successor import HANDOVER
from ..errors import ConfigError
from ..hooks.registry import Registry
from .checks import Given, settings


def told(registry: Registry, command_line: CommandLine, file: ConfigFile | None) -> Given:
    """Log as the command line and its file say, from now on, and ask the plugins for their options."""
    server = settings(command_line, file)
    modules = [plugin.module for plugin in registry.plugins]
    log.set_up(-1 if server.quiet else server.verbose, server.log_format, modules)
    return Given(registry, command_line, file, registry.declared())


def serve(given: Given) -> None:
    """Serve one VM until the server is to end. Raises UsbvfiodError at start only."""
    taking = None
    if HANDOVER in os.environ:
        from ..daemon.taking_over import TakingOver  # few servers take another one's place

        taking = TakingOver.begun(os.environ)
    configuration, backends = given.complete()
    sockets = take_sockets(os.environ)
    if taking is not None:
        configuration, sockets = taking.prepared(configuration, backends)
    configuration = serving_them(configuration, sockets)
    try:
        configuration.check_socket()
    except ConfigError as error:
        raise ConfigError(f"{error} (try usbvfiod --help)") from None
    given.registry.configure(configuration.plugins)

    from ..daemon import server  # asyncio, which no mistake waits for

    place = None if configuration.server.no_control else places.directory(os.environ)
    server.serve(
        configuration,
        given.registry,
        backends,
        control_fd=sockets.control,
        place=place,
        taking=taking,
        held=sockets.held,
    )
