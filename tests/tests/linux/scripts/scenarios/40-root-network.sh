# An ext4 made on the host as the root, a tap: ping, 64 MiB by TCP each way; ended by Ctrl-Alt-Del.
cp $FILES/root.ext4 root.ext4
tunctl -t tap0 >/dev/null
ip addr add 172.16.0.1/24 dev tap0
ip link set tap0 up
cat $FILES/vmlinux $FILES/bzImage $FILES/vmlinux | dd of=blob bs=1M count=64 iflag=fullblock 2>/dev/null
sum=$(md5 <blob)
nc -l -p 5001 <blob >/dev/null &
sender=$!
# The receiver's stdin stays open: `nc` passes an end there on, and the sender would stop.
mkfifo silence
exec 4<>silence
(nc -l -p 5002 <&4 | md5 >upload.tmp && mv upload.tmp upload) &

vm_start
vm_up root-boot
api PUT /drives/root "{\"drive_id\": \"root\", \"path_on_host\": \"$vm/root.ext4\",
    \"is_root_device\": true, \"is_read_only\": false}"
api PUT /network-interfaces/eth0 '{"iface_id": "eth0", "guest_mac": "06:00:ac:10:00:02",
    "host_dev_name": "tap0"}'
boots root-boot bzImage 1 base,root
equal root-ext4 "file system of / in the guest" "$(said root)" ext4
said synced >/dev/null
# busybox `grep` ends a line at a zero byte.
holds() { tr '\0' '\n' <root.ext4 | grep -qaF -- "$1"; }
check root-ext4-written "the image does not hold what the guest wrote" holds "$(said written)"
equal net-mac "address" "$(said mac)" 06:00:ac:10:00:02
equal net-ping-from-guest "status" "$(said ping)" 0
said network-ready >/dev/null
check net-ping-from-host "no echo reply" ping -c 3 -W 5 172.16.0.2
equal net-tcp-to-guest "checksum" "$(said download)" "$sum"
said upload >/dev/null
until_true [ -e upload ]
equal net-tcp-from-guest "checksum" "$(cat upload)" "$sum"
# 64 MiB is 46,000 packets of 1448 bytes; with segmentation offload a few thousand large ones.
few() { [ "$1" -gt 0 ] && [ "$1" -lt 30000 ]; }
down=$(said download-packets)
up=$(said upload-packets)
check net-offload-to-guest "$down packets in" few "$down"
check net-offload-from-guest "$up packets out" few "$up"
said finished >/dev/null
check ctrl-alt-del "the action is refused" api PUT /actions '{"action_type": "SendCtrlAltDel"}'
ends end-ctrl-alt-del 0 "exit_code=0"
kill $sender 2>/dev/null
ip link set tap0 down
tunctl -d tap0 >/dev/null
