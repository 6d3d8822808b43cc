#!/bin/sh
# A VM of Cloud Hypervisor with the devices of usbvfiod@web: ./start.sh KERNEL ROOT-IMAGE
# Guest memory must be shared. The server keeps its devices when the VM ends, so starting it again is all it takes.
set -eu
exec cloud-hypervisor \
    --memory size=2G,shared=on \
    --cpus boot=2 \
    --kernel "$1" \
    --disk path="$2" \
    --cmdline 'root=/dev/vda console=ttyS0' \
    --console off --serial tty \
    --user-device socket="${USB_SOCKET:-/run/usbvfiod/web/usb.sock}"
