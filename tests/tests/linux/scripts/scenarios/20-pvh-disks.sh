# A vmlinux by its PVH note, two CPUs, three drives: one per engine and a read-only one.
# Ended by ACPI power-off.
for name in sync async readonly; do
    # 8 MiB that do not repeat, different for each drive.
    { echo "$name"; cat $FILES/bzImage; } | dd of=$name.img bs=1M count=8 iflag=fullblock 2>/dev/null
done
{ echo larger; cat $FILES/bzImage; } | dd of=larger.img bs=1M count=12 iflag=fullblock 2>/dev/null
cp larger.img larger2.img
sync_before=$(md5 <sync.img)
async_before=$(md5 <async.img)
readonly_before=$(md5 <readonly.img)

vm_start
vm_up boot-vmlinux-pvh
drive sync "$vm/sync.img" '"io_engine": "Sync", "cache_type": "Writeback"'
drive async "$vm/async.img" '"io_engine": "Async", "cache_type": "Writeback"'
api PUT /drives/readonly "{\"drive_id\": \"readonly\", \"path_on_host\": \"$vm/readonly.img\",
    \"is_root_device\": false, \"is_read_only\": true}"
boots boot-vmlinux-pvh vmlinux 2 base,smp,disks,resize,poweroff
check boot-pvh-logged "no such log line" in_log "Kernel loaded using PVH boot protocol"
equal vcpus-2 "online CPUs" "$(said online)" 0-1
equal vcpus-2-work "product on CPU 1" "$(said cpu1)" 12
said disks-done >/dev/null

# disk_checks ENGINE NAME BEFORE
disk_checks() {
    file=$1.img
    equal "disk-$1-read" "checksum in the guest" "$(said "$2-read")" "$3"
    new=$(said "$2-new")
    equal "disk-$1-write" "checksum in the file" \
        "$(dd if="$file" bs=64k skip=16 count=32 2>/dev/null | md5)" "$new"
    equal "disk-$1-reread" "checksum read back" "$(said "$2-reread")" "$new"
    equal "disk-$1-flush" "cache mode and fsync's status" \
        "$(said "$2-cache"), $(said "$2-written")" "write back, 0"
    equal "disk-$1-discard" "status, bytes not zero in the guest and in the file" \
        "$(said "$2-discarded"), $(said "$2-zeros"), $(dd if="$file" bs=1M skip=4 count=2 2>/dev/null | tr -d '\0' | wc -c)" \
        "0, 0, 0"
}
disk_checks sync vda "$sync_before"
disk_checks async vdb "$async_before"
check disk-serial "the drives have no serial number" [ -n "$(said vda-serial)" ]
equal disk-read-only "ro flag" "$(said vdc-ro)" 1
if [ "$(said vdc-write-status)" != 0 ] && [ "$(md5 <readonly.img)" = "$readonly_before" ]; then
    pass disk-read-only-refused
else
    fail disk-read-only-refused "write status $(said vdc-write-status)"
fi

# resize_checks ENGINE NAME FILE
resize_checks() {
    said "$2-resize-ready" >/dev/null
    api PATCH "/drives/$1" "{\"drive_id\": \"$1\", \"path_on_host\": \"$vm/$3\"}" ||
        echo "| PATCH /drives/$1: $(tail -n 1 errors)"
    equal "disk-$1-capacity-after-patch" "sectors and content" \
        "$(said "$2-resized"), $(said "$2-swapped")" "24576, $(md5 <"$3")"
}
resize_checks sync vda larger.img
resize_checks async vdb larger2.img
ends end-poweroff 0 "exit_code=0"
