# Booted from a configuration file without the API; `reboot=t` makes the guest triple-fault.
cat >config.json <<JSON
{
  "boot-source": {
    "kernel_image_path": "$FILES/vmlinux",
    "initrd_path": "$FILES/inner.cpio",
    "boot_args": "console=ttyS0 reboot=t panic=-1 quiet mayfly.case=base,reboot"
  },
  "drives": [],
  "machine-config": {"vcpu_count": 1, "mem_size_mib": 256}
}
JSON
vm_run --no-api --config-file "$vm/config.json"
started config-file-boot
check no-api-no-socket "there is a socket" [ ! -e "$sock" ]
ends end-triple-fault 1 "exit_code=1"
