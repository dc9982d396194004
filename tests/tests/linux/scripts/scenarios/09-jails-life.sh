# The tests of jails: beginning and end, and without root.
for part in life rootless; do
    tests v2-jail-$part jail::$part
done
