# A distribution's bzImage with an initrd, one CPU, configured by curl; ended by `reboot`.
vm_start
check api-answers "no reply on the socket" vm_up
api GET / && equal api-not-started "instance" "$(grep -o 'Not started' body)" "Not started"
boot bzImage 1 base,smp,input,reboot || fail boot-bzimage-initrd "$(tail -n 1 errors)"
release=$(said release)
equal boot-bzimage-initrd "kernel" "$release" "$(uname -r)"
equal vcpus-1 "online CPUs" "$(said online)" 0
said input-ready >/dev/null
echo "typed on the console" >&3
equal console-input "the guest read" "$(said input)" "typed on the console"
ends end-reboot 0 "exit_code=0"
if [ -s body ]; then check socket-unlinked "the socket is still there" [ ! -e "$sock" ]; fi
