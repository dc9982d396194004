# A kernel panic. `panic=-1` reboots at once, so the VM ends as by `reboot`.
vm_start
vm_up panic-boot
boots panic-boot vmlinux 1 base,cpu,panic
said cpu-done >/dev/null
# What 70-cpu-identity hides by a template.
shows() { said cpu-flags | grep -q " $1 "; }
check no-template-hides-nothing "the guest does not see adx" shows adx
check panic-shown "no panic on the console" console "Kernel panic"
ends end-panic 0 "exit_code=0"
