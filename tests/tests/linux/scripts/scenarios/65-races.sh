# The bare-metal guest with two processors, one of which changes what a device looks at while the other makes it look (threats G4, G26).
dd if=/dev/urandom of=disk bs=1M count=1 2>/dev/null
before=$(md5 <disk)
tunctl -t tap0 >/dev/null
ip link set tap0 up
vm_start
vm_up races-up
drive d "$vm/disk"
api PUT /network-interfaces/eth0 '{"iface_id": "eth0", "guest_mac": "06:00:ac:10:00:02", "host_dev_name": "tap0"}'
api PUT /machine-config '{"vcpu_count": 2, "mem_size_mib": 64}'
api PUT /boot-source "{\"kernel_image_path\": \"$FILES/guest.elf\",
    \"boot_args\": \"mayfly.mode=hostile mayfly.case=races mayfly.rounds=4000 mayfly.end=spin\"}"
check races-up "$(tail -n 1 errors)" api PUT /actions '{"action_type": "InstanceStart"}'
console "mayfly-guest done"
for name in g4-registers-while-starting g26-descriptors g26-block-header g26-available-ring g26-net-header; do
    line=$(tr -d '\r' <console | grep "^case=$name ")
    alive() { case $line in *outcome=alive*recovered=yes*) ;; *) return 1 ;; esac; }
    if alive; then pass "$name" "(${line#case="$name" })"; else fail "$name" "'$line'"; fi
done
check races-api-answers "no reply" answers
few_lines() { [ "$(grep -vc ':api\]' log)" -lt 250 ]; }
check races-log-bounded "$(wc -l <log) lines" few_lines
equal races-disk-untouched "checksum" "$(md5 <disk)" "$before"
kill -TERM "$pid"
ends races-end 143 "exit_code=143"
ip link set tap0 down
tunctl -d tap0 >/dev/null
