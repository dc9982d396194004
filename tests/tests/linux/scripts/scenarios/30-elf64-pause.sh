# A vmlinux without a PVH note, by the 64-bit entry, four CPUs; paused and resumed; ended by SIGTERM.
vm_start
vm_up boot-vmlinux-64bit
boots boot-vmlinux-64bit vmlinux-no-pvh 4 base,smp,ticks
if in_log "Kernel loaded using PVH boot protocol"; then
    fail boot-64bit-entry-used "the log says PVH"
else
    pass boot-64bit-entry-used
fi
equal vcpus-4 "online CPUs" "$(said online)" 0-3
equal vcpus-4-work "product on CPU 3" "$(said cpu3)" 12
said tick >/dev/null

ticks() { grep -c 'mf:tick=' console; }
check pause "PATCH /vm Paused is refused" api PATCH /vm '{"state": "Paused"}'
api GET /
check pause-shown "GET / does not say Paused" grep -q '"Paused"' body
# Bytes that left the guest before the pause may still be on their way.
usleep 300000
count=$(ticks)
before=$(said tick)
began=$(cut -d' ' -f1 /proc/uptime)
sleep 3
equal pause-stops "ticks" "$(ticks)" "$count"
more_ticks() { [ "$(ticks)" -gt $((count + 5)) ]; }
check resume "PATCH /vm Resumed is refused" api PATCH /vm '{"state": "Resumed"}'
check resume-continues "no more ticks" until_true more_ticks
after=$(said tick)
passed=$(echo "$began $(cut -d' ' -f1 /proc/uptime)" | awk '{print $2 - $1}')
# Monotonic, and never ahead of real time by more than the granularity of this measurement.
sane=$(echo "$before $after $passed" | awk '{print ($2 > $1 && $2 - $1 < $3 + 1.5) ? "sane" : "odd"}')
equal resume-clock "clock ($before s -> $after s in $passed s)" "$sane" sane
if tr -d '\r' <console | grep -qE 'soft lockup|rcu.*stall|clocksource.*unstable'; then
    fail resume-quiet "$(grep -E 'soft lockup|rcu.*stall|clocksource.*unstable' console | head -n 1)"
else
    pass resume-quiet
fi
kill -TERM "$pid"
ends end-sigterm 0 "exit_code=0"
check sigterm-unlinks-socket "the socket is still there" [ ! -e "$sock" ]
