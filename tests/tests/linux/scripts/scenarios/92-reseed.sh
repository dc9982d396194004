# A guest whose kernel has a driver for the generation id, Debian's usual one, draws random numbers while it is cloned twice. The clones hear
# that they are several, reseed, and draw different numbers from then on; the original does not.
vm_start --clonable
vm_up reseed-boot
api PUT /boot-source "{\"kernel_image_path\": \"$FILES/bzImage-usual\", \"initrd_path\": \"$FILES/inner.cpio\",
    \"boot_args\": \"console=ttyS0 reboot=k panic=-1 quiet i8042.noaux i8042.nomux i8042.dumbkbd mayfly.case=random\"}"
api PUT /machine-config '{"vcpu_count": 1, "mem_size_mib": 256}'
api PUT /actions '{"action_type": "InstanceStart"}'
check reseed-boot "$(tail -n 1 errors)" said random

waiting_start
api POST /clones "{\"children\": [{\"socket\": \"$vm/1.clone\"}, {\"socket\": \"$vm/2.clone\"}]}"
waiting_are_clones reseed-made

# drawn FILE: what was drawn, but for the first, which may have been drawn before.
drawn() { tr -d '\r' <"$1" | sed -n 's/^mf:random=\([0-9a-f]\{32\}\)$/\1/p' | tail -n +2; }
heard() { tr -d '\r' <"$1" | grep -q '^mf:reseeded=1$'; }
for n in 1 2; do check "reseed-$n-heard" "its kernel did not say so" until_true heard "console-$n"; done
many() { [ "$(drawn console-1 | wc -l)" -gt 20 ] && [ "$(drawn console-2 | wc -l)" -gt 20 ]; }
until_true many
kill -TERM $children
wait $children
equal reseed-parent-did-not "reseeded" "$(said reseeded)" 0
drawn console-1 | sort -u >drawn-1
drawn console-2 | sort -u >drawn-2
drawn console | sort -u >drawn
same=$(cat drawn drawn-1 drawn-2 | sort | uniq -d | wc -l)
equal reseed-random-differs "numbers that were drawn twice" "$same" 0
kill -TERM "$pid"
ends reseed-end 143 "exit_code=143"
