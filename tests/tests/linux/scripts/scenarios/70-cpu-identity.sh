# A custom CPU template, as the guest's kernel sees it; the pages of VM generation id and VM clock; a panic told by pvpanic.
# The brand string begins with "Mayf", and ADX is hidden, which the emulated CPU has.
vm_start
vm_up template-accepted
check template-accepted "PUT /cpu-config is refused" api PUT /cpu-config '{
    "kvm_capabilities": ["121"],
    "cpuid_modifiers": [
        {"leaf": "0x7", "subleaf": "0x0", "flags": 1, "modifiers": [
            {"register": "ebx", "bitmap": "0bxxxx_xxxx_xxxx_0xxx_xxxx_xxxx_xxxx_xxxx"}]},
        {"leaf": "0x80000002", "subleaf": "0x0", "flags": 0, "modifiers": [
            {"register": "eax", "bitmap": "0b01100110_01111001_01100001_01001101"}]}
    ]
}'
boots template-boot vmlinux 2 base,cpu,identity,pvpanic,panic
# A long line is seen growing; it is complete when the next one is there.
said cpu-done >/dev/null
flags=$(said cpu-flags)
# has FLAG WHERE: "yes" or "no"
has() { case $2 in *" $1 "*) echo yes ;; *) echo no ;; esac; }
outer=" $(sed -n 's/^flags[^:]*: //p' /proc/cpuinfo | sort -u) "
equal template-hides-a-flag "adx outside and in the guest" "$(has adx "$outer"), $(has adx "$flags")" "yes, no"
equal template-leaves-the-others "smap outside and in the guest" "$(has smap "$outer"), $(has smap "$flags")" "yes, yes"
equal template-names-the-cpu "first letters of the model name" "$(said model-name | cut -c1-4)" Mayf
for node in VMGENCTR.VGEN AMZNC10C.VCLK ACPI0013.GED_ QEMU0001.PANC; do
    hid=${node%.*}
    equal "acpi-$hid" "device" "$(said "acpi-$hid")" "\\_SB_.${node#*.}"
done
# The generation id, the clock, and on a PCI bus what comes and goes.
if [ -n "$pci" ]; then events=3; else events=2; fi
equal ged-interrupts "interrupts that the kernel takes for events" "$(said ged-interrupts)" $events
check generation-id "it is '$(said generation-id)'" [ "$(said generation-id | tr -d 0 | wc -c)" -gt 8 ]
# "VCLK", one page, version 1, no counter.
equal vm-clock "first 16 bytes of its page" "$(said clock-page)" "56434c4b001000000100ff0000000000"
equal pvpanic-driver "events that the driver knows and tells" "$(said pvpanic)" "3 3"
check pvpanic-panic "no panic on the console" console "Kernel panic"
ends end-after-panic 0 "exit_code=0"
check pvpanic-logged "no such log line" in_log "the guest's kernel panicked"
check pvpanic-told-at-the-end "the exit line does not tell" in_log "The microVM ended: the guest panicked and then rebooted."
