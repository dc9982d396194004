# What a scenario may use. One scenario is one VMM process; a case is one thing it proves.
#
# pass CASE [DETAIL]   fail CASE REASON   check CASE REASON COMMAND...
# vm_start [ARG...]    vm_run [ARG...] (without the API)
# waiting_start        waiting_are_clones CASE
# vm_up                api METHOD PATH [JSON]      boots CASE KERNEL VCPUS WORK [BOOT ARG]
# saves    vm_again    loads                       $snapshot (what loading needs)
# said KEY             console TEXT              in_log TEXT        ends CASE CODE TEXT
# tests CASE ARGUMENT... (of filters and jails, as on the host)
#
# Everything that waits has a deadline of $PATIENCE seconds: the CPU is emulated and shared.

PATIENCE=100
FILES=/images

uptime_s() { cut -d. -f1 /proc/uptime; }

# until_true COMMAND...: repeats it until it succeeds or the deadline is over.
# Once one wait of a scenario was in vain (the file `lost`), the others are short.
until_true() {
    patience=$PATIENCE
    [ ! -e "$vm/lost" ] || patience=2
    deadline=$(($(uptime_s) + patience))
    until "$@"; do
        if [ "$(uptime_s)" -ge $deadline ]; then
            : >"$vm/lost"
            return 1
        fi
        usleep 50000
    done
}

pass() {
    name=$1
    shift
    echo "case $prefix$name ok $*"
}

fail() {
    name=$1
    shift
    echo "case $prefix$name FAIL $*"
    : >/run/failed
    vm_dump
}

check() {
    case_name=$1
    reason=$2
    shift 2
    if "$@" >/dev/null 2>&1; then pass "$case_name"; else fail "$case_name" "$reason"; fi
}

# equal CASE WHAT IS SHOULD
equal() {
    if [ -n "$4" ] && [ "$3" = "$4" ]; then
        pass "$1" "($2: $3)"
    else
        fail "$1" "$2 is '$3', not '$4'"
    fi
}

vm_new() {
    vm=/run/vm/$1
    # `jailed-` before a scenario's name: its VMM runs in a jail; `pci-`: devices are on a PCI bus. Its cases are called so, too.
    case $1 in
    jailed-pci-*) prefix=jailed-pci- ;;
    jailed-*) prefix=jailed- ;;
    pci-*) prefix=pci- ;;
    *) prefix= ;;
    esac
    case $prefix in
    *pci-) pci=--enable-pci ;;
    *) pci= ;;
    esac
    mkdir "$vm" && cd "$vm" || exit 1
    sock=$vm/api.sock
    snapshot="\"snapshot_path\": \"$vm/state\", \"resume_vm\": true,
        \"mem_backend\": {\"backend_type\": \"File\", \"backend_path\": \"$vm/memory\"}"
    pid=
    dumped=
    : >log
    : >console
    : >errors
    : >metrics
    mkfifo stdin
    exec 3<>stdin
    trap vm_done EXIT
    trap 'give_up "$1-time" "the scenario took too long"' TERM
}

vm_start() { vm_run --api-sock "$sock" "$@"; }

vm_run() {
    set -- --log-path "$vm/log" --level Info --metrics-path "$vm/metrics" "$@"
    [ -z "$pci" ] || set -- "$pci" "$@"
    if [ "${prefix#jailed-}" != "$prefix" ]; then
        # In the jail the two directories that scenarios use are where they are outside.
        mkdir -p /run/jails
        mayfly-jailer --id "${vm##*/}" --exec-file /bin/mayfly --uid 0 --gid 0 --chroot-base-dir /run/jails --cleanup \
            --cgroup pids.max=100 --bind "$vm:$vm" --bind "$FILES:$FILES:ro" -- "$@" <stdin >console 2>>errors &
    else
        mayfly --id "${vm##*/}" "$@" <stdin >console 2>>errors &
    fi
    pid=$!
}

answers() { [ -S "$sock" ] && api GET /version; }
answers_or_ended() { answers || ended; }
vm_up() { until_true answers_or_ended && answers || give_up "$1" "no reply on the socket"; }

# saves, vm_again, loads: the machine is saved and its process killed, another one is there in its place (what the guest said until then
# is in `consoles`), and goes on with the machine.
saves() {
    api PATCH /vm '{"state": "Paused"}' &&
        api PUT /snapshot/create "{\"snapshot_path\": \"$vm/state\", \"mem_file_path\": \"$vm/memory\"}"
}
vm_again() {
    kill -9 "$pid"
    wait "$pid" 2>/dev/null
    rm -f "$sock"
    cat console >>consoles
    vm_start
    until_true answers_or_ended && answers
}
loads() { api PUT /snapshot/load "{$snapshot}"; }

# waiting_start: two processes that wait to be clones, at $vm/1.clone and $vm/2.clone; $children are their ids, and console-1 and -2 what
# they and their guests say.
waiting_start() {
    children=
    for n in 1 2; do
        mayfly $pci --id "clone-$n" --api-sock "$vm/$n.sock" --clone-sock "$vm/$n.clone" --log-path "$vm/$n.log" \
            </dev/null >"console-$n" 2>>errors &
        children="$children $!"
    done
    until_true waiting_do
}
waiting_do() { [ -S 1.clone ] && [ -S 2.clone ]; }
# waiting_are_clones CASE: all of them are.
waiting_are_clones() {
    check "$1" "$(tail -n 1 errors) $(cat body)" [ "$(grep -o load_us body | wc -l)" = 2 ]
}

# The README's way to talk to it. Leaves the reply in $status and the file `body`.
api() {
    if [ -n "$3" ]; then
        status=$(curl -s -m $PATIENCE -o body -w '%{http_code}' --unix-socket "$sock" \
            -X "$1" "http://localhost$2" -H 'Content-Type: application/json' -d "$3")
    else
        status=$(curl -s -m $PATIENCE -o body -w '%{http_code}' --unix-socket "$sock" \
            -X "$1" "http://localhost$2")
    fi
    case $status in
    200 | 204) return 0 ;;
    *)
        echo "$1 $2 -> $status $(cat body 2>/dev/null)" >>errors
        return 1
        ;;
    esac
}

# boots CASE KERNEL VCPUS WORK [BOOT ARG...]: configures what every guest has in common, starts
# it and waits for its user space. Without that the other cases of the scenario mean nothing,
# so it ends here and they count as never reported.
boots() {
    boot_case=$1
    args="console=ttyS0 reboot=k panic=-1 quiet i8042.noaux i8042.nomux i8042.dumbkbd"
    boot_source="{\"kernel_image_path\": \"$FILES/$2\", \"initrd_path\": \"$FILES/inner.cpio\",
        \"boot_args\": \"$args mayfly.case=$4 $5\"}"
    if api PUT /boot-source "$boot_source" &&
        api PUT /machine-config "{\"vcpu_count\": $3, \"mem_size_mib\": 256}" &&
        api PUT /actions '{"action_type": "InstanceStart"}'; then
        started "$boot_case"
    else
        give_up "$boot_case" "$(tail -n 1 errors)"
    fi
}

# started CASE: the kernel we gave it has reached user space.
started() {
    if said release >release; then
        equal "$1" "kernel" "$(cat release)" "$(uname -r)"
    else
        give_up "$1" "the guest did not reach user space"
    fi
}

give_up() {
    fail "$@"
    exit 1
}

# drive ID FILE [MORE JSON MEMBERS]
drive() {
    api PUT "/drives/$1" "{\"drive_id\": \"$1\", \"path_on_host\": \"$2\",
        \"is_root_device\": false, \"is_read_only\": false${3:+, $3}}"
}

on_console() { grep -qF -- "$1" console; }
in_log() { grep -qF -- "$1" log; }
# A guest that is gone says nothing more.
console_or_end() { on_console "$1" || ended; }
console() { until_true console_or_end "$1" && on_console "$1"; }

# said KEY: what the guest said under that key, as soon as it has said it.
said() {
    console "mf:$1=" || return 1
    tr -d '\r' <console | sed -n "s/.*mf:$1=//p" | tail -n 1
}

ended() { grep -q '^State:.Z' "/proc/$pid/status" 2>/dev/null || [ ! -d "/proc/$pid" ]; }

# vm_exit: waits for the end and leaves the exit code in $code.
vm_exit() {
    if ! until_true ended; then
        code="none, it still runs"
        return 1
    fi
    wait "$pid"
    code=$?
    pid=
}

# ends CASE CODE TEXT: the process ends with CODE, and its last log line says so.
ends() {
    vm_exit
    last=$(tail -n 1 log)
    if [ "$code" != "$2" ]; then
        fail "$1" "exit code is $code, not $2; last log line: $last"
    elif ! tail -n 1 log | grep -qF -- "$3"; then
        fail "$1" "the last log line is not '$3': $last"
    else
        pass "$1" "exit code $code, last log line: $last"
    fi
}

md5() { md5sum | cut -d' ' -f1; }

# Shows what the VMM and its guest said and counted, once per scenario, for whoever reads the failure.
vm_dump() {
    [ -z "$dumped" ] || return
    dumped=yes
    # Those of processes that waited to be clones, too, if there are any.
    for file in errors log console $(ls console-? ?.log 2>/dev/null); do
        echo "| --- $file of ${vm##*/} (last 60 lines)"
        # Ends the last line too: a case's line must begin on a line of its own.
        tail -n 60 $file | tr -d '\r' | awk '{ print "| " $0 }'
    done
    if [ -n "$pid" ] && ! ended; then
        sed 's/^/| /' "/proc/$pid/status" | grep -E 'State|Threads|VmRSS'
        api PUT /actions '{"action_type": "FlushMetrics"}'
        echo "| --- counters that are not zero"
        tail -n 1 metrics | sed 's/},*/}\n/g' | sed 's/"[a-z_]*":0,*//g; s/^/| /' | grep '":[^{]'
        echo "| --- connections of the host (state, queues)"
        awk '{ print "| " $2, $3, $4, $5, $6, $7 }' /proc/net/tcp
    fi
}

vm_done() {
    if [ -n "$pid" ]; then
        kill -9 "$pid" 2>/dev/null
        wait "$pid" 2>/dev/null
    fi
}

# tests CASE ARGUMENT...: runs those tests of filters and jails that the arguments choose, as on the host. Here control groups are of
# version 2. What they say is shown, since a failure is told there.
tests() {
    tests_case=$1
    shift
    MAYFLY_BIN=/bin/mayfly timeout 280 security --test-threads 1 "$@" 2>&1 | tee tests.out
    passed=$(sed -n 's/^test result: ok\. \([0-9]*\) passed; 0 failed; 0 ignored.*/\1/p' tests.out)
    check "$tests_case" "see above" [ "${passed:-0}" -gt 0 ]
}
