# The README's lines for booting a kernel by hand, as they stand there.
mkdir -p /images
cp $FILES/inner.cpio /images/initrd
{ echo readme; cat $FILES/bzImage; } | dd of=/images/disk bs=1M count=8 iflag=fullblock 2>/dev/null
sock=/tmp/mayfly.sock
# Our guest finds no `mayfly.case=` on the README's command line and does what it does by default.
. /readme.sh <stdin >console 2>errors
pid=$!
check readme-no-refusal "a line was refused: $(grep fault_message console)" [ -z "$(grep fault_message console)" ]
started readme-boot
equal readme-vcpus "online CPUs" "$(said online)" 0-1
equal readme-disk "checksum in the guest" "$(said vda-md5)" "$(md5 </images/disk)"
equal readme-network "address" "$(said eth0)" 06:00:ac:10:00:02
check readme-ping "no echo reply" ping -c 2 -W 5 172.16.0.2
check readme-pause "refused" api PATCH /vm '{"state": "Paused"}'
check readme-resume "refused" api PATCH /vm '{"state": "Resumed"}'
check readme-swap "refused" api PATCH /drives/data '{"drive_id": "data", "path_on_host": "/images/bzImage"}'
kill -TERM "$pid"
vm_exit
equal readme-end "exit code" "$code" 143
ip link set tap0 down
tunctl -d tap0 >/dev/null
rm -f /images/disk /images/initrd
