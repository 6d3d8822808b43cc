"""Numbers of the xHCI 1.2 specification, with the sections they are from. No logic.

Ref: eXtensible Host Controller Interface for Universal Serial Bus, revision 1.2, May 2019.
"""

from __future__ import annotations

# -- Host controller capability registers (5.3) ------------------------------------------------------------
CAPLENGTH = 0x00
HCIVERSION = 0x02
HCSPARAMS1 = 0x04
HCSPARAMS2 = 0x08
HCSPARAMS3 = 0x0C
HCCPARAMS1 = 0x10
DBOFF = 0x14
RTSOFF = 0x18
HCCPARAMS2 = 0x1C

# HCCPARAMS1 (5.3.6)
HCC1_AC64 = 1 << 0
HCC1_BNC = 1 << 1
HCC1_CSZ = 1 << 2
HCC1_PPC = 1 << 3
HCC1_PIND = 1 << 4
HCC1_LHRC = 1 << 5
HCC1_LTC = 1 << 6
HCC1_NSS = 1 << 7
HCC1_PAE = 1 << 8
HCC1_SPC = 1 << 9
HCC1_SEC = 1 << 10
HCC1_CFC = 1 << 11
HCC1_MAXPSASIZE_SHIFT = 12
HCC1_XECP_SHIFT = 16

# -- Operational registers (5.4); offsets from the operational base ----------------------------------------
USBCMD = 0x00
USBSTS = 0x04
PAGESIZE = 0x08
DNCTRL = 0x14
CRCR = 0x18
DCBAAP = 0x30
CONFIG = 0x38
MAX_PORTS = 255
PORT_REGISTERS = 0x400
PORT_STRIDE = 0x10
PORTSC = 0x0
PORTPMSC = 0x4
PORTLI = 0x8
PORTHLPMC = 0xC

# USBCMD (5.4.1)
USBCMD_RS = 1 << 0
USBCMD_HCRST = 1 << 1
USBCMD_INTE = 1 << 2
USBCMD_HSEE = 1 << 3
USBCMD_LHCRST = 1 << 7
USBCMD_CSS = 1 << 8
USBCMD_CRS = 1 << 9
USBCMD_EWE = 1 << 10
USBCMD_EU3S = 1 << 11
USBCMD_CME = 1 << 13
USBCMD_ETE = 1 << 14

# USBSTS (5.4.2)
USBSTS_HCH = 1 << 0
USBSTS_HSE = 1 << 2
USBSTS_EINT = 1 << 3
USBSTS_PCD = 1 << 4
USBSTS_SSS = 1 << 8
USBSTS_RSS = 1 << 9
USBSTS_SRE = 1 << 10
USBSTS_CNR = 1 << 11
USBSTS_HCE = 1 << 12

# CRCR (5.4.5)
CRCR_RCS = 1 << 0
CRCR_CS = 1 << 1
CRCR_CA = 1 << 2
CRCR_CRR = 1 << 3

# CONFIG (5.4.7)
CONFIG_MAXSLOTSEN = 0xFF
CONFIG_U3E = 1 << 8
CONFIG_CIE = 1 << 9

# PORTSC (5.4.8)
PORTSC_CCS = 1 << 0
PORTSC_PED = 1 << 1
PORTSC_OCA = 1 << 3
PORTSC_PR = 1 << 4
PORTSC_PLS_SHIFT = 5
PORTSC_PLS = 0xF << 5
PORTSC_PP = 1 << 9
PORTSC_SPEED_SHIFT = 10
PORTSC_SPEED = 0xF << 10
PORTSC_PIC = 3 << 14
PORTSC_LWS = 1 << 16
PORTSC_CSC = 1 << 17
PORTSC_PEC = 1 << 18
PORTSC_WRC = 1 << 19
PORTSC_OCC = 1 << 20
PORTSC_PRC = 1 << 21
PORTSC_PLC = 1 << 22
PORTSC_CEC = 1 << 23
PORTSC_CAS = 1 << 24
PORTSC_WCE = 1 << 25
PORTSC_WDE = 1 << 26
PORTSC_WOE = 1 << 27
PORTSC_DR = 1 << 30
PORTSC_WPR = 1 << 31
PORTSC_CHANGES = PORTSC_CSC | PORTSC_PEC | PORTSC_WRC | PORTSC_OCC | PORTSC_PRC | PORTSC_PLC | PORTSC_CEC

# Port link states (5.4.8, PLS)
PLS_U0 = 0
PLS_U1 = 1
PLS_U2 = 2
PLS_U3 = 3
PLS_DISABLED = 4
PLS_RXDETECT = 5
PLS_INACTIVE = 6
PLS_POLLING = 7
PLS_RECOVERY = 8
PLS_HOT_RESET = 9
PLS_COMPLIANCE = 10
PLS_TEST = 11
PLS_RESUME = 15

# -- Runtime registers (5.5); offsets from the runtime base ------------------------------------------------
MFINDEX = 0x00
INTERRUPTERS = 0x20
INTERRUPTER_STRIDE = 0x20
IMAN = 0x00
IMOD = 0x04
ERSTSZ = 0x08
ERSTBA = 0x10
ERDP = 0x18

IMAN_IP = 1 << 0
IMAN_IE = 1 << 1
IMOD_DEFAULT = 4000
ERSTSZ_MASK = 0xFFFF
ERDP_DESI = 7
ERDP_EHB = 1 << 3
MFINDEX_MASK = 0x3FFF
MICROFRAME = 125e-6
"""Seconds."""

# -- Doorbell registers (5.6) ----------------------------------------------------------------------------------
DOORBELL_TARGET = 0xFF
DOORBELL_STREAM_SHIFT = 16

# -- Extended capabilities (7) -----------------------------------------------------------------------------
XCAP_SUPPORTED_PROTOCOL = 2
PROTOCOL_NAME_USB = 0x20425355

# -- Transfer request blocks (6.4): four dwords, parameter (two), status, control ---------------------------
TRB_SIZE = 16
TRB_CYCLE = 1 << 0
TRB_TC = 1 << 1  # Link: toggle cycle
TRB_ENT = 1 << 1
TRB_ISP = 1 << 2
TRB_ED = 1 << 2  # Transfer Event: event data
TRB_NS = 1 << 3
TRB_CH = 1 << 4
TRB_IOC = 1 << 5
TRB_IDT = 1 << 6
TRB_BEI = 1 << 9
TRB_BSR = 1 << 9  # Address Device
TRB_DC = 1 << 9  # Configure Endpoint
TRB_TSP = 1 << 9  # Reset Endpoint
TRB_DIR = 1 << 16  # Data Stage, Status Stage
TRB_SP = 1 << 23  # Stop Endpoint
TRB_SIA = 1 << 31  # Isoch
TRB_TYPE_SHIFT = 10
TRB_TYPE_MASK = 0x3F << 10
TRB_ENDPOINT_SHIFT = 16
TRB_ENDPOINT_MASK = 0x1F << 16
TRB_SLOT_SHIFT = 24
TRB_TRT_SHIFT = 16
TRB_TRT_MASK = 3 << 16
TRB_SLOT_TYPE_SHIFT = 16
TRB_SLOT_TYPE_MASK = 0x1F << 16
TRB_SPEED_SHIFT = 16  # Get Port Bandwidth
TRB_TBC_SHIFT = 7
TRB_TBC_MASK = 3 << 7
TRB_TLBPC_SHIFT = 16
TRB_TLBPC_MASK = 0xF << 16
TRB_FRAME_ID_SHIFT = 20
TRB_FRAME_ID_MASK = 0x7FF << 20

# The status dword of transfer TRBs (6.4.1)
TRB_LENGTH_MASK = 0x1FFFF
TRB_TD_SIZE_SHIFT = 17
TRB_TD_SIZE_MASK = 0x1F << 17
TRB_INTERRUPTER_SHIFT = 22
# The status dword of events (6.4.2) and of Set TR Dequeue Pointer (6.4.3.9)
EVENT_CODE_SHIFT = 24
EVENT_LENGTH_MASK = 0xFFFFFF
TRB_STREAM_ID_SHIFT = 16

IMMEDIATE_DATA_MAX = 8
TD_LENGTH_MAX = (1 << 24) - 1

# TRB types (table 6-91)
TRB_NORMAL = 1
TRB_SETUP_STAGE = 2
TRB_DATA_STAGE = 3
TRB_STATUS_STAGE = 4
TRB_ISOCH = 5
TRB_LINK = 6
TRB_EVENT_DATA = 7
TRB_NO_OP = 8
TRB_ENABLE_SLOT = 9
TRB_DISABLE_SLOT = 10
TRB_ADDRESS_DEVICE = 11
TRB_CONFIGURE_ENDPOINT = 12
TRB_EVALUATE_CONTEXT = 13
TRB_RESET_ENDPOINT = 14
TRB_STOP_ENDPOINT = 15
TRB_SET_TR_DEQUEUE = 16
TRB_RESET_DEVICE = 17
TRB_FORCE_EVENT = 18
TRB_NEGOTIATE_BANDWIDTH = 19
TRB_SET_LATENCY_TOLERANCE = 20
TRB_GET_PORT_BANDWIDTH = 21
TRB_FORCE_HEADER = 22
TRB_NO_OP_COMMAND = 23
TRB_GET_EXTENDED_PROPERTY = 24
TRB_SET_EXTENDED_PROPERTY = 25
TRB_TRANSFER_EVENT = 32
TRB_COMMAND_COMPLETION = 33
TRB_PORT_STATUS_CHANGE = 34
TRB_BANDWIDTH_REQUEST = 35
TRB_DOORBELL_EVENT = 36
TRB_HOST_CONTROLLER = 37
TRB_DEVICE_NOTIFICATION = 38
TRB_MFINDEX_WRAP = 39

# Completion codes (table 6-90)
CC_INVALID = 0
CC_SUCCESS = 1
CC_DATA_BUFFER_ERROR = 2
CC_BABBLE = 3
CC_TRANSACTION_ERROR = 4
CC_TRB_ERROR = 5
CC_STALL = 6
CC_RESOURCE_ERROR = 7
CC_BANDWIDTH_ERROR = 8
CC_NO_SLOTS = 9
CC_INVALID_STREAM_TYPE = 10
CC_SLOT_NOT_ENABLED = 11
CC_ENDPOINT_NOT_ENABLED = 12
CC_SHORT_PACKET = 13
CC_RING_UNDERRUN = 14
CC_RING_OVERRUN = 15
CC_VF_EVENT_RING_FULL = 16
CC_PARAMETER_ERROR = 17
CC_BANDWIDTH_OVERRUN = 18
CC_CONTEXT_STATE_ERROR = 19
CC_NO_PING_RESPONSE = 20
CC_EVENT_RING_FULL = 21
CC_INCOMPATIBLE_DEVICE = 22
CC_MISSED_SERVICE = 23
CC_COMMAND_RING_STOPPED = 24
CC_COMMAND_ABORTED = 25
CC_STOPPED = 26
CC_STOPPED_LENGTH_INVALID = 27
CC_STOPPED_SHORT_PACKET = 28
CC_MAX_EXIT_LATENCY_TOO_LARGE = 29
CC_ISOCH_BUFFER_OVERRUN = 31
CC_EVENT_LOST = 32
CC_UNDEFINED_ERROR = 33
CC_INVALID_STREAM_ID = 34
CC_SECONDARY_BANDWIDTH = 35
CC_SPLIT_TRANSACTION = 36

# -- Contexts (6.2) ---------------------------------------------------------------------------------------------
# Slot context (6.2.2)
SLOT_ROUTE_STRING = 0xFFFFF
SLOT_SPEED_SHIFT = 20
SLOT_SPEED_MASK = 0xF << 20
SLOT_MTT = 1 << 25
SLOT_HUB = 1 << 26
SLOT_ENTRIES_SHIFT = 27
SLOT_ENTRIES_MASK = 0x1F << 27
SLOT_MAX_EXIT_LATENCY = 0xFFFF
SLOT_PORT_SHIFT = 16
SLOT_PORT_MASK = 0xFF << 16
SLOT_HUB_PORTS_MASK = 0xFF << 24
SLOT_INTERRUPTER_SHIFT = 22
SLOT_ADDRESS = 0xFF
SLOT_STATE_SHIFT = 27

# Slot states (4.5.3); the first covers Disabled and Enabled in the context
SLOT_DISABLED = 0
SLOT_DEFAULT = 1
SLOT_ADDRESSED = 2
SLOT_CONFIGURED = 3
SLOT_ENABLED = 4  # never in a context: a slot between Enable Slot and Address Device

# Endpoint context (6.2.3)
EP_STATE = 7
EP_MULT_SHIFT = 8
EP_MULT_MASK = 3 << 8
EP_MAXPSTREAMS_SHIFT = 10
EP_MAXPSTREAMS_MASK = 0x1F << 10
EP_LSA = 1 << 15
EP_INTERVAL_SHIFT = 16
EP_INTERVAL_MASK = 0xFF << 16
EP_CERR_SHIFT = 1
EP_TYPE_SHIFT = 3
EP_TYPE_MASK = 7 << 3
EP_HID = 1 << 7
EP_MAX_BURST_SHIFT = 8
EP_MAX_BURST_MASK = 0xFF << 8
EP_MAX_PACKET_SHIFT = 16
EP_DCS = 1
EP_DEQUEUE_MASK = ~0xF & 0xFFFF_FFFF_FFFF_FFFF

# Endpoint states (4.8.3)
EP_DISABLED = 0
EP_RUNNING = 1
EP_HALTED = 2
EP_STOPPED = 3
EP_ERROR = 4

# Endpoint types (table 6-9)
EP_TYPE_NOT_VALID = 0
EP_TYPE_ISOCH_OUT = 1
EP_TYPE_BULK_OUT = 2
EP_TYPE_INTERRUPT_OUT = 3
EP_TYPE_CONTROL = 4
EP_TYPE_ISOCH_IN = 5
EP_TYPE_BULK_IN = 6
EP_TYPE_INTERRUPT_IN = 7

# Input control context (6.2.5.1)
INPUT_DROP = 0
INPUT_ADD = 4

# Streams (6.2.4)
MAX_PSA_SIZE = 5
"""HCCPARAMS1.MaxPSASize of this controller: arrays of 2^(5+1) streams."""
STREAM_CONTEXT_SIZE = 16
SCT_SHIFT = 1
SCT_MASK = 7 << 1
SCT_SECONDARY_RING = 0
SCT_PRIMARY_RING = 1

# -- Event ring segment table (6.5) ---------------------------------------------------------------------------
ERST_ENTRY_SIZE = 16
ERST_SEGMENT_MIN = 16
ERST_SEGMENT_MAX = 4096


_ABBREVIATIONS = {"Trb": "TRB", "Tr": "TR", "Vf": "VF", "Mfindex": "MFINDEX"}


def _names(prefix: str, *leave_out: str) -> dict[int, str]:
    found: dict[int, str] = {}
    for name, value in list(globals().items()):
        if name.startswith(prefix) and name not in leave_out and isinstance(value, int):
            words = name.removeprefix(prefix).title().split("_")
            found.setdefault(value, " ".join(_ABBREVIATIONS.get(word, word) for word in words))
    return found


COMPLETION_CODES = _names("CC_")
"""Completion code -> name, for logs and errors."""

_TRB_BITS = {name for name in globals() if name.endswith(("_SHIFT", "_MASK"))} | {
    *["TRB_SIZE", "TRB_CYCLE", "TRB_TC", "TRB_ENT", "TRB_ISP", "TRB_ED", "TRB_NS", "TRB_CH", "TRB_IOC", "TRB_IDT"],
    *["TRB_BEI", "TRB_BSR", "TRB_DC", "TRB_TSP", "TRB_DIR", "TRB_SP", "TRB_SIA"],
}
TRB_TYPES = _names("TRB_", *_TRB_BITS)
"""TRB type -> name, for logs and errors."""
