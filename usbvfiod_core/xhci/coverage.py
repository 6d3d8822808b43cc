"""What of the specification this controller does, and what it refuses, for what reason and with what answer.

Every TRB type, completion code and event of xHCI 1.2 has a row here; registers and capabilities have theirs in
`coverage_registers`. docs/xhci-coverage.md is made of these tables and those that the controller itself works with
(commands, registers, state machines), and tests/unit/xhci/test_coverage.py holds the rows against the code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import commands, spec
from .command_ring import CommandRing
from .contexts import EndpointContext
from .controller import Controller
from .endpoint import Endpoint
from .engine import TransferEngine
from .event_ring import EventRing
from .interrupter import Interrupter
from .interrupters import Interrupters
from .isochronous import IsochronousEndpoint
from .ports import Port
from .registers import RegisterFile
from .remapping import Remapping
from .report import report, report_skipped
from .ring import ConsumerRing
from .root_hub import RootHub
from .slot import Slot
from .streams import StreamEndpoint
from .td import collect


@dataclass(frozen=True)
class Done:
    """Implemented: `by` does it, `tests` show it (file in tests/unit/xhci, without test_ and .py, and test)."""

    by: Callable[..., Any]
    tests: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class Refused:
    """Not implemented: `why`, and what the guest sees instead; `tests` where there is something to be seen."""

    why: str
    answer: str
    tests: tuple[str, ...] = ()


Row = Done | Refused

_REFUSED_COMMANDS = ("command_ring.commands_that_are_unknown_or_not_supported",)
_COMMAND_ERROR = "TRB Error"

TRANSFER_TRBS: dict[int, Row] = {
    spec.TRB_NORMAL: Done(collect, ("td.one_trb_is_one_window_in_guest_memory", "transfers.chains_with_any_split")),
    spec.TRB_SETUP_STAGE: Done(collect, ("td.three_stages_are_one_transfer", "control_transfers.every_stage_with_ioc")),
    spec.TRB_DATA_STAGE: Done(collect, ("td.three_stages_are_one_transfer", "td.no_more_than_wlength_is_moved")),
    spec.TRB_STATUS_STAGE: Done(collect, ("td.two_stages", "td.stages_in_disorder")),
    spec.TRB_ISOCH: Done(IsochronousEndpoint, ("isochronous.a_td_becomes_one_transfer_of_one_packet",)),
    spec.TRB_LINK: Done(
        ConsumerRing.read, ("ring.a_link_moves_on_and_toggles_only_with_tc", "ring.a_link_to_itself_is_a_loop")
    ),
    spec.TRB_EVENT_DATA: Done(report, ("report.events_of_a_td", "partial_tds.each_part_is_executed_when_it_is_there")),
    spec.TRB_NO_OP: Done(
        collect, ("transfers.no_ops_are_retired_in_order", "td.a_no_op_inside_a_chain_counts_nothing")
    ),
}
"""TRBs of transfer rings. Any other type there, and one that does not belong where it is, is a TRB Error."""

COMMAND_TRBS: dict[int, Row] = {
    spec.TRB_ENABLE_SLOT: Done(
        commands.enable_slot, ("commands.64_slots_and_no_more", "commands.enable_slot_honours_max_slots_enabled")
    ),
    spec.TRB_DISABLE_SLOT: Done(
        commands.disable_slot, ("commands.disable_slot_takes_transfers_back_without_an_event",)
    ),
    spec.TRB_ADDRESS_DEVICE: Done(
        commands.address_device,
        ("commands.address_device_in_two_steps", "commands.address_device_checks_its_parameters"),
    ),
    spec.TRB_CONFIGURE_ENDPOINT: Done(
        commands.configure_endpoint,
        (
            "commands.adding_dropping_and_adding_anew",
            "commands.configure_endpoint_checks_everything_before_it_applies_anything",
        ),
    ),
    spec.TRB_EVALUATE_CONTEXT: Done(
        commands.evaluate_context,
        (
            "commands.evaluate_context_takes_the_packet_size_only",
            "commands.evaluate_context_takes_latency_and_interrupter_of_the_slot",
            "commands.evaluate_context_before_address_device",
        ),
        "also before Address Device, where 4.6.7 has a Context State Error: Linux does so after hibernation",
    ),
    spec.TRB_RESET_ENDPOINT: Done(
        commands.reset_endpoint,
        ("endpoint_states.every_command_in_every_state", "transfers.soft_retry_executes_the_td_again"),
    ),
    spec.TRB_STOP_ENDPOINT: Done(
        commands.stop_endpoint,
        ("stop_endpoint.an_idle_endpoint_gives_a_forced_stopped_event", "stop_endpoint.stopped_in_mid_td_and_resumed"),
    ),
    spec.TRB_SET_TR_DEQUEUE: Done(
        commands.set_tr_dequeue,
        (
            "stop_endpoint.set_tr_dequeue_forgets_what_was_half_done",
            "streams.set_tr_dequeue_pointer_needs_a_stream_and_its_type",
        ),
    ),
    spec.TRB_RESET_DEVICE: Done(
        commands.reset_device, ("commands.reset_device", "commands.the_whole_reset_of_a_device")
    ),
    spec.TRB_FORCE_EVENT: Refused(
        "for a VMM that gives parts of a controller to guests; there is no I/O Virtualization capability",
        _COMMAND_ERROR,
        _REFUSED_COMMANDS,
    ),
    spec.TRB_NEGOTIATE_BANDWIDTH: Refused(
        "no bandwidth is negotiated, HCCPARAMS1.BNC is 0", _COMMAND_ERROR, _REFUSED_COMMANDS
    ),
    spec.TRB_SET_LATENCY_TOLERANCE: Refused(
        "no power state of the host depends on the guest's latencies, HCCPARAMS1.LTC is 0",
        _COMMAND_ERROR,
        _REFUSED_COMMANDS,
    ),
    spec.TRB_GET_PORT_BANDWIDTH: Done(
        commands.get_port_bandwidth,
        ("commands.get_port_bandwidth", "commands.get_port_bandwidth_of_nothing"),
        "all of every bus is free; a slot of a hub is a Parameter Error, since no hubs are behind the root hub",
    ),
    spec.TRB_FORCE_HEADER: Refused(
        "sends a header packet of the guest's making over a link; devices are not connected by links here",
        _COMMAND_ERROR,
        _REFUSED_COMMANDS,
    ),
    spec.TRB_NO_OP_COMMAND: Done(commands.no_op, ("command_ring.commands_complete_in_order_each_with_its_pointer",)),
    spec.TRB_GET_EXTENDED_PROPERTY: Refused("there are none, HCCPARAMS2.GSC is 0", _COMMAND_ERROR, _REFUSED_COMMANDS),
    spec.TRB_SET_EXTENDED_PROPERTY: Refused("there are none, HCCPARAMS2.GSC is 0", _COMMAND_ERROR, _REFUSED_COMMANDS),
}
"""TRBs of the command ring. Reserved and vendor-defined types are answered with a TRB Error as well."""

EVENT_TRBS: dict[int, Row] = {
    spec.TRB_TRANSFER_EVENT: Done(TransferEngine.emit, ("report.events_of_a_td",)),
    spec.TRB_COMMAND_COMPLETION: Done(
        CommandRing.run, ("command_ring.commands_complete_in_order_each_with_its_pointer",)
    ),
    spec.TRB_PORT_STATUS_CHANGE: Done(
        RootHub.port_event,
        ("ports.an_event_only_for_the_first_change", "ports.changes_while_halted_are_told_at_the_start"),
    ),
    spec.TRB_BANDWIDTH_REQUEST: Refused("no bandwidth is negotiated, HCCPARAMS1.BNC is 0", "never sent"),
    spec.TRB_DOORBELL_EVENT: Refused("for a VMM; there is no I/O Virtualization capability", "never sent"),
    spec.TRB_HOST_CONTROLLER: Done(EventRing.publish, ("event_ring.a_full_ring_says_so_once_and_loses_nothing",)),
    spec.TRB_DEVICE_NOTIFICATION: Refused(
        "devices send no Device Notification packets; a wake-up is told by the link state of the port", "never sent"
    ),
    spec.TRB_MFINDEX_WRAP: Done(Controller, ("mfindex.wrap_events_only_when_enabled",)),
}
"""TRBs of event rings."""

COMPLETION_CODES: dict[int, Row] = {
    spec.CC_SUCCESS: Done(report, ("report.events_of_a_td",)),
    spec.CC_DATA_BUFFER_ERROR: Done(
        IsochronousEndpoint,
        ("isochronous.each_fate_of_a_packet_has_its_code_and_none_halts",),
        "isochronous OUT; elsewhere drivers do not expect it, and it is a USB Transaction Error",
    ),
    spec.CC_BABBLE: Done(Endpoint, ("transfers.an_error_halts_at_the_failing_trb",)),
    spec.CC_TRANSACTION_ERROR: Done(Endpoint, ("transfers.an_error_halts_at_the_failing_trb",)),
    spec.CC_TRB_ERROR: Done(
        Endpoint,
        (
            "transfers.a_trb_error_comes_after_the_tds_in_front_of_it",
            "command_ring.commands_that_are_unknown_or_not_supported",
        ),
    ),
    spec.CC_STALL: Done(Endpoint, ("transfers.an_error_halts_at_the_failing_trb",)),
    spec.CC_RESOURCE_ERROR: Refused("endpoints take nothing that could run out", "never sent"),
    spec.CC_BANDWIDTH_ERROR: Refused("no bus is shared, so nothing has to be reserved", "never sent"),
    spec.CC_NO_SLOTS: Done(commands.enable_slot, ("commands.64_slots_and_no_more",)),
    spec.CC_INVALID_STREAM_TYPE: Done(StreamEndpoint, ("streams.a_stream_context_that_is_no_primary_ring",)),
    spec.CC_SLOT_NOT_ENABLED: Done(commands.execute, ("slot_states.a_slot_that_is_not_enabled",)),
    spec.CC_ENDPOINT_NOT_ENABLED: Done(
        commands.stop_endpoint, ("endpoint_states.commands_to_an_endpoint_that_is_not",)
    ),
    spec.CC_SHORT_PACKET: Done(report, ("transfers.short_packets", "control_transfers.a_short_data_stage")),
    spec.CC_RING_UNDERRUN: Done(IsochronousEndpoint, ("isochronous_frames.a_ring_that_runs_dry_says_so_once",)),
    spec.CC_RING_OVERRUN: Done(IsochronousEndpoint, ("isochronous_frames.a_ring_that_runs_dry_says_so_once",)),
    spec.CC_VF_EVENT_RING_FULL: Refused("there are no virtual functions", "never sent"),
    spec.CC_PARAMETER_ERROR: Done(Slot.address, ("commands.address_device_checks_its_parameters",)),
    spec.CC_BANDWIDTH_OVERRUN: Refused(
        "Max ESIT Payload is not enforced (macOS writes 0); a device says itself what it cannot take", "never sent"
    ),
    spec.CC_CONTEXT_STATE_ERROR: Done(
        Slot.address, ("slot_states.every_command_in_every_state", "endpoint_states.every_command_in_every_state")
    ),
    spec.CC_NO_PING_RESPONSE: Refused(
        "devices are not asked by PING; one that does not answer is a USB Transaction Error", "never sent"
    ),
    spec.CC_EVENT_RING_FULL: Done(EventRing.publish, ("event_ring.a_full_ring_says_so_once_and_loses_nothing",)),
    spec.CC_INCOMPATIBLE_DEVICE: Refused(
        "a device that cannot be served is refused when the user attaches it, before the guest sees it", "never sent"
    ),
    spec.CC_MISSED_SERVICE: Done(
        IsochronousEndpoint, ("isochronous_frames.a_frame_outside_the_window_is_missed_without_the_device",)
    ),
    spec.CC_COMMAND_RING_STOPPED: Done(CommandRing.run, ("command_ring.stopping_an_idle_ring",)),
    spec.CC_COMMAND_ABORTED: Done(CommandRing.run, ("command_ring.command_abort_gives_up_on_the_command_in_progress",)),
    spec.CC_STOPPED: Done(Endpoint.stop, ("stop_endpoint.a_transfer_in_flight_is_given_back_to_the_ring",)),
    spec.CC_STOPPED_LENGTH_INVALID: Done(
        Endpoint.stop, ("stop_endpoint.an_idle_endpoint_gives_a_forced_stopped_event",)
    ),
    spec.CC_STOPPED_SHORT_PACKET: Done(
        Endpoint.stop,
        ("partial_tds.stopped_after_a_short_packet",),
        "only in a TD that is written in parts: any other is over with its short packet",
    ),
    spec.CC_MAX_EXIT_LATENCY_TOO_LARGE: Refused("links have no exit latencies here", "never sent"),
    spec.CC_ISOCH_BUFFER_OVERRUN: Done(
        IsochronousEndpoint, ("isochronous.each_fate_of_a_packet_has_its_code_and_none_halts",)
    ),
    spec.CC_EVENT_LOST: Refused("events that do not fit are held until there is room", "never sent"),
    spec.CC_UNDEFINED_ERROR: Refused("every error has a code of its own", "never sent"),
    spec.CC_INVALID_STREAM_ID: Done(StreamEndpoint, ("streams.an_invalid_stream_id_is_reported_and_halts_nothing",)),
    spec.CC_SECONDARY_BANDWIDTH: Refused("there are no secondary bandwidth domains", "never sent"),
    spec.CC_SPLIT_TRANSACTION: Refused("every device is at a root hub port, none behind a TT", "never sent"),
}
"""Completion codes of table 6-90, in any event."""

BEHAVIOUR: dict[str, Row] = {
    "Bus mastering switched off: Host System Error when memory is needed (5.4.2)": Done(
        Controller.run, ("run_and_reset.no_access_to_memory_without_bus_master",)
    ),
    "Guest memory that is not there: Host System Error, or a TRB Error if it is a buffer (4.24.1)": Done(
        Controller.host_system_error,
        (
            "run_and_reset.memory_that_is_gone_is_a_host_system_error",
            "transfers.a_buffer_outside_memory_is_a_trb_error",
        ),
    ),
    "Guest memory that the client does not share: USB Transaction Error for a buffer or a transfer ring, "
    "Parameter Error for a context, else Host System Error with a message": Done(
        CommandRing.run,
        (
            "unshared_memory.a_transfer_fails_and_the_next_one_works",
            "unshared_memory.a_transfer_ring_in_private_memory",
            "unshared_memory.an_output_context_in_private_memory",
            "unshared_memory.a_stream_context_array_in_private_memory",
            "unshared_memory.a_controller_that_could_do_nothing_does_not_start",
        ),
    ),
    "A command ring that is a loop: Host Controller Error (4.24.1)": Done(
        Controller.host_controller_error, ("command_ring.a_broken_command_ring_stops_the_controller_until_a_reset",)
    ),
    "HCRST and DEVICE_RESET take every transfer back first (4.2)": Done(
        Controller.reset,
        (
            "run_and_reset.hcrst_waits_for_transfers_with_cnr",
            "run_and_reset.device_reset_is_done_when_the_transfers_are_back",
        ),
    ),
    "Halted within 16 ms of RS=0, going on with RS=1 (5.4.1.1)": Done(
        Controller.write_usbcmd, ("run_and_reset.halted_within_16_ms_whatever_the_device_does",)
    ),
    "Save and restore state (4.23.2)": Done(Interrupters.restore, ("run_and_reset.save_and_restore",)),
    "Command stop and command abort (4.6.1)": Done(
        CommandRing.write_crcr_lo,
        (
            "command_ring.command_stop_waits_for_the_command_in_progress",
            "command_ring.linux_aborts_with_its_next_trb_in_the_pointer",
        ),
    ),
    "Registers of 64 bits in any split, and in any order of setting them up (5.1)": Done(
        RegisterFile.write, ("registers.64_bit_registers_take_any_split", "event_ring.every_order_of_setting_a_ring_up")
    ),
    "Event rings of up to 32 segments (4.9.4, 6.5)": Done(
        EventRing.set_up, ("event_ring.events_come_in_order_through_all_segments",)
    ),
    "Interrupter targets; the primary interrupter stands in (4.17)": Done(
        Interrupters.post,
        (
            "interrupter.transfer_events_go_to_the_interrupter_of_their_trb",
            "interrupter.a_target_without_an_event_ring_falls_back_to_the_primary",
        ),
    ),
    "Events about no TRB go to the interrupter of the slot context (6.2.2)": Done(
        TransferEngine.emit_without_trb, ("interrupter.events_about_no_trb_go_to_the_interrupter_of_the_slot",)
    ),
    "Interrupt moderation with a timer (4.17.2)": Done(Interrupter.flush, ("interrupter.imod_spaces_messages",)),
    "Event Handler Busy (4.17.2)": Done(
        Interrupter.write_erdp_lo,
        ("interrupter.events_that_came_while_the_handler_was_busy_interrupt_when_it_is_done",),
    ),
    "Interrupt Pending by message and by pin (4.17.5)": Done(
        Interrupter.deliver,
        (
            "interrupter.an_event_sets_ip_eint_and_ehb_and_sends_a_message",
            "mechanisms.the_pin_shows_ip_until_the_driver_clears_it",
            "mechanisms.going_from_one_to_the_other_loses_nothing",
        ),
    ),
    "Block Event Interrupt (4.17.5)": Done(
        Interrupter.post, ("interrupter.bei_gives_the_event_without_the_interrupt",)
    ),
    "Immediate data (4.11.7, 6.4.1)": Done(collect, ("transfers.immediate_data", "td.immediate_data_that_cannot_be")),
    "Interrupt on Short Packet, IOC, one event for a TD that is short (4.10.1)": Done(
        report, ("transfers.isp_without_ioc_tells_of_short_packets_only", "report.events_of_a_td")
    ),
    "Event Data with EDTLA (4.11.5.2)": Done(
        report, ("report.events_of_a_td", "td.a_data_stage_of_several_trbs_with_event_data")
    ),
    "TDs that are written in parts (4.11.7)": Done(
        report_skipped,
        ("partial_tds.each_part_is_executed_when_it_is_there", "partial_tds.after_a_short_packet_the_rest_is_skipped"),
    ),
    "Link TRBs with IOC (4.11.5.1)": Done(ConsumerRing.read, ("ring.link_with_ioc_gives_an_event_of_its_own",)),
    "Stop in mid-TD, and going on from there (4.6.9)": Done(
        Endpoint.stop, ("stop_endpoint.stopped_in_mid_td_and_resumed",)
    ),
    "Soft retry (4.6.8.1)": Done(
        Endpoint.reset,
        (
            "transfers.soft_retry_executes_the_td_again",
            "transfers.what_was_read_behind_an_error_is_for_its_retry",
        ),
    ),
    "Streams: an error of one halts all, each is stopped and moved on its own (4.12)": Done(
        StreamEndpoint,
        (
            "streams.an_error_of_one_stream_halts_all_and_the_others_lose_nothing",
            "streams.stop_reports_each_active_stream_and_all_go_on",
        ),
    ),
    "Isochronous: Frame ID and SIA against MFINDEX (4.11.2.5)": Done(
        IsochronousEndpoint, ("isochronous_frames.the_device_is_told_the_frame",)
    ),
    "Isochronous: never halted (4.10.2)": Done(
        IsochronousEndpoint, ("isochronous.a_transfer_that_fails_as_a_whole_does_not_halt_either",)
    ),
    "Isochronous: high bandwidth and bursts (4.14.2)": Done(
        IsochronousEndpoint, ("isochronous.high_bandwidth_and_bursts_are_one_packet",)
    ),
    "Contexts of 32 and of 64 bytes (6.2)": Done(
        EndpointContext.valid_for, ("slot_states.contexts_lie_as_far_apart_as_the_controller_says",)
    ),
    "USB 2 ports wait for a reset, USB 3 ports train by themselves (4.19.1)": Done(
        Port.plug, ("ports.connect_on_usb_2_waits_for_a_reset", "ports.connect_on_usb_3_is_enabled_at_once")
    ),
    "Suspend, resume and remote wake-up, also on the way into U3 (4.15)": Done(
        Port.remote_wakeup,
        ("ports.suspend_and_resume", "ports.remote_wakeup", "ports.remote_wakeup_before_the_port_is_suspended"),
    ),
    "Devices that vanish at any moment (4.19.1)": Done(
        RootHub.unplug, ("plugging.unplugged_with_transfers_in_flight", "plugging.a_device_that_vanishes_inside_submit")
    ),
    "Memory that the client maps again during transfers": Done(
        Remapping.waits, ("quiesce.transfers_are_taken_back_and_fetched_again",)
    ),
}
"""Rules that are no number of the specification."""
