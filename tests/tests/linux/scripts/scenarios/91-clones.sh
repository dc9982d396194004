# A guest at work is cloned twice in one call, while it stands still for the copies of its disk; then all three go on. Each has a generation
# id and a disk of its own, nothing that they wrote is lost, and who listens on vsock is reached in each, under a context id of its own.
truncate -s 8M disk
vm_start --clonable
vm_up clones-boot
drive d "$vm/disk"
api PUT /entropy '{}'
api PUT /vsock "{\"guest_cid\": 3, \"uds_path\": \"$vm/v.sock\"}"
boots clones-boot bzImage 1 base,alive
said alive >/dev/null

waiting_start
api PATCH /vm '{"state": "Paused"}'
cp disk disk-1
cp disk disk-2
child() {
    echo "{\"socket\": \"$vm/$1.clone\", \"drives\": [{\"drive_id\": \"d\", \"path_on_host\": \"$vm/disk-$1\"}],
        \"vsock\": {\"guest_cid\": 10$1, \"uds_path\": \"$vm/v-$1.sock\"}}"
}
api POST /clones "{\"children\": [$(child 1), $(child 2)]}"
waiting_are_clones clones-made
api PATCH /vm '{"state": "Resumed"}'

# speaks FILE: the guest there has done ten rounds more than the original had when it was cloned.
rounds() { tr -d '\r' <"$1" | sed -n 's/^mf:alive=//p' | tail -n 1; }
before=$(rounds console)
speaks() { [ "$(rounds "$1")" -gt $((before + 10)) ] 2>/dev/null; }
for n in 1 2; do check "clones-$n-goes-on" "it says $(rounds "console-$n")" until_true speaks "console-$n"; done
check clones-parent-goes-on "it says $(rounds console)" until_true speaks console

# greets SOCKET FILE WORD: a program on the host says it to the one that listens in the guest.
greets() {
    echo "$3" | timeout 20 vsock-cat host-connect "$1" 1000 >/dev/null 2>>errors || echo "rig: $1 was not heard of"
    tr -d '\r' <"$2" | grep -q "^mf:heard=$3\$"
}
check clones-1-listens "it heard nothing" until_true greets "$vm/v-1.sock" console-1 one
check clones-2-listens "it heard nothing" until_true greets "$vm/v-2.sock" console-2 two
check clones-parent-listens "it heard nothing" until_true greets "$vm/v.sock" console parent

# Whole lines: a guest may be in the middle of one.
for said in console console-1 console-2; do sed '$d' $said; done >consoles
ids=$(tr -d '\r' <consoles | sed -n 's/^mf:generation=\([0-9a-f]\{32\}\)$/\1/p' | sort -u | wc -l)
equal clones-identities "generation ids" "$ids" 3
cids=$(tr -d '\r' <consoles | sed -n 's/^mf:cid=//p' | sort -u | tr '\n' ' ')
equal clones-context-ids "context ids of the guests" "$cids" "101 102 3 "
wrong=$(tr -d '\r' <consoles | grep -E 'mf:alive-wrong|soft lockup|rcu.*stall|I/O error|BUG:|Oops' | head -n 1)
equal clones-nothing-wrong "signs of trouble" "${wrong:-none}" none
kill -TERM $children
wait $children
kill -TERM "$pid"
ends clones-end 143 "exit_code=143"
