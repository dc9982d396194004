# A writable file mounted with DAX, and a read-only one.
cp $FILES/root.ext4 data.img
dd if=/dev/urandom of=fixed.img bs=1M count=4 2>/dev/null
fixed=$(md5 <fixed.img)
vm_start
vm_up pmem-boot
api PUT /pmem/data "{\"id\": \"data\", \"path_on_host\": \"$vm/data.img\"}"
api PUT /pmem/fixed "{\"id\": \"fixed\", \"path_on_host\": \"$vm/fixed.img\", \"read_only\": true}"
boots pmem-boot vmlinux 1 base,pmem,poweroff
equal pmem-size "sectors" "$(said pmem-sectors)" $(($(stat -c %s data.img) / 512))
equal pmem-dax "mounts of ext4 with dax" "$(said pmem-mount)" 1
equal pmem-reads "checksum of a file" "$(said pmem-there)" "$(md5 </bin/busybox)"
equal pmem-syncs "status" "$(said pmem-synced)" 0
equal pmem-ro-reads "checksum" "$(said pmem-ro-read)" "$(dd if=fixed.img bs=4k count=16 2>/dev/null | md5)"
said pmem-ro-write >/dev/null
ends pmem-end 0 "exit_code=0"
holds() { tr '\0' '\n' <data.img | grep -qaF -- "$1"; }
check pmem-written "the file does not hold what the guest wrote" holds "written by the guest"
equal pmem-ro-untouched "checksum" "$(md5 <fixed.img)" "$fixed"
