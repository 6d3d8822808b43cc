"""The messages of the vfio-user protocol: numbers and layouts, no logic.

Reference: "vfio-user Protocol Specification" (docs/interop/vfio-user in QEMU); the section names in the comments are
the specification's. All fields are in host byte order, which is little-endian on every host this runs on.
Every Struct below describes what follows the 16-byte header, unless its comment says that it includes it.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

# -- Header -----------------------------------------------------------------------------------------------------

HEADER: Final = Struct("<HHIII")
"""message id, command, message size (this header included), flags, error (an errno; replies only)."""
HEADER_SIZE: Final = 16

TYPE_MASK: Final = 0xF
TYPE_COMMAND: Final = 0
TYPE_REPLY: Final = 1
NO_REPLY: Final = 0x10
"""Commands only: the sender wants no reply, not even an error."""
ERROR: Final = 0x20
"""Replies only: the command failed, the header's error field says why."""

# -- Commands -----------------------------------------------------------------------------------------------------

VERSION: Final = 1
DMA_MAP: Final = 2
DMA_UNMAP: Final = 3
DEVICE_GET_INFO: Final = 4
DEVICE_GET_REGION_INFO: Final = 5
DEVICE_GET_REGION_IO_FDS: Final = 6
DEVICE_GET_IRQ_INFO: Final = 7
DEVICE_SET_IRQS: Final = 8
REGION_READ: Final = 9
REGION_WRITE: Final = 10
DMA_READ: Final = 11
"""Server to client."""
DMA_WRITE: Final = 12
"""Server to client."""
DEVICE_RESET: Final = 13
DIRTY_PAGES: Final = 14
"""Of an older protocol; always refused."""
REGION_WRITE_MULTI: Final = 15
DEVICE_FEATURE: Final = 16
MIG_DATA_READ: Final = 17
MIG_DATA_WRITE: Final = 18

COMMAND_NAMES: Final = {
    VERSION: "VERSION",
    DMA_MAP: "DMA_MAP",
    DMA_UNMAP: "DMA_UNMAP",
    DEVICE_GET_INFO: "DEVICE_GET_INFO",
    DEVICE_GET_REGION_INFO: "DEVICE_GET_REGION_INFO",
    DEVICE_GET_REGION_IO_FDS: "DEVICE_GET_REGION_IO_FDS",
    DEVICE_GET_IRQ_INFO: "DEVICE_GET_IRQ_INFO",
    DEVICE_SET_IRQS: "DEVICE_SET_IRQS",
    REGION_READ: "REGION_READ",
    REGION_WRITE: "REGION_WRITE",
    DMA_READ: "DMA_READ",
    DMA_WRITE: "DMA_WRITE",
    DEVICE_RESET: "DEVICE_RESET",
    DIRTY_PAGES: "DIRTY_PAGES",
    REGION_WRITE_MULTI: "REGION_WRITE_MULTI",
    DEVICE_FEATURE: "DEVICE_FEATURE",
    MIG_DATA_READ: "MIG_DATA_READ",
    MIG_DATA_WRITE: "MIG_DATA_WRITE",
}

# -- VFIO_USER_VERSION ----------------------------------------------------------------------------------------------

VERSION_FIELDS: Final = Struct("<HH")
"""major, minor; then the version data: a JSON object in UTF-8, ended by a NUL."""
MAJOR: Final = 0
MINOR: Final = 0
"""What we answer: QEMU accepts no higher minor number than its own, 0."""

# Capabilities, and what counts where a side does not name one.
DEFAULT_MAX_MSG_FDS: Final = 1
DEFAULT_MAX_DATA_XFER_SIZE: Final = 1 << 20
DEFAULT_MAX_DMA_MAPS: Final = 65535
DEFAULT_PGSIZES: Final = 4096

# -- VFIO_USER_DMA_MAP ----------------------------------------------------------------------------------------------

DMA_MAP_FIELDS: Final = Struct("<IIQQQ")
"""argsz, flags, offset into the file, address, size. The reply is a header alone."""
DMA_MAP_READ: Final = 0x1
DMA_MAP_WRITE: Final = 0x2
DMA_MAP_MMAP: Final = 0x4
"""Access the file by mmap only."""
DMA_MAP_FILE_IO: Final = 0x8
"""Access the file by read and write only."""

# -- VFIO_USER_DMA_UNMAP --------------------------------------------------------------------------------------------

DMA_UNMAP_FIELDS: Final = Struct("<IIQQ")
"""argsz, flags, address, size. The reply repeats them."""
DMA_UNMAP_GET_DIRTY_BITMAP: Final = 0x1
DMA_UNMAP_ALL: Final = 0x2

# -- VFIO_USER_DEVICE_GET_INFO --------------------------------------------------------------------------------------

DEVICE_INFO: Final = Struct("<IIII")
"""argsz, flags, number of regions, number of interrupt indices."""
DEVICE_FLAG_RESET: Final = 0x1
DEVICE_FLAG_PCI: Final = 0x2

# -- VFIO_USER_DEVICE_GET_REGION_INFO -------------------------------------------------------------------------------

REGION_INFO: Final = Struct("<IIIIQQ")
"""argsz, flags, index, offset of the capabilities, size, offset to pass to mmap."""
REGION_FLAG_READ: Final = 0x1
REGION_FLAG_WRITE: Final = 0x2
REGION_FLAG_MMAP: Final = 0x4
REGION_FLAG_CAPS: Final = 0x8
SPARSE_MMAP: Final = Struct("<HHIII")
"""A capability of a region (struct vfio_region_info_cap_sparse_mmap): id, version, offset of the next capability,
number of areas, and a reserved dword; then the areas, which may be mapped."""
SPARSE_MMAP_ID: Final = 1
SPARSE_MMAP_AREA: Final = Struct("<QQ")
"""offset into the region, size."""

# -- VFIO_USER_DEVICE_GET_REGION_IO_FDS -----------------------------------------------------------------------------

REGION_IO_FDS: Final = Struct("<IIII")
"""argsz, flags, index, count."""

# -- VFIO_USER_DEVICE_GET_IRQ_INFO ----------------------------------------------------------------------------------

IRQ_INFO: Final = Struct("<IIII")
"""argsz, flags, index, count."""
IRQ_FLAG_EVENTFD: Final = 0x1
IRQ_FLAG_MASKABLE: Final = 0x2
IRQ_FLAG_AUTOMASKED: Final = 0x4
IRQ_FLAG_NORESIZE: Final = 0x8

# -- VFIO_USER_DEVICE_SET_IRQS --------------------------------------------------------------------------------------

SET_IRQS_FIELDS: Final = Struct("<IIIII")
"""argsz, flags, index, start, count; with IRQ_DATA_BOOL followed by `count` bytes. The reply is a header alone."""
IRQ_DATA_NONE: Final = 0x1
IRQ_DATA_BOOL: Final = 0x2
IRQ_DATA_EVENTFD: Final = 0x4
IRQ_DATA_MASK: Final = 0x7
IRQ_ACTION_MASK: Final = 0x08
IRQ_ACTION_UNMASK: Final = 0x10
IRQ_ACTION_TRIGGER: Final = 0x20
IRQ_ACTIONS: Final = 0x38

# -- VFIO_USER_REGION_READ, VFIO_USER_REGION_WRITE ------------------------------------------------------------------

REGION_ACCESS: Final = Struct("<QII")
"""offset, region, count; followed by `count` bytes in a write command and in a read reply."""
REGION_MESSAGE: Final = Struct("<HHIIIQII")
"""Header and REGION_ACCESS together: a whole REGION_READ command or REGION_WRITE reply."""
REGISTER_MESSAGE: Final = Struct("<HHIIIQIII")
"""The same and four bytes of data: a whole REGION_WRITE command or REGION_READ reply for a 32-bit register."""

# The same in fewer pieces, which take less time: flags with the error behind them, the region with the count.
REGISTER_FIELDS: Final = Struct("<HHIQQQI")
WRITE_REPLY: Final = Struct("<H14sQQ")
READ_REPLY: Final = Struct("<H14sQQI")
"""Message ID, the rest of the header, offset, region and count; and the data."""
ONE_DWORD: Final = 4 << 32
"""Region 0, with a count of 4."""

# -- VFIO_USER_REGION_WRITE_MULTI -----------------------------------------------------------------------------------

WRITE_MULTI_COUNT: Final = Struct("<Q")
"""Number of WRITE_MULTI_ENTRY that follow; also the whole reply."""
WRITE_MULTI_ENTRY: Final = Struct("<QII8s")
"""offset, region, count (at most 8), data (the first `count` bytes count)."""
MAX_WRITE_MULTI: Final = 200

# -- VFIO_USER_DMA_READ, VFIO_USER_DMA_WRITE ------------------------------------------------------------------------

DMA_ACCESS: Final = Struct("<QQ")
"""address, count; followed by `count` bytes in a write command and in a read reply."""

# -- VFIO_USER_DEVICE_FEATURE ---------------------------------------------------------------------------------------

DEVICE_FEATURE_FIELDS: Final = Struct("<II")
"""argsz, flags: the feature's number in FEATURE_INDEX and the operation."""
FEATURE_INDEX: Final = 0xFFFF
FEATURE_GET: Final = 1 << 16
FEATURE_SET: Final = 1 << 17
FEATURE_PROBE: Final = 1 << 18
FEATURE_MIGRATION: Final = 1
"""VFIO_DEVICE_FEATURE_MIGRATION: whether the device can be migrated; what a VMM asks first."""

# -- VFIO_USER_MIG_DATA_READ, VFIO_USER_MIG_DATA_WRITE --------------------------------------------------------------

MIG_DATA: Final = Struct("<II")
"""argsz, size; followed by `size` bytes in a write command and in a read reply."""

# -- Limits ---------------------------------------------------------------------------------------------------------

MAX_DATA_XFER_SIZE: Final = 1 << 20
"""Largest count of a region access, and what we offer as max_data_xfer_size."""
MAX_MESSAGE_SIZE: Final = HEADER_SIZE + REGION_ACCESS.size + MAX_DATA_XFER_SIZE
"""Largest message either side sends; a header that announces more ends the connection."""
MAX_MSG_FDS: Final = 16
"""File descriptors that we accept in one message, offered as max_msg_fds. QEMU demands at most 16."""
