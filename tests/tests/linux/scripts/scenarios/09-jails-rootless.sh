# The tests of jails without root.
tests v2-jail-rootless jail::rootless
