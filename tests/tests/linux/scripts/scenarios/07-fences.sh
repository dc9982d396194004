# The tests of filters and Landlock. Those that start some hundred machines are left to the host.
tests v2-fences fences:: --skip every_forbidden_call
