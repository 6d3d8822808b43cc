"""Fuzzing by coverage and by cost: what everybody who may be hostile can send. See `python -m tests.fuzz --help`."""

TARGETS = {
    "client": "a vfio-user client with real descriptors",
    "controller": "a guest's driver, with all virtual devices",
    "succession": "a guest's driver whose controller is taken over at any moment, with torn event ring tables",
    "control": "clients of the control socket and the hotplug socket",
    "storage": "a guest with a drive behind the plugin mass-storage-quirks",
    "descriptors": "what devices and the host's kernel say of devices",
    "usbfs": "a device, and a host's kernel, behind the backend usbfs",
    "libusb": "the same behind the backend libusb",
    "network": "a program at the other end of a network adapter's cable, and the guest's driver",
    "recovery": "what a server that was killed has left, for the next start",
    "recordings": "files that are replayed and scrubbed",
    "configuration": "what users write",
}
"""The modules here that have `play(actions, watch)`."""
