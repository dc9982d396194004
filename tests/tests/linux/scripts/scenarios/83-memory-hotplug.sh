# Memory plugged and unplugged in a running guest; what is unplugged goes back to the host.
rss_mib() { awk '/^VmRSS/ {print int($2 / 1024)}' "/proc/$pid/status"; }
at_most() { [ "$(rss_mib)" -le "$1" ]; }
member() { api GET /hotplug/memory && sed -n "s/.*\"$1\": *\([0-9]*\).*/\1/p" body; }
plugged_is() { [ "$(member plugged_size_mib)" = "$1" ]; }
vm_start
vm_up mem-boot
api PUT /hotplug/memory '{"total_size_mib": 512}'
boots mem-boot vmlinux 1 base,mem
said mem-total >/dev/null
check mem-request "$(tail -n 1 errors)" api PATCH /hotplug/memory '{"requested_size_mib": 256}'
check mem-plugs "$(cat body)" until_true plugged_is 256
more() { [ "$(said mem-plugged)" -gt $(($(said mem-total) + 200000)) ]; }
check mem-grows "from $(said mem-total) to $(said mem-plugged) KiB" more
said mem-filled >/dev/null
full=$(rss_mib)
check mem-request-less "$(tail -n 1 errors)" api PATCH /hotplug/memory '{"requested_size_mib": 0}'
check mem-unplugs "$(cat body)" until_true plugged_is 0
check mem-shrinks "the guest still has it" said mem-unplugged
check mem-returns-memory "$full MiB before, $(rss_mib) MiB after" until_true at_most $((full - 40))
kill -TERM "$pid"
ends mem-end 143 "exit_code=143"
