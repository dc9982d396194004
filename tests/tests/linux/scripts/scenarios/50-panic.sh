# A kernel panic. `panic=-1` reboots at once, so the VM ends as by `reboot`.
vm_start
vm_up panic-boot
boots panic-boot vmlinux 1 base,panic
check panic-shown "no panic on the console" console "Kernel panic"
ends end-panic 0 "exit_code=0"
