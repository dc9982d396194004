#!/bin/busybox sh
# The init of the outer guest: a stock kernel on an emulated CPU with a /dev/kvm of its own.
# It runs every scenario, each in a shell of its own, and prints one line per case.

# The kernel's own root can never be left by pivot_root(2), which a jail does: so go on in a mount of it that can.
if [ -z "$RIG_ROOT" ]; then
    mkdir /mnt
    mount --bind / /mnt
    cd /mnt || exit 1
    mount --move . /
    RIG_ROOT=yes exec chroot . /init
fi
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs -o size=80% tmp /run
mkdir -p /dev/net /dev/pts /run/vm /etc /srv
mount -t devpts devpts /dev/pts
echo outer >/etc/hostname
mount -t tmpfs tmp /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for module in irqbypass kvm kvm-amd tun; do
    insmod "/modules/$module.ko" || echo "rig: the module $module does not load"
done
[ -c /dev/kvm ] || echo "rig: no /dev/kvm in the outer guest"
[ -c /dev/net/tun ] || mknod /dev/net/tun c 10 200
ip link set lo up
echo "rig: up after $(cut -d' ' -f1 /proc/uptime) s, $(nproc) CPUs"

# `rig.run=` on the kernel's command line names the scenarios, with commas between them.
for name in $(sed -n 's/.*rig\.run=\([^ ]*\).*/\1/p' /proc/cmdline | tr , ' '); do
    # The emulation of SVM with two CPUs is not always faithful: now and then a nested guest dies of a fault that it did not make. So a
    # scenario that fails is tried again, at most twice, from a fresh start, and the report says so.
    for try in first second third; do
        echo "scenario $name starts at $(cut -d' ' -f1 /proc/uptime) s"
        rm -f /run/failed
        # A wait without a deadline of its own ends here; the scenario then shows what was said.
        script=${name#jailed-}
        timeout 300 sh -c ". /scenario.sh; vm_new $name; . /scenarios/${script#pci-}.sh" </dev/null
        rm -rf "/run/vm/$name"
        [ -e /run/failed ] || break
        killall -9 mayfly nc 2>/dev/null
        killall -9 nic 2>/dev/null
        ip link set tap0 down 2>/dev/null && { tunctl -d tap0 >/dev/null 2>&1 || nic remove-tap tap0; }
        rm -f /tmp/mayfly.sock
    done
done
echo "rig: done at $(cut -d' ' -f1 /proc/uptime) s"
poweroff -f
