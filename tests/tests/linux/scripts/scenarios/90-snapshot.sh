# Saved and restored four times while disk, network and timers are at work; each time another process goes on. Each has another
# generation id, and nothing that the guest wrote is lost. Who listens on vsock is reached after each, under another context id if it has one.
truncate -s 8M disk
tunctl -t tap0 >/dev/null
ip addr add 172.16.0.1/24 dev tap0
ip link set tap0 up

# another ROUND: saves the machine, kills its process, and restores it in another one; from the third time on with a copy of its disk.
another() {
    saves || return 1
    rm -f v.sock
    vm_again || return 1
    if [ "$1" -lt 3 ]; then
        loads || return 1
    else
        mv disk "disk-$1"
        cp "disk-$1" disk
        api PUT /snapshot/restore "{$snapshot, \"drives\": [{\"drive_id\": \"d\", \"path_on_host\": \"$vm/disk\"}],
            \"vsock\": {\"guest_cid\": 10$1}}" || return 1
    fi
    said alive >/dev/null
    until_true greets "$1"
}

# greets WORD: a program on the host says it to the one that listens in the guest.
greets() {
    echo "hello-$1" | vsock-cat host-connect "$vm/v.sock" 1000 >/dev/null 2>>errors && [ "$(said heard)" = "hello-$1" ]
}

vm_start
vm_up snapshot-boot
drive d "$vm/disk"
api PUT /network-interfaces/eth0 '{"iface_id": "eth0", "guest_mac": "06:00:ac:10:00:02", "host_dev_name": "tap0"}'
api PUT /entropy '{}'
api PUT /vsock "{\"guest_cid\": 3, \"uds_path\": \"$vm/v.sock\"}"
boots snapshot-boot bzImage 2 base,alive
said alive >/dev/null
check snapshot-ping-before "no echo reply" ping -c 2 -W 5 172.16.0.2
for round in 1 2 3 4; do
    if another $round; then pass "snapshot-$round" "($(said alive) rounds)"; else fail "snapshot-$round" "$(tail -n 1 errors)"; fi
done
check snapshot-ping "no echo reply" ping -c 2 -W 5 172.16.0.2
cat console >>consoles
# Debian's kernel has no driver for it, so its page is looked at.
ids=$(tr -d '\r' <consoles | sed -n 's/^mf:generation=\([0-9a-f]\{32\}\)$/\1/p' | sort -u | wc -l)
equal snapshot-identities "generation ids" "$ids" 5
cids=$(tr -d '\r' <consoles | sed -n 's/^mf:cid=//p' | uniq | tr '\n' ' ')
equal snapshot-context-ids "context ids of the guest" "$cids" "3 103 104 "
api GET /vm/config
check snapshot-config "the drive is not in the configuration" grep -q "\"path_on_host\":\"$vm/disk\"" body
wrong=$(tr -d '\r' <consoles | grep -E 'mf:alive-wrong|soft lockup|rcu.*stall|I/O error|BUG:|Oops' | head -n 1)
equal snapshot-nothing-wrong "signs of trouble" "${wrong:-none}" none
kill -TERM "$pid"
ends snapshot-end 143 "exit_code=143"
ip link set tap0 down
tunctl -d tap0 >/dev/null
