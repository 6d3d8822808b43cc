#!/bin/busybox sh
# The way to the root: the Debian tree as QEMU shares it, read-only, below a layer in memory that takes what is written;
# the checkout at /usbvfiod likewise, with what is compiled of it (bytecode.py); the Python packages at /site, and
# /exchange, which is the test's own directory.
# Then the shell of all guests, with the tree's programs.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export PATH HOME=/root TERM=dumb LC_ALL=C.UTF-8

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev

while read -r module; do
    insmod "$module" || echo "init: cannot load $module"
done < /lib/modules/load

# Every request reserves a whole message, so that larger ones make small files slow.
share() { # TAG DIRECTORY OPTIONS
    mkdir -p "$2"
    mount -t 9p -o "trans=virtio,version=9p2000.L,msize=131072,$3" "$1" "$2"
}
layered() { # TAG DIRECTORY [TAG]: what is written to it goes to memory; the second share lies over the first
    lower=
    for tag in $3 "$1"; do
        share "$tag" "/lower/$tag" ro,cache=loose
        lower="$lower:/lower/$tag"
    done
    mkdir -p "/upper/$1/data" "/upper/$1/work"
    mount -t overlay -o "lowerdir=${lower#:},upperdir=/upper/$1/data,workdir=/upper/$1/work" "$1" "$2"
}
mkdir /upper /new
mount -t tmpfs -o size=75% upper /upper
layered tree /new
mkdir -p /new/usbvfiod /new/site /new/exchange
layered checkout /new/usbvfiod bytecode
share site /new/site ro,cache=loose
share exchange /new/exchange cache=none,access=any
mount -t tmpfs tmp /new/tmp
mount -t tmpfs run /new/run
cp /guest_shell.sh /new/run/
for directory in dev proc sys; do
    mount --move "/$directory" "/new/$directory"
done
mkdir -p /new/dev/pts /new/dev/shm
mount -t devpts devpts /new/dev/pts
mount -t tmpfs shm /new/dev/shm
mount -t debugfs debug /new/sys/kernel/debug
ip link set lo up

cd /new || exit
. /new/exchange/environment
exec switch_root /new /usr/bin/busybox sh /run/guest_shell.sh
