# Devices that come and go in a running guest, by ACPI: it notices by itself, uses them, and lets go of them when it is asked. With some plugged it
# is saved and goes on in another process.
truncate -s 8M disk.img
truncate -s 8M later.img
dd if=/dev/urandom of=disk.img bs=1M count=8 conv=notrunc 2>/dev/null
dd if=/dev/urandom of=later.img bs=1M count=8 conv=notrunc 2>/dev/null
cp $FILES/root.ext4 data.img
tunctl -t tap0 >/dev/null
ip addr add 172.16.0.1/24 dev tap0
ip link set tap0 up

# told KEY VALUE: the guest has said that of late.
told_is() { [ "$(tr -d '\r' <console | sed -n "s/.*mf:$1=//p" | tail -n 1)" = "$2" ]; }
told() { until_true told_is "$1" "$2"; }
no_trouble() { ! tr -d '\r' <console | grep -qE 'BUG:|Oops|I/O error|soft lockup'; }

vm_start
vm_up plug-boot
boots plug-boot bzImage 1 base,devices
said devices-ready >/dev/null
began=$(cut -d' ' -f1 /proc/uptime)
check plug-drive-request "$(tail -n 1 errors)" drive disk "$vm/disk.img"
answered=$(cut -d' ' -f1 /proc/uptime)
until grep -q mf:disk-there=yes console || ended; do usleep 2000; done
echo "rig: seconds to the answer, and to the disk in the guest: $(echo "$began $answered $(cut -d' ' -f1 /proc/uptime)" | awk '{print $2-$1, $3-$1}')"
check plug-drive-seen "the guest does not see it" told disk-vda "$(md5 <disk.img)"
check plug-pmem-request "$(tail -n 1 errors)" api PUT /pmem/data "{\"id\": \"data\", \"path_on_host\": \"$vm/data.img\"}"
check plug-pmem-seen "the guest does not see it" told pmem-file "$(md5 </bin/busybox)"
check plug-net-request "$(tail -n 1 errors)" api PUT /network-interfaces/eth0 \
    '{"iface_id": "eth0", "guest_mac": "06:00:ac:10:00:02", "host_dev_name": "tap0"}'
check plug-net-seen "the guest does not see it" told net-mac 06:00:ac:10:00:02
check plug-net-works "no answer" until_true ping -c 1 -W 2 172.16.0.2
# One that the guest has mounted it does not let go of: it unbinds the driver all the same, so ask for others.
check unplug-drive "$(tail -n 1 errors)" api DELETE /drives/disk
check unplug-drive-gone "the guest still has it" told disk-vda none
check plug-drive-again "$(tail -n 1 errors)" drive later "$vm/later.img"
check plug-drive-again-seen "the guest does not see it" told disk-vda "$(md5 <later.img)"

# In another process it has all of them, and they go there.
another() { saves && vm_again && loads; }
if another; then pass plug-snapshot; else fail plug-snapshot "$(tail -n 1 errors)"; fi
check plug-snapshot-net "no answer" until_true ping -c 1 -W 2 172.16.0.2
check plug-snapshot-drive "it does not have it" told disk-vda "$(md5 <later.img)"
check unplug-after-snapshot "$(tail -n 1 errors)" api DELETE /drives/later
check unplug-after-snapshot-gone "the guest still has it" told disk-vda none
check unplug-net "$(tail -n 1 errors)" api DELETE /network-interfaces/eth0
check unplug-net-gone "the guest still has it" told net-mac none
check unplug-pmem "$(tail -n 1 errors)" api DELETE /pmem/data
check unplug-pmem-gone "the guest still has it" told pmem-file none
check plug-nothing-wrong "$(tr -d '\r' <console | grep -E 'BUG:|Oops|I/O error|soft lockup' | head -n 1)" no_trouble
kill -TERM "$pid"
ends plug-end 143 "exit_code=143"
ip link set tap0 down
tunctl -d tap0 >/dev/null
