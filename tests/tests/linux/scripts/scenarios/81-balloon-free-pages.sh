# Free pages go back to the host without any inflating: by reporting, and on demand by hinting.
rss_mib() { awk '/^VmRSS/ {print int($2 / 1024)}' "/proc/$pid/status"; }
at_most() { [ "$(rss_mib)" -le "$1" ]; }
vm_start
vm_up reporting-boot
api PUT /balloon '{"amount_mib": 0, "deflate_on_oom": false, "free_page_reporting": true}'
boots reporting-boot vmlinux 1 base,balloon
said balloon-filled >/dev/null
# The guest waits two seconds before it reports.
check reporting-returns-memory "$(rss_mib) MiB" until_true at_most 150
kill -TERM "$pid"
ends reporting-end 143 "exit_code=143"

rm -f "$sock"
: >console
vm_start
vm_up hinting-boot
api PUT /balloon '{"amount_mib": 0, "deflate_on_oom": false, "free_page_hinting": true}'
boots hinting-boot vmlinux 1 base,balloon
said balloon-filled >/dev/null
full=$(rss_mib)
check hinting-starts "$(tail -n 1 errors)" api PATCH /balloon/hinting/start '{}'
check hinting-returns-memory "$full MiB before, $(rss_mib) MiB after" until_true at_most $((full - 80))
answered() { api GET /balloon/hinting/status && ! grep -q '"guest_cmd": *null' body; }
check hinting-status "$(cat body)" until_true answered
check hinting-stops "$(tail -n 1 errors)" api PATCH /balloon/hinting/stop '{}'
kill -TERM "$pid"
ends hinting-end 143 "exit_code=143"
