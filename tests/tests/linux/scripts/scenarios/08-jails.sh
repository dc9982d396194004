# The tests of jails: what one looks like, attacks on it, beginning and end.
for part in layout attacks life readme; do
    tests v2-jail-$part jail::$part
done
