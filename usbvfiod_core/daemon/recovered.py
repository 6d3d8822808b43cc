"""A server that was killed, as its state file, the descriptors that were held, and the guest's memory have it."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import ClientError
from ..kept_maps import found as found_maps
from ..memory import GuestMemory
from ..memory_state import restore_memory
from ..pci.config_space import MSI_CONTROL, MSI_ENABLE, MSIX_CONTROL, MSIX_ENABLE
from ..pci.interrupts import Mechanism
from ..pci.msix import ENTRY_SIZE
from ..pci.state import FunctionState
from ..serving import PAGE, VECTORS
from ..shared_area import PAGE as PAGE_SIZE
from ..state import StateError, unpack
from ..state_file import StateFile
from ..vfio_user import kept_input, wire
from ..vfio_user.irqs import HELD as HELD_INTERRUPT
from ..vfio_user.session_state import SessionState
from ..vfio_user.transport import ClientState, TransportState
from ..xhci.kept import within
from ..xhci.recovery import recovered as recovered_controller
from ..xhci.registers import INTERRUPTER_PAGE
from ..xhci.state import ControllerState
from .server_state import ReplugState, ServerState
from .steering import SteeringState

SERVER = "server"
"""The part of the document that `KeptServer` is."""


@dataclass
class KeptServer:
    """What a server says of itself whenever it changes. `fixed` is as `server_state.fixed` has it; `mechanisms` are the
    ways to interrupt that the driver is offered, sorted; the others are as in `ServerState` and `ControllerState`."""

    fixed: dict[str, str]
    mechanisms: list[str]
    replug: list[ReplugState] = field(default_factory=list)
    started: float = 0.0
    since: float = 0.0
    upgrades: int = 0
    withholding: bool = False


@dataclass
class _Held:
    names: list[str]


@dataclass
class Recovered:
    """A server to go on with: its state, what of its settings may not have changed, and the descriptors that
    `Transport.restore` and `Controller.restore` want, which are still the caller's. Without a client there is nobody
    to go on with, and `state.replug` is all that matters."""

    state: ServerState
    fixed: dict[str, str]
    transport: dict[str, int]
    page: int | None = None


def recovered(file: StateFile, fds: Mapping[str, int], *, any_memory_file: bool = False) -> Recovered:
    """The server whose state file this is, and whose descriptors were held by these names. All devices are in `replug`,
    and have been unplugged for the guest when the controller goes on; the listening socket and those for control are
    not in it. Raises StateError: what there is makes no sense, or something is missing."""
    document = file.document()
    kept = unpack(KeptServer, document.get(SERVER))
    client = document.get("client")
    for name in unpack(_Held, {"names": document.get("held", [])}).names:
        if client is not None and name not in fds:
            raise StateError(f"{name} was not held")
    function = FunctionState(bytes(file.area("config")).rstrip(b"\0"), kept.mechanisms)
    if Mechanism.MSIX.value in kept.mechanisms:
        function.msix_table = bytes(file.area("msix")[: VECTORS * ENTRY_SIZE])
    msix, msi = (int.from_bytes(file.area("config")[at : at + 2], "little") for at in (MSIX_CONTROL, MSI_CONTROL))
    function.by_configuration = bool(msix & MSIX_ENABLE or msi & MSI_ENABLE)
    memory = GuestMemory(any_files=any_memory_file)
    transport, descriptors = TransportState(None, function), dict[str, int]()
    try:
        if client is not None:
            transport.client = _client(unpack(SessionState, client), file, fds, descriptors)
            files = [descriptors[f"memory/{number}"] for number in range(transport.client.files)]
            restore_memory(memory, transport.client.memory, files)
        page = fds.get(PAGE)
        controller = _controller(file, memory, page, kept)
    except ClientError as error:
        raise StateError(f"maps: {error}") from error
    except (OSError, ValueError) as error:
        raise StateError(f"state file: {error}") from error
    finally:
        memory.unmap_all()
        memory.settle()
    state = ServerState(
        transport,
        controller,
        SteeringState(),
        replug=kept.replug,
        started=kept.started,
        since=kept.since,
        upgrades=kept.upgrades,
    )
    return Recovered(state, kept.fixed, descriptors, page)


def _client(session: SessionState, file: StateFile, fds: Mapping[str, int], into: dict[str, int]) -> ClientState:
    """The client, and its descriptors by the names that `Transport.restore` knows. Raises StateError, ValueError."""
    if "client" not in fds:
        raise StateError("client: its connection was not held")
    into["client"] = fds["client"]
    regions, names = found_maps(file.area("maps"))
    for number, name in enumerate(names):
        if name not in fds:
            raise StateError(f"maps: {name} was not held")
        into[f"memory/{number}"] = fds[name]
    interrupts = []
    for name, fd in fds.items():
        if name.startswith(HELD_INTERRUPT):
            index, _, vector = name.removeprefix(HELD_INTERRUPT).partition("-")
            interrupts.append((int(index), int(vector)))
            into[f"interrupt/{int(index)}/{int(vector)}"] = fd
    session.input, session.doubtful = kept_input.found(file.area("session").cast("Q"), file.area("input"))
    if _brings(session.input[session.doubtful :]):
        raise StateError("client: a descriptor is lost, which it had sent and had no answer to yet")
    if _begins(session.input):
        session.name = session.version = session.capabilities = ""
    return ClientState(session, regions, len(names), interrupts, names)


def _messages(data: bytes) -> list[tuple[int, bytes]]:
    """Command and payload of the messages that are whole."""
    found = []
    while len(data) >= wire.HEADER_SIZE:
        _, command, size, _, _ = wire.HEADER.unpack_from(data)
        if not wire.HEADER_SIZE <= size <= len(data):
            break
        found.append((command, data[wire.HEADER_SIZE : size]))
        data = data[size:]
    return found


def _brings(data: bytes) -> bool:
    """Whether one of these messages has come with a descriptor, as far as its content says."""
    found = False
    for command, payload in _messages(data):
        if command == wire.DMA_MAP and len(payload) == wire.DMA_MAP_FIELDS.size:
            found |= bool(wire.DMA_MAP_FIELDS.unpack(payload)[1] & (wire.DMA_MAP_MMAP | wire.DMA_MAP_FILE_IO))
        elif command == wire.DEVICE_SET_IRQS and len(payload) >= wire.SET_IRQS_FIELDS.size:
            found |= bool(wire.SET_IRQS_FIELDS.unpack_from(payload)[1] & wire.IRQ_DATA_EVENTFD)
    return found


def _begins(data: bytes) -> bool:
    """Whether the client has not had an answer yet to who it is."""
    return any(command == wire.VERSION for command, _ in _messages(data))


def _controller(file: StateFile, memory: GuestMemory, page: int | None, kept: KeptServer) -> ControllerState:
    registers = file.registers()
    content = None
    if page is not None:
        if os.fstat(page).st_size != INTERRUPTER_PAGE + PAGE_SIZE:
            raise StateError("page: it is not a page of registers")
        content = memoryview(mmap.mmap(page, PAGE_SIZE, offset=INTERRUPTER_PAGE))
    return recovered_controller(
        memoryview(registers.map),
        within(registers, file.area("controller")),
        memory,
        content,
        withholding=kept.withholding,
    )
