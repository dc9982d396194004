# 256 MiB each way through vsock, checksummed; a port nobody listens on; sockets removed at the end.
# So much data takes its time on an emulated CPU.
PATIENCE=150
dd if=/dev/urandom of=seed bs=1M count=4 2>/dev/null
download() { for n in 1 2 3 4 5 6 7 8; do cat seed seed seed seed seed seed seed seed; done; }
vm_start
vm_up vsock-boot
api PUT /vsock "{\"guest_cid\": 3, \"uds_path\": \"$vm/v.sock\"}"
boots vsock-boot vmlinux 1 base,vsock
(vsock-cat host-listen "$vm/v.sock_2000" </dev/null 2>/dev/null | md5 >upload.tmp && mv upload.tmp upload) &
said vsock-listening >/dev/null
# What the guest sends, it has from us: to make checksums is slow there.
vsock-cat host-connect "$vm/v.sock" 1001 <seed >/dev/null 2>>errors
sum=$(download | md5)
download | vsock-cat host-connect "$vm/v.sock" 1000 >/dev/null 2>>errors
equal vsock-connect-ok "status of the host's program" "$?" 0
equal vsock-to-guest "checksum of 256 MiB" "$(said vsock-received)" "$sum"
equal vsock-sends "status of the guest's program" "$(said vsock-sent-status)" 0
until_true [ -e upload ]
equal vsock-from-guest "checksum of 256 MiB" "$(cat upload)" "$sum"
equal vsock-refused "status without a listener" "$(said vsock-refused)" 1
kill -TERM "$pid"
ends vsock-end 143 "exit_code=143"
check vsock-unlinked "the socket is still there" [ ! -e v.sock ]
