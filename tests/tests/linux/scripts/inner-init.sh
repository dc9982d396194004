#!/bin/busybox sh
# The init of a guest under test: loads the virtio drivers, then does the cases that
# `mayfly.case=a,b,c` on its command line names. It tells results as lines `mf:KEY=VALUE`.

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
say() {
    key=$1
    shift
    echo "mf:$key=$*"
}
for module in virtio_ring virtio virtio_mmio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk failover net_failover virtio_net; do
    insmod "/modules/$module.ko" || say "insmod-$module" failed
done
md5() { md5sum | cut -d' ' -f1; }

do_base() {
    say release "$(uname -r)"
    say online "$(cat /sys/devices/system/cpu/online)"
    say clocksource "$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
}

# A process bound to every CPU does some work there.
do_smp() {
    cpu=0
    while [ -d /sys/devices/system/cpu/cpu$cpu ]; do
        say "cpu$cpu" "$(taskset -c $cpu sh -c 'echo 3 4 | awk "{print \$1*\$2}"')"
        cpu=$((cpu + 1))
    done
}

# For ever: brings every CPU online that came, which with udev a rule does, and does some work on each.
do_vcpus() {
    cpus=/sys/devices/system/cpu
    say vcpus-possible "$(cat $cpus/possible)"
    while :; do
        for online in $cpus/cpu[1-9]*/online; do
            [ ! -e "$online" ] || [ "$(cat "$online")" = 1 ] || echo 1 >"$online"
        done
        say vcpus-present "$(cat $cpus/present)"
        say vcpus-online "$(cat $cpus/online)"
        worked=
        for cpu in 0 1 2; do
            [ ! -d $cpus/cpu$cpu ] || worked="$worked $(taskset -c $cpu sh -c 'echo 3 4 | awk "{print \$1*\$2}"')"
        done
        say vcpus-worked "${worked# }"
        usleep 200000
    done
}

# Says what it sees of devices that come and go, again and again. Nothing looks for them but the kernel.
do_devices() {
    load libnvdimm nd_virtio virtio_pmem nd_btt nd_pmem
    mkdir -p /mnt
    say devices-ready yes
    # The first one is awaited, to see how long that takes.
    until [ -e /sys/block/vda ]; do usleep 2000; done
    say disk-there yes
    while :; do
        seen=none
        [ ! -e /sys/block/vda ] || seen=$(dd if=/dev/vda bs=64k iflag=direct 2>/dev/null | md5)
        say disk-vda "$seen"
        seen=none
        if [ -e /sys/block/pmem0 ] && mount -t ext4 /dev/pmem0 /mnt 2>/dev/null; then
            seen=$(md5 </mnt/bin/busybox)
            umount /mnt
        fi
        say pmem-file "$seen"
        seen=none
        if [ -e /sys/class/net/eth0 ]; then
            seen=$(cat /sys/class/net/eth0/address)
            ip addr add 172.16.0.2/24 dev eth0 2>/dev/null && ip link set eth0 up
        fi
        say net-mac "$seen"
        usleep 200000
    done
}

do_input() {
    say input-ready yes
    read -r line
    say input "$line"
}

# disk_case NAME: read all of it, write a part with a flush, discard another part.
disk_case() {
    disk=/dev/$1
    queue=/sys/block/$1/queue
    say "$1-sectors" "$(cat "/sys/block/$1/size")"
    say "$1-cache" "$(cat $queue/write_cache)"
    say "$1-serial" "$(cat "/sys/block/$1/serial")"
    say "$1-read" "$(md5 <"$disk")"
    dd if=/dev/urandom of=/tmp/new bs=64k count=32 2>/dev/null
    say "$1-new" "$(md5 </tmp/new)"
    dd if=/tmp/new of="$disk" bs=64k seek=16 conv=fsync,notrunc 2>/dev/null
    say "$1-written" $?
    # Past the page cache: what the device returns, not what we remember.
    echo 3 >/proc/sys/vm/drop_caches
    say "$1-reread" "$(dd if="$disk" bs=64k skip=16 count=32 2>/dev/null | md5)"
    say "$1-discard-max" "$(cat $queue/discard_max_bytes)"
    blkdiscard -o 4194304 -l 2097152 "$disk"
    say "$1-discarded" $?
    echo 3 >/proc/sys/vm/drop_caches
    say "$1-zeros" "$(dd if="$disk" bs=1M skip=4 count=2 2>/dev/null | tr -d '\0' | wc -c)"
}

do_disks() {
    disk_case vda
    disk_case vdb
    say vdc-ro "$(cat /sys/block/vdc/ro)"
    dd if=/dev/zero of=/dev/vdc bs=4k count=1 conv=fsync,notrunc 2>/dev/null
    say vdc-write-status $?
    say vdc-read "$(md5 </dev/vdc)"
    say disks-done yes
}

# resized NAME: waits until the size is not what it was, then reads the new content.
do_resize() {
    for name in vda vdb; do
        old=$(cat /sys/block/$name/size)
        say $name-resize-ready yes
        while [ "$(cat /sys/block/$name/size)" = "$old" ]; do usleep 50000; done
        say $name-resized "$(cat /sys/block/$name/size)"
        echo 3 >/proc/sys/vm/drop_caches
        say $name-swapped "$(md5 </dev/$name)"
    done
}

do_ticks() {
    while :; do
        say tick "$(cut -d' ' -f1 /proc/uptime)"
        usleep 100000
    done
}

do_root() {
    mkdir -p /root
    mount -o rw /dev/vda /root && exec switch_root /root /sbin/init
    say root failed
}

# The first 16 bytes of a page below 1 MiB, which any kernel lets root read.
page() { dd if=/dev/mem bs=16 skip=$(($1 / 16)) count=1 2>/dev/null | od -An -tx1 | tr -d ' \n'; }

# What ACPI tells of the pages by which a guest learns that it was restored, and what is on them.
do_identity() {
    for hid in VMGENCTR AMZNC10C ACPI0013 QEMU0001; do
        say "acpi-$hid" "$(cat /sys/bus/acpi/devices/$hid:00/path)"
    done
    say ged-interrupts "$(grep -c 'ACPI:Ged' /proc/interrupts)"
    say generation-id "$(page 0xd0000)"
    say clock-page "$(page 0xd1000)"
}

# The driver asks the port which events it knows.
do_pvpanic() {
    for module in pvpanic pvpanic-mmio; do
        insmod "/modules/$module.ko" || say "insmod-$module" failed
    done
    driver=/sys/bus/platform/drivers/pvpanic-mmio/QEMU0001:00
    say pvpanic "$(cat $driver/capability) $(cat $driver/events)"
}

do_cpu() {
    say model-name "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | sort -u)"
    say cpu-flags " $(sed -n 's/^flags[^:]*: //p' /proc/cpuinfo | sort -u) "
    say cpu-done yes
}

# load MODULE...: in the order of their dependencies.
load() {
    for module in "$@"; do
        insmod "/modules/$module.ko" || say "insmod-$module" failed
    done
}

do_rng() {
    load virtio-rng
    say rng-current "$(cat /sys/class/misc/hw_random/rng_current)"
    dd if=/dev/hwrng of=/tmp/one bs=4096 count=16 iflag=fullblock 2>/dev/null
    dd if=/dev/hwrng of=/tmp/two bs=4096 count=16 iflag=fullblock 2>/dev/null
    say rng-bytes "$(cat /tmp/one /tmp/two | wc -c)"
    say rng-one "$(md5 </tmp/one)"
    say rng-two "$(md5 </tmp/two)"
}

memory() { sed -n "s/^$1: *\([0-9]*\) kB/\1/p" /proc/meminfo; }

# fill MIB: uses so much memory once and frees it again, so that the host has it all.
fill() {
    dd if=/dev/zero of=/tmp/fill bs=1M count="$1" 2>/dev/null
    rm /tmp/fill
}

do_balloon() {
    load virtio_balloon
    fill 160
    say balloon-filled yes
}

do_mem() {
    echo online_movable >/sys/devices/system/memory/auto_online_blocks
    load virtio_mem
    before=$(memory MemTotal)
    say mem-total "$before"
    until [ "$(memory MemTotal)" -gt $((before + 200000)) ]; do usleep 50000; done
    say mem-plugged "$(memory MemTotal)"
    # More than there was before, so some of it lies in the new memory.
    mount -o remount,size=400M /tmp
    fill 300
    say mem-filled yes
    until [ "$(memory MemTotal)" -lt $((before + 20000)) ]; do usleep 50000; done
    say mem-unplugged "$(memory MemTotal)"
}

do_pmem() {
    load libnvdimm nd_virtio virtio_pmem nd_btt nd_pmem
    say pmem-sectors "$(cat /sys/block/pmem0/size)"
    mkdir -p /mnt
    mount -t ext4 -o dax /dev/pmem0 /mnt
    say pmem-mount "$(grep -c ' /mnt ext4 .*dax' /proc/mounts)"
    say pmem-there "$(cat /mnt/bin/busybox | md5)"
    echo "written by the guest" >/mnt/from-guest
    sync
    umount /mnt
    say pmem-synced $?
    say pmem-ro "$(cat /sys/block/pmem1/ro)"
    say pmem-ro-read "$(dd if=/dev/pmem1 bs=4k count=16 2>/dev/null | md5)"
    dd if=/dev/zero of=/dev/pmem1 bs=4k count=1 conv=notrunc oflag=sync 2>/dev/null
    say pmem-ro-write $?
}

do_vsock() {
    load vsock vmw_vsock_virtio_transport_common vmw_vsock_virtio_transport
    vsock-cat guest-listen 1001 </dev/null 2>/tmp/waiting >/tmp/seed &
    vsock-cat guest-listen 1000 </dev/null 2>/tmp/listening | md5 >/tmp/received &
    until grep -q listening /tmp/waiting && grep -q listening /tmp/listening; do usleep 50000; done
    say vsock-listening yes
    wait
    say vsock-received "$(cat /tmp/received)"
    for n in 1 2 3 4 5 6 7 8; do
        cat /tmp/seed /tmp/seed /tmp/seed /tmp/seed /tmp/seed /tmp/seed /tmp/seed /tmp/seed
    done | vsock-cat guest-connect 2 2000 >/dev/null
    say vsock-sent-status $?
    vsock-cat guest-connect 2 2999 </dev/null 2>/dev/null
    say vsock-refused $?
}

do_vhost() {
    mkdir -p /mnt /share
    mount -t ext4 /dev/vda /mnt
    say vhost-root "$(grep -o 'root=[^ ]* r[ow]' /proc/cmdline)"
    say vhost-there "$(md5 </mnt/bin/busybox)"
    echo "written before" >/mnt/before
    sync
    say vhost-synced $?
    load fuse virtiofs
    mount -t virtiofs shared /share
    say fs-greeting "$(cat /share/greeting)"
    echo "from the guest" >/share/from-guest
    say fs-written $?
    until [ -e /share/away ]; do usleep 50000; done
    say vhost-begins yes
    echo "written meanwhile" >/mnt/meanwhile
    sync
    say vhost-waited $?
    until [ "$(cat /sys/block/vda/size)" != 65536 ]; do usleep 50000; done
    say vhost-size "$(cat /sys/block/vda/size)"
    echo 3 >/proc/sys/vm/drop_caches
    say vhost-again "$(md5 </mnt/bin/busybox)"
    umount /mnt
    umount /share
}

http() { printf '%s\r\n' "$@" '' | nc 169.254.169.254 80 | tr -d '\r'; }
status() { sed -n '1s/^HTTP\/1.1 \([0-9]*\).*/\1/p'; }

do_mmds() {
    ip addr add 172.16.0.2/24 dev eth0
    ip link set eth0 up
    ip route add 169.254.169.254 dev eth0
    say mmds-no-token "$(http 'GET /latest/meta-data/ami-id HTTP/1.1' 'Connection: close' | status)"
    token=$(http 'PUT /latest/api/token HTTP/1.1' 'X-metadata-token-ttl-seconds: 60' 'Connection: close' | tail -n 1)
    say mmds-value "$(http 'GET /latest/meta-data/ami-id HTTP/1.1' "X-metadata-token: $token" 'Connection: close' | tail -n 1)"
    say mmds-json "$(http 'GET /latest/meta-data HTTP/1.1' "X-metadata-token: $token" 'Accept: application/json' 'Connection: close' | tail -n 1)"
    say mmds-mac "$(ip neigh show 169.254.169.254 | sed -n 's/.*lladdr \([^ ]*\).*/\1/p')"
    ping -c 2 -W 5 172.16.0.1 >/dev/null
    say mmds-other-traffic $?
}

# For ever: writes to the disk and reads back what it wrote, past the page cache.
do_alive() {
    load virtio-rng vsock vmw_vsock_virtio_transport_common vmw_vsock_virtio_transport
    ip addr add 172.16.0.2/24 dev eth0
    ip link set eth0 up
    while :; do say heard "$(vsock-cat guest-listen 1000 </dev/null 2>/dev/null)"; done &
    n=0
    while :; do
        n=$((n + 1))
        at=$((n % 1000))
        printf '%08d' $n | dd of=/dev/vda bs=512 seek=$at conv=notrunc,fsync 2>/dev/null
        echo 1 >/proc/sys/vm/drop_caches
        back=$(dd if=/dev/vda bs=512 skip=$at count=1 2>/dev/null | head -c 8)
        [ "$back" = "$(printf '%08d' $n)" ] || say alive-wrong "$n $back"
        say alive $n
        say generation "$(page 0xd0000)"
        say cid "$(vsock-cat guest-cid)"
    done
}

# Draws random numbers from the kernel, and looks whether it has heard that it is one of several.
do_random() {
    while :; do
        say random "$(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n')"
        say reseeded "$(dmesg | grep -c 'crng reseeded due to virtual machine fork')"
    done
}

# half NUMBER OF: what CPU NUMBER does in a round: writes its half of a drive and reads it back past the page cache, and sends a stream that
# must come back.
half() {
    disk=/dev/$2
    dd if=/dev/urandom of="/tmp/$2-$1" bs=64k count=64 2>/dev/null
    dd if="/tmp/$2-$1" of="$disk" bs=64k seek=$((64 * $1)) conv=notrunc,fsync 2>/dev/null
    echo 1 >/proc/sys/vm/drop_caches
    dd if="$disk" bs=64k skip=$((64 * $1)) count=64 2>/dev/null | md5 >"/tmp/$2-$1.read"
    [ "$(cat "/tmp/$2-$1.read")" = "$(md5 <"/tmp/$2-$1")" ] || say "wrong-$2-$1" "$(cat "/tmp/$2-$1.read")"
}

# queues_round NUMBER: all halves at the same time, each bound to its CPU.
queues_round() {
    for cpu in 0 1; do
        (
            taskset -p $((1 << cpu)) "$(sh -c 'echo $PPID')" >/dev/null
            half $cpu vda
            half $cpu vdb
            nic check 172.16.0.1:5001 1 "$1$cpu" 2>/tmp/stream-error-$cpu
            echo $? >/tmp/stream-$cpu
        ) &
    done
    wait
    for disk in vda vdb; do say "$disk-$1" "$(cat /tmp/$disk-0.read) $(cat /tmp/$disk-1.read)"; done
    say "streams-$1" "$(cat /tmp/stream-0) $(cat /tmp/stream-1)"
    cat /tmp/stream-error-*
    say "packets-$1" "$(nic packets eth0)"
    say "round-$1" done
}

do_queues() {
    ip addr add 172.16.0.2/24 dev eth0
    ip link set eth0 up
    for disk in vda vdb; do say "$disk-queues" "$(ls /sys/block/$disk/mq | wc -l)"; done
    count() { ls -d /sys/class/net/eth0/queues/"$1"-* | wc -l; }
    say eth0-queues "$(count rx) $(count tx)"
    say packets-0 "$(nic packets eth0)"
    queues_round 1
    # The host looks at what is on the drives, and then says something.
    read -r line
    nic use-pairs eth0 1
    queues_round 2
    nic use-pairs eth0 2
    say packets-unused "$(nic packets eth0)"
    read -r line
    queues_round 3
    # The machine may be saved in any of these, and goes on elsewhere; a round that begins there is told.
    generation=$(page 0xd0000)
    n=3
    until [ "$(page 0xd0000)" != "$generation" ]; do
        n=$((n + 1))
        queues_round $n
    done
    n=$((n + 1))
    queues_round $n
    say after-restore $n
}

do_reboot() { reboot -f; }
do_poweroff() { poweroff -f; }
do_panic() { echo c >/proc/sysrq-trigger; }

# What the README's machine has: a disk and a network.
do_readme() {
    say vda-md5 "$(md5 </dev/vda)"
    say eth0 "$(cat /sys/class/net/eth0/address)"
    ip addr add 172.16.0.2/24 dev eth0
    ip link set eth0 up
}

cases=$(sed -n 's/.*mayfly\.case=\([^ ]*\).*/\1/p' /proc/cmdline)
say started "$cases"
[ -n "$cases" ] || cases=base,readme
for name in $(echo "$cases" | tr , ' '); do
    "do_$name"
done
say finished yes
while :; do sleep 60; done
