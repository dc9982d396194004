#!/bin/busybox sh
# The init of the outer guest: a stock kernel on an emulated CPU with a /dev/kvm of its own.
# It runs every scenario, each in a shell of its own, and prints one line per case.

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs -o size=80% tmp /run
mkdir -p /dev/net /run/vm
mount -t tmpfs tmp /tmp
for module in irqbypass kvm kvm-amd tun; do
    insmod "/modules/$module.ko" || echo "rig: the module $module does not load"
done
[ -c /dev/kvm ] || echo "rig: no /dev/kvm in the outer guest"
[ -c /dev/net/tun ] || mknod /dev/net/tun c 10 200
ip link set lo up
echo "rig: up after $(cut -d' ' -f1 /proc/uptime) s, $(nproc) CPUs"

for scenario in /scenarios/*.sh; do
    name=${scenario##*/}
    name=${name%.sh}
    # `rig.only=` on the kernel's command line selects scenarios by a part of their names.
    only=$(sed -n 's/.*rig\.only=\([^ ]*\).*/\1/p' /proc/cmdline)
    case $name in *"$only"*) ;; *) continue ;; esac
    echo "scenario $name starts at $(cut -d' ' -f1 /proc/uptime) s"
    # A wait without a deadline of its own ends here; the scenario then shows what was said.
    timeout 150 sh -c ". /scenario.sh; vm_new $name; . $scenario" </dev/null
    rm -rf "/run/vm/$name"
done
echo "rig: done at $(cut -d' ' -f1 /proc/uptime) s"
poweroff -f
