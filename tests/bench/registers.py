"""What one read of a register costs, of each server in turn: by the kit's client, and by a guest.

Beside ours: a server in C that answers constants, which no server can be much faster than; the last release; the Rust
program, if `cargo install` has put it where `real_devices` looks; and, in a guest, QEMU's own controller.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from tests.bench import real_devices
from tests.bench.builds import Build, extract, install, last_tag
from tests.bench.guest_registers import RELAXED, RegisterReads, at_slot, in_turn
from tests.bench.measure import Figure, times
from tests.bench.programs import compiled, serving
from tests.bench.rows import Missing, alternating
from tests.vm.guest import Guest
from tests.vm.tree import cache_directory
from usbvfiod_core.pci.vfio import BAR0_REGION
from usbvfiod_core.testing.client import VfioUserClient
from usbvfiod_core.testing.served import ServerProcess
from usbvfiod_core.testing.vmm import CLOUD_HYPERVISOR

OFFSET = 4
"""HCSPARAMS1; any register that is read without an effect."""
OURS, CONSTANTS, RUST, QEMU_XHCI = "usbvfiod", "a server in C that answers constants", "the Rust program", "qemu-xhci"


def release(directory: Path) -> Build:
    """The last release, installed. Raises Missing."""
    tag = last_tag()
    extract(tag, directory / "release")
    return install(directory / "release", directory / "installed", tag, compiles=True)


def servers(stack: ExitStack, directory: Path, released: Build | None) -> tuple[dict[str, Path], list[str]]:
    """Start all there are: their sockets by name, and what is left out and why."""
    sockets, left_out = {OURS: directory / "ours.sock"}, []
    stack.enter_context(ServerProcess(sockets[OURS]))
    if released is not None:
        sockets[f"usbvfiod {released.name}"] = directory / "released.sock"
        stack.enter_context(ServerProcess(directory / "released.sock", python=released.python))
    try:
        socket = directory / "constants.sock"
        stack.enter_context(serving([str(compiled("constant_server", directory)), str(socket)], socket))
        sockets[CONSTANTS] = socket
    except Missing as error:
        left_out.append(f"{CONSTANTS}: {error}")
    peer = cache_directory().parent / real_devices.PEER
    if peer.exists():
        socket = directory / "rust.sock"
        stack.enter_context(serving([str(peer), "--socket-path", str(socket)], socket))
        sockets[RUST] = socket
    else:
        left_out.append(f"{RUST}: `cargo install --locked --root {peer.parents[1]} usbvfiod` has not been run")
    return sockets, left_out


def by_client(directory: Path, rounds: int, count: int, released: Build | None) -> tuple[list[Figure], list[str]]:
    """Round trips of the kit's client, as Cloud Hypervisor; what is left out."""
    with ExitStack() as stack:
        sockets, left_out = servers(stack, directory, released)
        clients = [stack.enter_context(VfioUserClient.connect(path, vmm=CLOUD_HYPERVISOR)) for path in sockets.values()]
        samples = alternating(rounds, *[lambda client=client: _round_trip(client, count) for client in clients])
    return [
        Figure(f"by the kit's client: {name}", "µs", taken) for name, taken in zip(sockets, samples, strict=True)
    ], left_out


def _round_trip(client: VfioUserClient, count: int) -> float:
    taken = times(lambda: client.region_read(BAR0_REGION, OFFSET, 4), count)
    return sorted(taken)[len(taken) // 2]


def by_guest(directory: Path, rounds: int, count: int, released: Build | None) -> tuple[list[Figure], list[str]]:
    """Reads of a guest's processor; what is left out. Raises Missing without a compiler for the guest's program."""
    with ExitStack() as stack:
        sockets, left_out = servers(stack, directory, released)
        if sockets.pop(RUST, None):
            left_out.append(f"{RUST}: it ends when QEMU introduces itself")
        places: dict[str, Path | None] = {**sockets, QEMU_XHCI: None}
        arguments = [word for number, path in enumerate(places.values()) for word in at_slot(number, path)]
        guest = stack.enter_context(Guest(directory, arguments, kernel_arguments=RELAXED))
        samples = in_turn(RegisterReads(guest, directory), range(len(places)), rounds, count)
    figures = [
        Figure(f"by a guest: {name}", "µs", [each / 1000 for each in taken])
        for name, taken in zip(places, samples, strict=True)
    ]
    return figures, left_out
