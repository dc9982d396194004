# The README's lines for a confined machine, as they stand there, on a host with control groups of version 2.
mkdir -p /srv/images
cp $FILES/bzImage /srv/images/bzImage
cp $FILES/inner.cpio /srv/images/initrd
# They end the machine at once; this looks at it before.
sed '/^kill /,$d' /readme-jail.sh >first
sed -n '/^kill /,$p' /readme-jail.sh >second
. ./first <stdin >console 2>errors
pid=$!
check jail-no-refusal "a line was refused: $(grep fault_message console)" [ -z "$(grep fault_message console)" ]
started jail-boot
check jail-in-its-group "it is not in its group" grep -qx "$pid" /sys/fs/cgroup/mayfly/vm-1/cgroup.procs
unconfined=$(for task in /proc/$pid/task/*; do
    grep -q '^kvm-' $task/comm || grep -qE '^Seccomp:.2$' $task/status || cat $task/comm
done)
equal jail-confined "tasks without a filter, capabilities" "${unconfined:-none} $(sed -n 's/^CapBnd:.//p' /proc/$pid/status)" "none 0000000000000000"
. ./second 2>>errors
left="$(ls -d /srv/jailer/mayfly /sys/fs/cgroup/mayfly 2>/dev/null; pidof mayfly; grep jailer /proc/mounts)"
equal jail-nothing-left "what is left" "${left:-nothing}" nothing
rm -rf /srv/images
