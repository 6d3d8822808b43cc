#!/bin/busybox sh
# The guest's whole userland: load the drivers, then execute what arrives on the second serial port.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export PATH HOME=/root TERM=dumb LC_ALL=C

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /mnt /root /run /tmp
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mount -t debugfs debug /sys/kernel/debug

while read -r module; do
    insmod "$module" || echo "init: cannot load $module"
done < /lib/modules/load

exec sh /guest_shell.sh
