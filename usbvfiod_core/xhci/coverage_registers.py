"""What each field of the registers, the extended capabilities and the TRBs' flags means to this controller.

As `coverage`: made into docs/xhci-coverage.md, and held against the code by tests/unit/xhci/test_coverage.py. What a
driver may write is not said here but in the tables of `registers`.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import commands, spec
from .command_ring import CommandRing
from .contexts import EndpointContext
from .controller import Controller
from .coverage import Done, Refused, Row
from .endpoint import Endpoint
from .event_ring import EventRing
from .interrupter import Interrupter
from .interrupters import Interrupters
from .isochronous import IsochronousEndpoint
from .mfindex import MicroframeIndex
from .ports import Port
from .registers import ALL, RegisterFile
from .slot import Slot
from .slot_table import SlotTable
from .streams import StreamEndpoint
from .td import collect


@dataclass(frozen=True)
class Field:
    """Bits `mask` of a register."""

    name: str
    mask: int
    row: Row


def _bits(high: int, low: int) -> int:
    return (2 << high) - (1 << low)


def _refused(why: str, answer: str = "reads 0") -> Refused:
    return Refused(why, answer)


_STORED = "stored, without effect"
_CAPABILITIES = ("registers.capability_registers_in_every_width",)
_LIMITS = ("registers.limits_that_guests_insist_on",)
_NO_POWER = "ports have no power switches, HCCPARAMS1.PPC is 0"
_NO_L1 = "no link power management of USB 2, the protocol capability's HLC is 0"
_NO_TRANSACTION = "what is behind `Device.submit` has its own bus, which keeps its own schedule"

CAPABILITIES: dict[str, tuple[int, tuple[Field, ...]]] = {
    "HCSPARAMS1": (
        spec.HCSPARAMS1,
        (
            Field("MaxSlots", _bits(7, 0), Done(SlotTable.enable, _LIMITS)),
            Field("MaxIntrs", _bits(18, 8), Done(Interrupters.post, _LIMITS)),
            Field("MaxPorts", _bits(31, 24), Done(Port, _LIMITS)),
        ),
    ),
    "HCSPARAMS2": (
        spec.HCSPARAMS2,
        (
            Field("IST", _bits(3, 0), Done(IsochronousEndpoint, ("isochronous_frames.the_device_is_told_the_frame",))),
            Field(
                "ERST Max",
                _bits(7, 4),
                Done(EventRing.set_up, ("event_ring.events_come_in_order_through_all_segments",)),
            ),
            Field(
                "Max Scratchpad Bufs", _bits(31, 27) | _bits(25, 21), _refused("the controller keeps its state itself")
            ),
            Field("SPR", _bits(26, 26), _refused("there are no scratchpad buffers")),
        ),
    ),
    "HCSPARAMS3": (
        spec.HCSPARAMS3,
        (Field("U1 and U2 Device Exit Latency", ALL, _refused("ports never enter U1 or U2")),),
    ),
    "HCCPARAMS1": (
        spec.HCCPARAMS1,
        (
            Field("AC64", spec.HCC1_AC64, Done(RegisterFile, ("command_ring.linux_aborts_a_ring_above_4_gib",))),
            Field("BNC", spec.HCC1_BNC, _refused("nothing limits the bandwidth")),
            Field(
                "CSZ",
                spec.HCC1_CSZ,
                _refused("32 bytes are enough; contexts of 64 bytes are an option of the controller, for tests"),
            ),
            Field("PPC", spec.HCC1_PPC, _refused("ports have no power switches")),
            Field("PIND", spec.HCC1_PIND, _refused("ports have no lights")),
            Field("LHRC", spec.HCC1_LHRC, _refused("a reset is as quick, optional")),
            Field("LTC", spec.HCC1_LTC, _refused("no latency tolerance messages")),
            Field("NSS", spec.HCC1_NSS, Done(StreamEndpoint, ("streams.arrays_that_are_not_linear_are_refused",))),
            Field("PAE", spec.HCC1_PAE, _refused("Event Data TRBs behind a failing TRB are not executed, optional")),
            Field("SPC", spec.HCC1_SPC, Done(commands.stop_endpoint, ("partial_tds.stopped_after_a_short_packet",))),
            Field("SEC", spec.HCC1_SEC, _refused("a Set TR Dequeue Pointer starts with an EDTLA of 0, optional")),
            Field("CFC", spec.HCC1_CFC, _refused("Frame IDs are honoured, but need not follow one another, optional")),
            Field(
                "MaxPSASize",
                _bits(15, 12),
                Done(StreamEndpoint, ("streams.max_primary_streams_within_what_the_controller_has",)),
            ),
            Field("xECP", _bits(31, 16), Done(RegisterFile, ("registers.supported_protocols_cover_every_port_once",))),
        ),
    ),
    "HCCPARAMS2": (
        spec.HCCPARAMS2,
        (
            Field("U3C", 1 << 0, _refused("HCIVERSION is 1.0, which has no HCCPARAMS2")),
            Field("CMC, FSC, CTC, LEC, CIC", _bits(5, 1), _refused("as U3C")),
            Field("ETC, TSC", _bits(7, 6), _refused("as U3C")),
            Field("GSC, VTC", _bits(9, 8), _refused("as U3C")),
        ),
    ),
}
"""Host controller capability registers (5.3)."""

EXTENDED_CAPABILITIES: dict[int, tuple[str, Row]] = {
    1: ("USB Legacy Support", _refused("no BIOS of the guest keeps the controller for itself", "not in the list")),
    2: ("Supported Protocol", Done(RegisterFile, ("registers.supported_protocols_cover_every_port_once",))),
    3: ("Extended Power Management", _refused("power management is that of PCI", "not in the list")),
    4: ("I/O Virtualization", _refused("a VM that needs a controller of its own gets one", "not in the list")),
    5: ("Message Interrupt", _refused("interrupts are those of PCI", "not in the list")),
    6: ("Local Memory", _refused("the controller has no memory to offer", "not in the list")),
    10: ("USB Debug", _refused("a guest is debugged by other means", "not in the list")),
    17: ("Extended Message Interrupt", _refused("interrupts are those of PCI", "not in the list")),
}
"""xHCI extended capabilities (7) by ID."""

_RESET = ("run_and_reset.every_register_has_its_reset_value_after_hcrst",)
_RUN = ("run_and_reset.halting_takes_transfers_back_and_starting_goes_on",)
_SAVE = ("run_and_reset.save_and_restore",)
_CRCR = ("command_ring.a_pointer_is_ignored_while_the_ring_runs",)
_RESET_PORT = ("ports.reset",)

FIELDS: dict[str, tuple[Field, ...]] = {
    "USBCMD": (
        Field("RS", spec.USBCMD_RS, Done(Controller.write_usbcmd, _RUN)),
        Field("HCRST", spec.USBCMD_HCRST, Done(Controller.write_usbcmd, _RESET)),
        Field("INTE", spec.USBCMD_INTE, Done(Interrupter.deliver, ("interrupter.masked_interrupts_are_kept",))),
        Field(
            "HSEE",
            spec.USBCMD_HSEE,
            Done(
                Controller.host_system_error,
                ("unshared_memory.a_controller_that_could_do_nothing_does_not_start",),
                "with the message of interrupter 0 in the place of SERR#",
            ),
        ),
        Field("LHCRST", spec.USBCMD_LHCRST, _refused("HCCPARAMS1.LHRC is 0")),
        Field("CSS", spec.USBCMD_CSS, Done(Interrupters.save, _SAVE)),
        Field("CRS", spec.USBCMD_CRS, Done(Interrupters.restore, _SAVE)),
        Field("EWE", spec.USBCMD_EWE, Done(MicroframeIndex.watch, ("mfindex.wrap_events_only_when_enabled",))),
        Field("EU3S", spec.USBCMD_EU3S, _refused("MFINDEX runs whatever the ports do", _STORED)),
        Field("CME", spec.USBCMD_CME, _refused("no Max Exit Latency Too Large Error to enable", _STORED)),
        Field("ETE, TSC_EN, VTIOE", _bits(16, 14), _refused("HCCPARAMS2 is 0")),
    ),
    "USBSTS": (
        Field("HCH", spec.USBSTS_HCH, Done(Controller.write_usbcmd, _RUN)),
        Field(
            "HSE",
            spec.USBSTS_HSE,
            Done(Controller.host_system_error, ("run_and_reset.memory_that_is_gone_is_a_host_system_error",)),
        ),
        Field("EINT", spec.USBSTS_EINT, Done(Interrupter.flush, ("interrupter.eint_comes_with_every_ip",))),
        Field("PCD", spec.USBSTS_PCD, Done(Port, ("ports.changes_while_halted_are_told_at_the_start",))),
        Field(
            "SSS, RSS",
            spec.USBSTS_SSS | spec.USBSTS_RSS,
            _refused("saving and restoring are done at once, inside the write"),
        ),
        Field(
            "SRE", spec.USBSTS_SRE, Done(Controller.write_usbcmd, ("run_and_reset.restore_of_what_was_never_saved",))
        ),
        Field("CNR", spec.USBSTS_CNR, Done(Controller.reset, ("run_and_reset.hcrst_waits_for_transfers_with_cnr",))),
        Field(
            "HCE",
            spec.USBSTS_HCE,
            Done(
                Controller.host_controller_error,
                ("command_ring.a_broken_command_ring_stops_the_controller_until_a_reset",),
            ),
        ),
    ),
    "PAGESIZE": (Field("Page Size", 0xFFFF, Done(RegisterFile, _RESET, "4 KiB")),),
    "DNCTRL": (Field("N0-N15", 0xFFFF, _refused("devices send no Device Notification packets", _STORED)),),
    "CRCR_LO": (
        Field("RCS", spec.CRCR_RCS, Done(CommandRing.write_crcr_lo, _CRCR)),
        Field(
            "CS",
            spec.CRCR_CS,
            Done(CommandRing.write_crcr_lo, ("command_ring.command_stop_waits_for_the_command_in_progress",)),
        ),
        Field(
            "CA",
            spec.CRCR_CA,
            Done(CommandRing.write_crcr_lo, ("command_ring.command_abort_gives_up_on_the_command_in_progress",)),
        ),
        Field(
            "CRR",
            spec.CRCR_CRR,
            Done(CommandRing.doorbell, ("command_ring.crr_is_set_by_the_doorbell_and_cleared_by_halting",)),
        ),
        Field("Command Ring Pointer", _bits(31, 6), Done(CommandRing.write_crcr_lo, _CRCR)),
    ),
    "CRCR_HI": (Field("Command Ring Pointer", ALL, Done(CommandRing.write_crcr_hi, _CRCR)),),
    "DCBAAP_LO": (
        Field(
            "DCBAAP",
            _bits(31, 6),
            Done(SlotTable.device_context, ("commands.address_device_without_an_output_context",)),
        ),
    ),
    "DCBAAP_HI": (
        Field(
            "DCBAAP",
            ALL,
            Done(SlotTable.device_context, ("commands.a_context_array_outside_memory_is_a_host_system_error",)),
        ),
    ),
    "CONFIG": (
        Field(
            "MaxSlotsEn",
            spec.CONFIG_MAXSLOTSEN,
            Done(SlotTable.enable, ("commands.enable_slot_honours_max_slots_enabled",)),
        ),
        Field("U3E", spec.CONFIG_U3E, _refused("HCCPARAMS2.U3C is 0", _STORED)),
        Field("CIE", spec.CONFIG_CIE, _refused("HCCPARAMS2.CIC is 0", _STORED)),
    ),
    "PORTSC": (
        Field("CCS", spec.PORTSC_CCS, Done(Port.plug, ("ports.connect_on_usb_2_waits_for_a_reset",))),
        Field("PED", spec.PORTSC_PED, Done(Port.write_portsc, ("ports.a_usb_2_port_is_disabled_and_reset_again",))),
        Field("OCA, OCC", spec.PORTSC_OCA | spec.PORTSC_OCC, _refused("no current flows, so never too much")),
        Field("PR, PRC", spec.PORTSC_PR | spec.PORTSC_PRC, Done(Port.write_portsc, _RESET_PORT)),
        Field(
            "PLS, LWS",
            spec.PORTSC_PLS | spec.PORTSC_LWS,
            Done(
                Port.write_portsc, ("ports.suspend_and_resume", "ports.seabios_writes_a_link_state_without_its_strobe")
            ),
        ),
        Field("PP", spec.PORTSC_PP, _refused(_NO_POWER, "always 1")),
        Field("Port Speed", spec.PORTSC_SPEED, Done(Port.plug, ("ports.connect_on_usb_3_is_enabled_at_once",))),
        Field("PIC", spec.PORTSC_PIC, _refused("ports have no lights, HCCPARAMS1.PIND is 0", _STORED)),
        Field("CSC", spec.PORTSC_CSC, Done(Port.plug, ("ports.writing_a_change_bit_clears_that_bit_only",))),
        Field(
            "PEC",
            spec.PORTSC_PEC,
            _refused("set when a port fails by itself (4.19.1.1); a device that fails is disconnected", "never set"),
        ),
        Field(
            "WPR, WRC", spec.PORTSC_WPR | spec.PORTSC_WRC, Done(Port.write_portsc, ("ports.warm_reset_is_for_usb_3",))
        ),
        Field("PLC", spec.PORTSC_PLC, Done(Port.remote_wakeup, ("ports.remote_wakeup",))),
        Field("CEC, CAS", spec.PORTSC_CEC | spec.PORTSC_CAS, _refused("links are trained at once, and never fail")),
        Field(
            "WCE, WDE, WOE",
            spec.PORTSC_WCE | spec.PORTSC_WDE | spec.PORTSC_WOE,
            _refused("what wakes the guest's system is the client's business", _STORED),
        ),
        Field("DR", spec.PORTSC_DR, _refused("every device can be unplugged")),
    ),
    "PORTPMSC": (
        Field(
            "USB 3: U1 and U2 Timeout, FLA; USB 2: L1S, RWE, BESL, L1DS, HLE",
            _bits(16, 0),
            _refused(f"ports never enter U1 or U2; {_NO_L1}", _STORED),
        ),
        Field("USB 2: Port Test Control", _bits(31, 28), _refused("there is nothing electrical to test")),
    ),
    "PORTLI": (Field("Link Error Count, RLC, TLC", ALL, _refused("links do not fail, and have one lane")),),
    "PORTHLPMC": (Field("USB 2: HIRDM, L1 Timeout, BESLD", _bits(13, 0), _refused(_NO_L1, _STORED)),),
    "MFINDEX": (
        Field(
            "Microframe Index",
            spec.MFINDEX_MASK,
            Done(MicroframeIndex.read, ("mfindex.it_counts_while_the_controller_runs",)),
        ),
    ),
    "IMAN": (
        Field(
            "IP",
            spec.IMAN_IP,
            Done(Interrupter.flush, ("interrupter.an_event_sets_ip_eint_and_ehb_and_sends_a_message",)),
        ),
        Field("IE", spec.IMAN_IE, Done(Interrupter.deliver, ("interrupter.masked_interrupts_are_kept",))),
    ),
    "IMOD": (
        Field("IMODI", 0xFFFF, Done(Interrupter.flush, ("interrupter.imod_spaces_messages",))),
        Field("IMODC", 0xFFFF0000, _refused("the interval is kept by a timer; it does not count here", _STORED)),
    ),
    "ERSTSZ": (
        Field(
            "ERST Size",
            spec.ERSTSZ_MASK,
            Done(EventRing.set_up, ("event_ring.entries_of_an_illegal_size_end_the_table",)),
        ),
    ),
    "ERSTBA_LO": (
        Field(
            "ERST Base Address",
            _bits(31, 6),
            Done(Interrupter.write_erstba_lo, ("event_ring.every_order_of_setting_a_ring_up",)),
        ),
    ),
    "ERSTBA_HI": (
        Field(
            "ERST Base Address",
            ALL,
            Done(Interrupter.write_erstba_hi, ("event_ring.every_order_of_setting_a_ring_up",)),
        ),
    ),
    "ERDP_LO": (
        Field("DESI", spec.ERDP_DESI, _refused("a hint; the pointer says it", _STORED)),
        Field(
            "EHB",
            spec.ERDP_EHB,
            Done(Interrupter.write_erdp_lo, ("interrupter.no_second_message_while_the_handler_is_busy",)),
        ),
        Field(
            "Event Ring Dequeue Pointer",
            _bits(31, 4),
            Done(EventRing.move_dequeue, ("event_ring.a_dequeue_pointer_into_no_segment_changes_nothing",)),
        ),
    ),
    "ERDP_HI": (
        Field(
            "Event Ring Dequeue Pointer",
            ALL,
            Done(EventRing.move_dequeue, ("event_ring.a_dequeue_pointer_into_no_segment_changes_nothing",)),
        ),
    ),
}
"""Fields of the operational, port and runtime registers (5.4, 5.5), by the names in `registers`."""

DOORBELLS: dict[str, Row] = {
    "DB Target": Done(
        Controller.write, ("endpoint_states.doorbell_targets_that_are_not", "command_ring.doorbell_0_has_one_target")
    ),
    "DB Stream ID": Done(
        StreamEndpoint.doorbell,
        (
            "streams.an_invalid_stream_id_is_reported_and_halts_nothing",
            "endpoint_states.a_stream_id_with_an_endpoint_that_has_no_streams",
        ),
    ),
}
"""Fields of the doorbell registers (5.6)."""

MEMORY: dict[str, Row] = {
    "TRB: C, CH, IOC, ISP, IDT, BEI, ED, TC": Done(
        collect,
        ("ring.a_trb_is_taken_when_its_cycle_bit_is_ours", "report.interrupter_and_bei_come_from_the_trb_of_the_event"),
    ),
    "TRB: Interrupter Target": Done(
        Interrupters.post, ("interrupter.transfer_events_go_to_the_interrupter_of_their_trb",)
    ),
    "TRB: TRB Transfer Length": Done(collect, ("td.65536_bytes_and_buffers_across_64_kib", "td.16_mib_are_too_much")),
    "Setup Stage TRB: TRT": _refused("the setup packet says whether there is a data stage", "ignored"),
    "Data Stage TRB: DIR": Done(collect, ("td.stages_in_disorder",)),
    "Status Stage TRB: DIR": _refused("it follows from the setup packet", "ignored"),
    "Isoch TRB: SIA, Frame ID": Done(IsochronousEndpoint, ("isochronous_frames.the_device_is_told_the_frame",)),
    "Address Device: BSR": Done(commands.address_device, ("commands.address_device_in_two_steps",)),
    "Configure Endpoint: DC": Done(commands.configure_endpoint, ("commands.deconfigure_ignores_its_pointer",)),
    "Reset Endpoint: TSP": Done(commands.reset_endpoint, ("transfers.after_a_partial_error_the_data_is_whole",)),
    "Set TR Dequeue Pointer: DCS, SCT, Stream ID": Done(
        commands.set_tr_dequeue,
        (
            "stop_endpoint.set_tr_dequeue_with_the_other_cycle_state",
            "streams.set_tr_dequeue_pointer_needs_a_stream_and_its_type",
        ),
    ),
    "Enable Slot: Slot Type": Done(commands.enable_slot, ("commands.enable_slot_of_another_type",)),
    "Get Port Bandwidth: Dev Speed, Hub Slot ID": Done(
        commands.get_port_bandwidth, ("commands.get_port_bandwidth", "commands.get_port_bandwidth_of_nothing")
    ),
    "Input control context: Add, Drop": Done(Slot.configure, ("commands.adding_dropping_and_adding_anew",)),
    "Input control context: Configuration Value, Interface Number, Alternate Setting": _refused(
        "HCCPARAMS2.CIC is 0", "ignored"
    ),
    "Slot context: Root Hub Port Number": Done(Slot.address, ("commands.address_device_checks_its_parameters",)),
    "Slot context: Speed, Context Entries": Refused(
        "the port has the speed, and each endpoint is added by itself; drivers write other speeds than the port's",
        _STORED,
        ("commands.any_speed_may_be_in_a_slot_context", "commands.context_entries_are_the_drivers_own_count"),
    ),
    "Slot context: Interrupter Target": Done(
        Slot.evaluate, ("interrupter.events_about_no_trb_go_to_the_interrupter_of_the_slot",)
    ),
    "Slot context: USB Device Address, Slot State": Done(
        Slot.address, ("commands.address_device_writes_the_contexts",)
    ),
    "Endpoint context: EP State": Done(Endpoint.stop, ("endpoint_states.every_command_in_every_state",)),
    "Endpoint context: EP Type": Done(
        EndpointContext.valid_for, ("commands.configure_endpoint_checks_everything_before_it_applies_anything",)
    ),
    "Endpoint context: TR Dequeue Pointer, DCS": Done(
        Endpoint.stop,
        (
            "endpoint_states.endpoints_start_running_with_the_context_as_given",
            "stop_endpoint.a_half_done_td_goes_on_where_it_stood",
        ),
    ),
    "Endpoint context: MaxPStreams, LSA": Done(
        StreamEndpoint,
        (
            "streams.max_primary_streams_within_what_the_controller_has",
            "streams.arrays_that_are_not_linear_are_refused",
        ),
    ),
    "Stream context: TR Dequeue Pointer, DCS, SCT": Done(
        StreamEndpoint, ("streams.a_stream_context_that_is_no_primary_ring",)
    ),
    "Stream context: Stopped EDTLA": _refused("HCCPARAMS1.SEC is 0", "not written"),
    "TRB: TD Size": _refused("says how much is still to come; the TD is known to its end", "ignored"),
    "TRB: ENT": _refused("the next TRB is fetched anyway", "ignored"),
    "TRB: NS": _refused("buffers are never snooped differently", "ignored"),
    "Isoch TRB: TBC, TLBPC": _refused(f"bursts are the device's business; {_NO_TRANSACTION}", "ignored"),
    "Stop Endpoint: SP": _refused("the device is suspended by its port", "ignored"),
    "Slot context: Max Exit Latency": _refused("links have no exit latencies here", _STORED),
    "Slot context: TT Hub Slot ID, TT Port Number, TTT": _refused("no device is behind a TT", _STORED),
    "Slot context: Hub, MTT, Number of Ports": _refused("a hub's devices cannot be attached behind it", _STORED),
    "Slot context: Route String": _refused("no device is behind a hub", "other than 0: Parameter Error"),
    "Endpoint context: CErr, HID": _refused(_NO_TRANSACTION, "ignored"),
    "Endpoint context: Max Packet Size, Interval, Max Burst, Mult": Refused(
        f"drivers write what descriptors say, and devices say anything, a size of 0 too; {_NO_TRANSACTION}",
        _STORED,
        (
            "odd_endpoints.numbers_in_an_endpoint_context",
            "odd_endpoints.a_transfer_on_an_endpoint_of_size_0_fails_by_itself",
        ),
    ),
    "Endpoint context: Average TRB Length, Max ESIT Payload": _refused("nothing is reserved", "ignored"),
}
"""Fields of TRBs and contexts (6)."""
