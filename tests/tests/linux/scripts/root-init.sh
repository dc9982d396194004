#!/bin/busybox sh
# /sbin/init of the root file system that the host made: proves the disk as a root, then the network.

say() {
    key=$1
    shift
    echo "mf:$key=$*"
}
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
say root "$(sed -n 's/^\/dev\/vda \/ \([^ ]*\) .*/\1/p' /proc/mounts)"
echo "written by the guest $(sed 's/-//g' /proc/sys/kernel/random/boot_id)" >/written
say written "$(cat /written)"
sync
say synced $?

ip link set lo up
ip addr add 172.16.0.2/24 dev eth0
ip link set eth0 up
say mac "$(cat /sys/class/net/eth0/address)"
say mtu "$(cat /sys/class/net/eth0/mtu)"
ping -c 3 -W 5 172.16.0.1 >/tmp/ping
say ping $?
say network-ready yes
received() { cat /sys/class/net/eth0/statistics/rx_packets; }
sent() { cat /sys/class/net/eth0/statistics/tx_packets; }
before=$(received)
# The receiver's stdin stays open: busybox `nc` passes an end there on, and the sender would stop.
mkfifo /tmp/silence
exec 4<>/tmp/silence
nc 172.16.0.1 5001 <&4 >/tmp/blob
say download "$(md5sum </tmp/blob | cut -d' ' -f1)"
say download-packets $(($(received) - before))
before=$(sent)
# Written by `dd`: `nc` would write 1 KiB at a time. Where it and the receiver share a processor, each of those makes its way alone.
nc 172.16.0.1 5002 -e dd if=/tmp/blob bs=64k
say upload $?
say upload-packets $(($(sent) - before))
say finished yes
while :; do sleep 60; done
