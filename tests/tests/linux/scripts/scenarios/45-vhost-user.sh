# A drive behind qemu-storage-daemon, which is killed and comes back, and a directory of the host behind virtiofsd.
cp $FILES/root.ext4 disk
mkdir share
echo "from the host" >share/greeting

listens() { grep -q " 00010000 .* $vm/$1\$" /proc/net/unix; }
# A backend goes with the machine, if it was not killed before.
storage() {
    rm -f disk.sock
    qemu-storage-daemon --blockdev "file,node-name=disk,filename=$vm/disk" \
        --export "vhost-user-blk,id=disk,node-name=disk,addr.type=unix,addr.path=$vm/disk.sock,writable=on" 2>>errors &
    storage=$!
    until_true listens disk.sock
}
directory() {
    rm -f fs.sock
    virtiofsd --socket-path="$vm/fs.sock" -o "source=$vm/share" -f 2>>directory.log &
    directory=$!
    until_true listens fs.sock
}
trap 'kill -9 $storage $directory 2>/dev/null; vm_done' EXIT
storage
directory
vm_start
vm_up vhost-boot
api PUT /drives/disk "{\"drive_id\": \"disk\", \"is_root_device\": true, \"socket\": \"$vm/disk.sock\", \"cache_type\": \"Writeback\"}"
api PUT /fs/share "{\"fs_id\": \"share\", \"tag\": \"shared\", \"socket\": \"$vm/fs.sock\"}"
boots vhost-boot vmlinux 1 base,vhost,poweroff
equal vhost-root "what the kernel was told" "$(said vhost-root)" "root=/dev/vda rw"
equal vhost-ext4 "checksum of a file" "$(said vhost-there)" "$(md5 </bin/busybox)"
equal vhost-write "status" "$(said vhost-synced)" 0
equal vhost-fs-read "what the guest reads" "$(said fs-greeting)" "from the host"
equal vhost-fs-write "status" "$(said fs-written)" 0
equal vhost-fs-written "what the host reads" "$(cat share/from-guest)" "from the guest"
kill -9 $storage
wait $storage 2>/dev/null
truncate -s 48M disk
touch share/away
# The guest has begun to write, and nobody is there.
said vhost-begins >/dev/null
api GET /vm/config
check vhost-config "the file system is not in the configuration" grep -q '"fs":\[{"fs_id":"share","tag":"shared"' body
storage
equal vhost-restart "status of a write that waited" "$(said vhost-waited)" 0
equal vhost-capacity "sectors" "$(said vhost-size)" $((48 * 2048))
equal vhost-reread "checksum of the file" "$(said vhost-again)" "$(md5 </bin/busybox)"
check vhost-told "no such log line" in_log "disk.sock is back"
ends vhost-end 0 "exit_code=0"
holds() { tr '\0' '\n' <disk | grep -qaF -- "$1"; }
check vhost-before "the disk does not hold what the guest wrote first" holds "written before"
check vhost-after "the disk does not hold what the guest wrote last" holds "written meanwhile"
