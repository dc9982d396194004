# Random bytes; then memory that comes back: by inflating the balloon, by reporting free pages, by hinting.
rss_mib() { awk '/^VmRSS/ {print int($2 / 1024)}' "/proc/$pid/status"; }
at_most() { [ "$(rss_mib)" -le "$1" ]; }
member() { api GET "$1" && sed -n "s/.*\"$2\": *\([0-9]*\).*/\1/p" body; }
balloon_is() { [ "$(member /balloon/statistics actual_mib)" = "$1" ]; }

vm_start
vm_up rng-boot
api PUT /entropy '{}'
api PUT /balloon '{"amount_mib": 0, "deflate_on_oom": true, "stats_polling_interval_s": 1}'
boots rng-boot vmlinux 1 base,rng,balloon
equal rng-driver "source" "$(said rng-current)" virtio_rng.0
equal rng-bytes "bytes" "$(said rng-bytes)" 131072
differ() { [ -n "$1" ] && [ "$1" != "$2" ]; }
check rng-random "the same bytes twice" differ "$(said rng-one)" "$(said rng-two)"
said balloon-filled >/dev/null
full=$(rss_mib)
api PATCH /balloon '{"amount_mib": 128}'
check balloon-inflates "the guest does not inflate" until_true balloon_is 128
check balloon-returns-memory "$full MiB before, $(rss_mib) MiB after" until_true at_most $((full - 100))
check balloon-statistics "$(cat body)" [ "$(member /balloon/statistics total_memory)" -gt 100000000 ]
api PATCH /balloon '{"amount_mib": 0}'
check balloon-deflates "the guest does not deflate" until_true balloon_is 0
kill -TERM "$pid"
ends balloon-end 143 "exit_code=143"
