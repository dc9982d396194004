# A distribution's bzImage with an initrd, one CPU, configured by curl; ended by `reboot`.
vm_start
vm_up api-answers
pass api-answers "$(cat body)"
api GET /
check api-not-started "instance is $(cat body)" grep -q '"Not started"' body
boots boot-bzimage-initrd bzImage 1 base,smp,input,reboot
equal vcpus-1 "online CPUs" "$(said online)" 0
said input-ready >/dev/null
echo "typed on the console" >&3
equal console-input "the guest read" "$(said input)" "typed on the console"
ends end-reboot 0 "exit_code=0"
check socket-unlinked "the socket is still there" [ ! -e "$sock" ]
