# Two drives, one per engine, and a network interface, each with two queues for two CPUs: data, on which queues it goes, and all of that again
# with one pair of queues, and after a restore in another process.
truncate -s 16M sync.img
truncate -s 16M async.img
nic make-tap tap0
ip addr add 172.16.0.1/24 dev tap0
ip link set tap0 up
nic echo 5001 &
echo=$!

# sums FILE: of its two halves.
sums() { echo "$(dd if="$1" bs=1M count=4 2>/dev/null | md5) $(dd if="$1" bs=1M skip=4 count=4 2>/dev/null | md5)"; }

# switches NAME: how often the threads of that name have slept so far.
switches() {
    for task in /proc/"$pid"/task/*; do
        [ "$(cat "$task/comm" 2>/dev/null)" = "$1" ] && sed -n 's/^voluntary_ctxt_switches:[^0-9]*//p' "$task/status"
    done
}
busy() { [ "$(switches "$1")" -gt 20 ] 2>/dev/null; }

# count NAME LINE: the number of that name in a line of packets.
count() { echo "$2" | tr ' ' '\n' | sed -n "s/^$1=//p"; }
# grew NAME BEFORE AFTER: it is larger by more than a stray packet or two.
grew() { [ "$(count "$1" "$3")" -gt $(($(count "$1" "$2") + 10)) ]; }

# round N CASE: what the guest did in its Nth round is as it should be.
round() {
    said "round-$1" >/dev/null
    equal "$2-data" "checks in the guest, drives" \
        "$(said "streams-$1"), $(said "vda-$1"), $(said "vdb-$1")" "0 0, $(sums sync.img), $(sums async.img)"
}

vm_start
vm_up queues-boot
drive sync "$vm/sync.img" '"io_engine": "Sync", "cache_type": "Writeback", "num_queues": 2'
drive async "$vm/async.img" '"io_engine": "Async", "cache_type": "Writeback", "num_queues": 2'
api PUT /network-interfaces/eth0 '{"iface_id": "eth0", "guest_mac": "06:00:ac:10:00:02", "host_dev_name": "tap0", "num_queues": 2}'
boots queues-boot bzImage 2 base,queues
equal queues-drives "hardware queues of the drives" "$(said vda-queues), $(said vdb-queues)" "2, 2"
equal queues-pairs "queues of the card" "$(said eth0-queues)" "2 2"
round 1 queues
before=$(said packets-0)
after=$(said packets-1)
for queue in rx0 rx1 tx0 tx1; do
    check "queues-$queue" "packets before: $before; after: $after" grew $queue "$before" "$after"
done
# Two of the drive's own, two that have a ring, two of the card.
idle=
for thread in 'io 0' 'io 1' 'io 2' 'io 3' 'io 4' 'io 5'; do busy "$thread" || idle="$idle $thread: $(switches "$thread");"; done
equal queues-threads "threads that did nothing" "${idle:-none}" none

# A second queue that the driver does not use any more gets nothing.
echo go >&3
round 2 queues-one-pair
before=$(said packets-1)
after=$(said packets-2)
check queues-one-pair-used "packets before: $before; after: $after" grew rx0 "$before" "$after"
# The driver shows only what it uses: so after it uses both again, and before there is anything to receive.
after=$(said packets-unused)
few_more() { [ "$(count rx1 "$after")" -lt $(($(count rx1 "$before") + 5)) ]; }
check queues-other-pair-not "packets before: $before; after: $after" few_more

# Both pairs again, and in the middle of it all the machine goes on in another process.
echo go >&3
said round-3 >/dev/null
another() { saves && vm_again && loads; }
if another; then pass queues-snapshot; else fail queues-snapshot "$(tail -n 1 errors)"; fi
api GET /vm/config
equal queues-config "queues that it says" "$(grep -o '"num_queues":2' body | wc -l)" 3
said after-restore >/dev/null
last=$(said after-restore)
round "$last" queues-restored
before=$(said "packets-$((last - 1))")
after=$(said "packets-$last")
for queue in rx0 rx1; do
    check "queues-restored-$queue" "packets before: $before; after: $after" grew $queue "$before" "$after"
done
wrong=$(cat consoles console | tr -d '\r' | grep -E 'soft lockup|rcu.*stall|I/O error|BUG:|Oops|NETDEV WATCHDOG' | head -n 1)
equal queues-nothing-wrong "signs of trouble" "${wrong:-none}" none
kill -TERM "$pid"
ends queues-end 143 "exit_code=143"
kill $echo
ip link set tap0 down
nic remove-tap tap0
