"""Numbers of the xHCI 1.2 specification, with the sections they are from. No logic.

Ref: eXtensible Host Controller Interface for Universal Serial Bus, revision 1.2, May 2019.
"""

from __future__ import annotations

from typing import Final

# -- Host controller capability registers (5.3) ------------------------------------------------------------
CAPLENGTH: Final = 0x00
HCIVERSION: Final = 0x02
HCSPARAMS1: Final = 0x04
HCSPARAMS2: Final = 0x08
HCSPARAMS3: Final = 0x0C
HCCPARAMS1: Final = 0x10
DBOFF: Final = 0x14
RTSOFF: Final = 0x18
HCCPARAMS2: Final = 0x1C

# HCCPARAMS1 (5.3.6)
HCC1_AC64: Final = 1 << 0
HCC1_BNC: Final = 1 << 1
HCC1_CSZ: Final = 1 << 2
HCC1_PPC: Final = 1 << 3
HCC1_PIND: Final = 1 << 4
HCC1_LHRC: Final = 1 << 5
HCC1_LTC: Final = 1 << 6
HCC1_NSS: Final = 1 << 7
HCC1_PAE: Final = 1 << 8
HCC1_SPC: Final = 1 << 9
HCC1_SEC: Final = 1 << 10
HCC1_CFC: Final = 1 << 11
HCC1_MAXPSASIZE_SHIFT: Final = 12
HCC1_XECP_SHIFT: Final = 16

# -- Operational registers (5.4); offsets from the operational base ----------------------------------------
USBCMD: Final = 0x00
USBSTS: Final = 0x04
PAGESIZE: Final = 0x08
DNCTRL: Final = 0x14
CRCR: Final = 0x18
DCBAAP: Final = 0x30
CONFIG: Final = 0x38
MAX_PORTS: Final = 255
PORT_REGISTERS: Final = 0x400
PORT_STRIDE: Final = 0x10
PORTSC: Final = 0x0
PORTPMSC: Final = 0x4
PORTLI: Final = 0x8
PORTHLPMC: Final = 0xC

# USBCMD (5.4.1)
USBCMD_RS: Final = 1 << 0
USBCMD_HCRST: Final = 1 << 1
USBCMD_INTE: Final = 1 << 2
USBCMD_HSEE: Final = 1 << 3
USBCMD_LHCRST: Final = 1 << 7
USBCMD_CSS: Final = 1 << 8
USBCMD_CRS: Final = 1 << 9
USBCMD_EWE: Final = 1 << 10
USBCMD_EU3S: Final = 1 << 11
USBCMD_CME: Final = 1 << 13
USBCMD_ETE: Final = 1 << 14

# USBSTS (5.4.2)
USBSTS_HCH: Final = 1 << 0
USBSTS_HSE: Final = 1 << 2
USBSTS_EINT: Final = 1 << 3
USBSTS_PCD: Final = 1 << 4
USBSTS_SSS: Final = 1 << 8
USBSTS_RSS: Final = 1 << 9
USBSTS_SRE: Final = 1 << 10
USBSTS_CNR: Final = 1 << 11
USBSTS_HCE: Final = 1 << 12

# CRCR (5.4.5)
CRCR_RCS: Final = 1 << 0
CRCR_CS: Final = 1 << 1
CRCR_CA: Final = 1 << 2
CRCR_CRR: Final = 1 << 3

# CONFIG (5.4.7)
CONFIG_MAXSLOTSEN: Final = 0xFF
CONFIG_U3E: Final = 1 << 8
CONFIG_CIE: Final = 1 << 9

# PORTSC (5.4.8)
PORTSC_CCS: Final = 1 << 0
PORTSC_PED: Final = 1 << 1
PORTSC_OCA: Final = 1 << 3
PORTSC_PR: Final = 1 << 4
PORTSC_PLS_SHIFT: Final = 5
PORTSC_PLS: Final = 0xF << 5
PORTSC_PP: Final = 1 << 9
PORTSC_SPEED_SHIFT: Final = 10
PORTSC_SPEED: Final = 0xF << 10
PORTSC_PIC: Final = 3 << 14
PORTSC_LWS: Final = 1 << 16
PORTSC_CSC: Final = 1 << 17
PORTSC_PEC: Final = 1 << 18
PORTSC_WRC: Final = 1 << 19
PORTSC_OCC: Final = 1 << 20
PORTSC_PRC: Final = 1 << 21
PORTSC_PLC: Final = 1 << 22
PORTSC_CEC: Final = 1 << 23
PORTSC_CAS: Final = 1 << 24
PORTSC_WCE: Final = 1 << 25
PORTSC_WDE: Final = 1 << 26
PORTSC_WOE: Final = 1 << 27
PORTSC_DR: Final = 1 << 30
PORTSC_WPR: Final = 1 << 31
PORTSC_CHANGES: Final = PORTSC_CSC | PORTSC_PEC | PORTSC_WRC | PORTSC_OCC | PORTSC_PRC | PORTSC_PLC | PORTSC_CEC

# Port link states (5.4.8, PLS)
PLS_U0: Final = 0
PLS_U1: Final = 1
PLS_U2: Final = 2
PLS_U3: Final = 3
PLS_DISABLED: Final = 4
PLS_RXDETECT: Final = 5
PLS_INACTIVE: Final = 6
PLS_POLLING: Final = 7
PLS_RECOVERY: Final = 8
PLS_HOT_RESET: Final = 9
PLS_COMPLIANCE: Final = 10
PLS_TEST: Final = 11
PLS_RESUME: Final = 15

# -- Runtime registers (5.5); offsets from the runtime base ------------------------------------------------
MFINDEX: Final = 0x00
INTERRUPTERS: Final = 0x20
INTERRUPTER_STRIDE: Final = 0x20
IMAN: Final = 0x00
IMOD: Final = 0x04
ERSTSZ: Final = 0x08
ERSTBA: Final = 0x10
ERDP: Final = 0x18

IMAN_IP: Final = 1 << 0
IMAN_IE: Final = 1 << 1
IMOD_DEFAULT: Final = 4000
ERSTSZ_MASK: Final = 0xFFFF
ERDP_DESI: Final = 7
ERDP_EHB: Final = 1 << 3
MFINDEX_MASK: Final = 0x3FFF
MICROFRAME: Final = 125e-6
"""Seconds."""

# -- Doorbell registers (5.6) ----------------------------------------------------------------------------------
DOORBELL_TARGET: Final = 0xFF
DOORBELL_STREAM_SHIFT: Final = 16

# -- Extended capabilities (7) -----------------------------------------------------------------------------
XCAP_SUPPORTED_PROTOCOL: Final = 2
PROTOCOL_NAME_USB: Final = 0x20425355

# -- Transfer request blocks (6.4): four dwords, parameter (two), status, control ---------------------------
TRB_SIZE: Final = 16
TRB_CYCLE: Final = 1 << 0
TRB_TC: Final = 1 << 1  # Link: toggle cycle
TRB_ENT: Final = 1 << 1
TRB_ISP: Final = 1 << 2
TRB_ED: Final = 1 << 2  # Transfer Event: event data
TRB_NS: Final = 1 << 3
TRB_CH: Final = 1 << 4
TRB_IOC: Final = 1 << 5
TRB_IDT: Final = 1 << 6
TRB_BEI: Final = 1 << 9
TRB_BSR: Final = 1 << 9  # Address Device
TRB_DC: Final = 1 << 9  # Configure Endpoint
TRB_TSP: Final = 1 << 9  # Reset Endpoint
TRB_DIR: Final = 1 << 16  # Data Stage, Status Stage
TRB_SP: Final = 1 << 23  # Stop Endpoint
TRB_SIA: Final = 1 << 31  # Isoch
TRB_TYPE_SHIFT: Final = 10
TRB_TYPE_MASK: Final = 0x3F << 10
TRB_ENDPOINT_SHIFT: Final = 16
TRB_ENDPOINT_MASK: Final = 0x1F << 16
TRB_SLOT_SHIFT: Final = 24
TRB_TRT_SHIFT: Final = 16
TRB_TRT_MASK: Final = 3 << 16
TRB_SLOT_TYPE_SHIFT: Final = 16
TRB_SLOT_TYPE_MASK: Final = 0x1F << 16
TRB_SPEED_SHIFT: Final = 16  # Get Port Bandwidth
TRB_TBC_SHIFT: Final = 7
TRB_TBC_MASK: Final = 3 << 7
TRB_TLBPC_SHIFT: Final = 16
TRB_TLBPC_MASK: Final = 0xF << 16
TRB_FRAME_ID_SHIFT: Final = 20
TRB_FRAME_ID_MASK: Final = 0x7FF << 20

# The status dword of transfer TRBs (6.4.1)
TRB_LENGTH_MASK: Final = 0x1FFFF
TRB_TD_SIZE_SHIFT: Final = 17
TRB_TD_SIZE_MASK: Final = 0x1F << 17
TRB_INTERRUPTER_SHIFT: Final = 22
# The status dword of events (6.4.2) and of Set TR Dequeue Pointer (6.4.3.9)
EVENT_CODE_SHIFT: Final = 24
EVENT_LENGTH_MASK: Final = 0xFFFFFF
TRB_STREAM_ID_SHIFT: Final = 16

IMMEDIATE_DATA_MAX: Final = 8
TD_LENGTH_MAX: Final = (1 << 24) - 1

# TRB types (table 6-91)
TRB_NORMAL: Final = 1
TRB_SETUP_STAGE: Final = 2
TRB_DATA_STAGE: Final = 3
TRB_STATUS_STAGE: Final = 4
TRB_ISOCH: Final = 5
TRB_LINK: Final = 6
TRB_EVENT_DATA: Final = 7
TRB_NO_OP: Final = 8
TRB_ENABLE_SLOT: Final = 9
TRB_DISABLE_SLOT: Final = 10
TRB_ADDRESS_DEVICE: Final = 11
TRB_CONFIGURE_ENDPOINT: Final = 12
TRB_EVALUATE_CONTEXT: Final = 13
TRB_RESET_ENDPOINT: Final = 14
TRB_STOP_ENDPOINT: Final = 15
TRB_SET_TR_DEQUEUE: Final = 16
TRB_RESET_DEVICE: Final = 17
TRB_FORCE_EVENT: Final = 18
TRB_NEGOTIATE_BANDWIDTH: Final = 19
TRB_SET_LATENCY_TOLERANCE: Final = 20
TRB_GET_PORT_BANDWIDTH: Final = 21
TRB_FORCE_HEADER: Final = 22
TRB_NO_OP_COMMAND: Final = 23
TRB_GET_EXTENDED_PROPERTY: Final = 24
TRB_SET_EXTENDED_PROPERTY: Final = 25
TRB_TRANSFER_EVENT: Final = 32
TRB_COMMAND_COMPLETION: Final = 33
TRB_PORT_STATUS_CHANGE: Final = 34
TRB_BANDWIDTH_REQUEST: Final = 35
TRB_DOORBELL_EVENT: Final = 36
TRB_HOST_CONTROLLER: Final = 37
TRB_DEVICE_NOTIFICATION: Final = 38
TRB_MFINDEX_WRAP: Final = 39

# Completion codes (table 6-90)
CC_INVALID: Final = 0
CC_SUCCESS: Final = 1
CC_DATA_BUFFER_ERROR: Final = 2
CC_BABBLE: Final = 3
CC_TRANSACTION_ERROR: Final = 4
CC_TRB_ERROR: Final = 5
CC_STALL: Final = 6
CC_RESOURCE_ERROR: Final = 7
CC_BANDWIDTH_ERROR: Final = 8
CC_NO_SLOTS: Final = 9
CC_INVALID_STREAM_TYPE: Final = 10
CC_SLOT_NOT_ENABLED: Final = 11
CC_ENDPOINT_NOT_ENABLED: Final = 12
CC_SHORT_PACKET: Final = 13
CC_RING_UNDERRUN: Final = 14
CC_RING_OVERRUN: Final = 15
CC_VF_EVENT_RING_FULL: Final = 16
CC_PARAMETER_ERROR: Final = 17
CC_BANDWIDTH_OVERRUN: Final = 18
CC_CONTEXT_STATE_ERROR: Final = 19
CC_NO_PING_RESPONSE: Final = 20
CC_EVENT_RING_FULL: Final = 21
CC_INCOMPATIBLE_DEVICE: Final = 22
CC_MISSED_SERVICE: Final = 23
CC_COMMAND_RING_STOPPED: Final = 24
CC_COMMAND_ABORTED: Final = 25
CC_STOPPED: Final = 26
CC_STOPPED_LENGTH_INVALID: Final = 27
CC_STOPPED_SHORT_PACKET: Final = 28
CC_MAX_EXIT_LATENCY_TOO_LARGE: Final = 29
CC_ISOCH_BUFFER_OVERRUN: Final = 31
CC_EVENT_LOST: Final = 32
CC_UNDEFINED_ERROR: Final = 33
CC_INVALID_STREAM_ID: Final = 34
CC_SECONDARY_BANDWIDTH: Final = 35
CC_SPLIT_TRANSACTION: Final = 36

# -- Contexts (6.2) ---------------------------------------------------------------------------------------------
# Slot context (6.2.2)
SLOT_ROUTE_STRING: Final = 0xFFFFF
SLOT_SPEED_SHIFT: Final = 20
SLOT_SPEED_MASK: Final = 0xF << 20
SLOT_MTT: Final = 1 << 25
SLOT_HUB: Final = 1 << 26
SLOT_ENTRIES_SHIFT: Final = 27
SLOT_ENTRIES_MASK: Final = 0x1F << 27
SLOT_MAX_EXIT_LATENCY: Final = 0xFFFF
SLOT_PORT_SHIFT: Final = 16
SLOT_PORT_MASK: Final = 0xFF << 16
SLOT_HUB_PORTS_MASK: Final = 0xFF << 24
SLOT_INTERRUPTER_SHIFT: Final = 22
SLOT_ADDRESS: Final = 0xFF
SLOT_STATE_SHIFT: Final = 27

# Slot states (4.5.3); the first covers Disabled and Enabled in the context
SLOT_DISABLED: Final = 0
SLOT_DEFAULT: Final = 1
SLOT_ADDRESSED: Final = 2
SLOT_CONFIGURED: Final = 3
SLOT_ENABLED: Final = 4  # never in a context: a slot between Enable Slot and Address Device

# Endpoint context (6.2.3)
EP_STATE: Final = 7
EP_MULT_SHIFT: Final = 8
EP_MULT_MASK: Final = 3 << 8
EP_MAXPSTREAMS_SHIFT: Final = 10
EP_MAXPSTREAMS_MASK: Final = 0x1F << 10
EP_LSA: Final = 1 << 15
EP_INTERVAL_SHIFT: Final = 16
EP_INTERVAL_MASK: Final = 0xFF << 16
EP_CERR_SHIFT: Final = 1
EP_TYPE_SHIFT: Final = 3
EP_TYPE_MASK: Final = 7 << 3
EP_HID: Final = 1 << 7
EP_MAX_BURST_SHIFT: Final = 8
EP_MAX_BURST_MASK: Final = 0xFF << 8
EP_MAX_PACKET_SHIFT: Final = 16
EP_DCS: Final = 1
EP_DEQUEUE_MASK: Final = ~0xF & 0xFFFF_FFFF_FFFF_FFFF

# Endpoint states (4.8.3)
EP_DISABLED: Final = 0
EP_RUNNING: Final = 1
EP_HALTED: Final = 2
EP_STOPPED: Final = 3
EP_ERROR: Final = 4

# Endpoint types (table 6-9)
EP_TYPE_NOT_VALID: Final = 0
EP_TYPE_ISOCH_OUT: Final = 1
EP_TYPE_BULK_OUT: Final = 2
EP_TYPE_INTERRUPT_OUT: Final = 3
EP_TYPE_CONTROL: Final = 4
EP_TYPE_ISOCH_IN: Final = 5
EP_TYPE_BULK_IN: Final = 6
EP_TYPE_INTERRUPT_IN: Final = 7

# Input control context (6.2.5.1)
INPUT_DROP: Final = 0
INPUT_ADD: Final = 4

# Streams (6.2.4)
MAX_PSA_SIZE: Final = 5
"""HCCPARAMS1.MaxPSASize of this controller: arrays of 2^(5+1) streams."""
STREAM_CONTEXT_SIZE: Final = 16
SCT_SHIFT: Final = 1
SCT_MASK: Final = 7 << 1
SCT_SECONDARY_RING: Final = 0
SCT_PRIMARY_RING: Final = 1

# -- Event ring segment table (6.5) ---------------------------------------------------------------------------
ERST_ENTRY_SIZE: Final = 16
ERST_SEGMENT_MIN: Final = 16
ERST_SEGMENT_MAX: Final = 4096


_ABBREVIATIONS: Final = {"Trb": "TRB", "Tr": "TR", "Vf": "VF", "Mfindex": "MFINDEX"}


def _names(prefix: str, *leave_out: str) -> dict[int, str]:
    found: dict[int, str] = {}
    for name, value in list(globals().items()):
        if name.startswith(prefix) and name not in leave_out and isinstance(value, int):
            words = name.removeprefix(prefix).title().split("_")
            found.setdefault(value, " ".join(_ABBREVIATIONS.get(word, word) for word in words))
    return found


COMPLETION_CODES: Final = _names("CC_")
"""Completion code -> name, for logs and errors."""

_TRB_BITS: Final = {name for name in globals() if name.endswith(("_SHIFT", "_MASK"))} | {
    *["TRB_SIZE", "TRB_CYCLE", "TRB_TC", "TRB_ENT", "TRB_ISP", "TRB_ED", "TRB_NS", "TRB_CH", "TRB_IOC", "TRB_IDT"],
    *["TRB_BEI", "TRB_BSR", "TRB_DC", "TRB_TSP", "TRB_DIR", "TRB_SP", "TRB_SIA"],
}
TRB_TYPES: Final = _names("TRB_", *_TRB_BITS)
"""TRB type -> name, for logs and errors."""
