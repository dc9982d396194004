# vCPUs that come and go in a running guest, by ACPI: it learns of them by itself, uses them, and gives them back by itself. With some plugged
# it is saved and goes on in another process.
member() { api GET /hotplug/vcpus && sed -n "s/.*\"$1\": *\([0-9]*\).*/\1/p" body; }
plugged_is() { [ "$(member plugged_vcpu_count)" = "$1" ]; }
online_are() { [ "$(said vcpus-online)" = "$1" ]; }
# works_on CPUS RESULTS: the guest runs on these, and each of them does its work.
works_on() { until_true online_are "$1" && worked_says "$2"; }
worked_says() { until_true worked_is "$1"; }
worked_is() { [ "$(said vcpus-worked)" = "$1" ]; }
want() { api PATCH /hotplug/vcpus "{\"vcpu_count\": $1}"; }

vm_start
vm_up vcpus-boot
boots vcpus-boot bzImage '1, "max_vcpus": 3' base,vcpus
equal vcpus-possible "possible CPUs" "$(said vcpus-possible)" 0-2
equal vcpus-present-at-boot "present CPUs" "$(said vcpus-present)" 0
api GET /hotplug/vcpus
equal vcpus-status "status" "$(cat body)" '{"vcpu_count":1,"plugged_vcpu_count":1,"max_vcpus":3}'
check vcpus-too-many "it was not refused" eval '! want 4 && grep -q "at most 3" body'
check vcpus-request "$(tail -n 1 errors)" want 3
check vcpus-grow "online: $(said vcpus-online)" works_on 0-2 "12 12 12"
equal vcpus-present "present CPUs" "$(said vcpus-present)" 0-2
check vcpus-request-less "$(tail -n 1 errors)" want 1
check vcpus-ejected "$(cat body)" until_true plugged_is 1
check vcpus-shrink "online: $(said vcpus-online)" works_on 0 12
check vcpus-request-again "$(tail -n 1 errors)" want 2
check vcpus-grow-again "online: $(said vcpus-online)" works_on 0-1 "12 12"
check vcpus-save "$(tail -n 1 errors)" saves
vm_again || give_up vcpus-restore "no reply on the socket"
check vcpus-restore "$(tail -n 1 errors)" loads
check vcpus-restored-work "online: $(said vcpus-online)" works_on 0-1 "12 12"
api GET /hotplug/vcpus
equal vcpus-restored-status "status" "$(cat body)" '{"vcpu_count":2,"plugged_vcpu_count":2,"max_vcpus":3}'
# What comes while it stands still it learns of when it goes on.
api PATCH /vm '{"state": "Paused"}'
want 3
api PATCH /vm '{"state": "Resumed"}'
check vcpus-restored-grow "online: $(said vcpus-online)" works_on 0-2 "12 12 12"
want 1
check vcpus-restored-shrink "online: $(said vcpus-online)" works_on 0 12
check vcpus-restored-ejected "$(cat body)" until_true plugged_is 1
wrong=$(tr -d '\r' <console | grep -E 'soft lockup|rcu.*stall|BUG:|Oops|ACPI (BIOS )?Error|failed to report' | head -n 1)
equal vcpus-nothing-wrong "signs of trouble" "${wrong:-none}" none
kill -TERM "$pid"
ends vcpus-end 143 "exit_code=143"
