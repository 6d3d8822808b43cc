"""The test kit: devices, backends and plugins are tested against the real controller, without hardware or a VM.

fixtures        pytest fixtures `usb_guest`, `usb_served_guest`, `usb_plug`, `usb_serve`; installed with the package
guest           `Guest` and `ServedGuest`: a bus, a driver and devices, in one object
driver          `GuestDriver`: a guest-side xHCI driver in Python
bus             `DirectBus` (in process, virtual time) and `SocketBus` (over vfio-user)
memory          `GuestRam`: guest physical memory in a memfd
client          `VfioUserClient`: the VMM's end of the socket
served          `ServedController` (a server in a thread) and `ServerProcess` (the daemon)
fake_device     `FakeDevice`: a device whose answers a test decides
conformance     `DeviceConformance`, `SourceSinkConformance`, `BackendConformance`: suites to inherit from
device_bench    `DeviceBench`: a device without a controller
interception    `intercepted`: an interceptor in front of a device
mass_storage    `MassStorage`: a bulk-only SCSI disk over the driver
loop            `StepLoop`: a deterministic loop
limits          `PATIENCE`, `scaled`, `wait_until`: how long tests wait

`docs/testing.md` shows how to use it.
"""
