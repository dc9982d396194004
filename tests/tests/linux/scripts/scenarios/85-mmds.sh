# The metadata service, version 2, from inside; other traffic goes on to the tap.
tunctl -t tap0 >/dev/null
ip addr add 172.16.0.1/24 dev tap0
ip link set tap0 up
vm_start
vm_up mmds-boot
api PUT /network-interfaces/eth0 '{"iface_id": "eth0", "guest_mac": "06:00:ac:10:00:02", "host_dev_name": "tap0"}'
check mmds-config "$(tail -n 1 errors)" api PUT /mmds/config '{"version": "V2", "network_interfaces": ["eth0"]}'
check mmds-put "$(tail -n 1 errors)" api PUT /mmds '{"latest": {"meta-data": {"ami-id": "ami-12345"}}}'
boots mmds-boot vmlinux 1 base,mmds
equal mmds-token-needed "status without a token" "$(said mmds-no-token)" 401
equal mmds-value "value" "$(said mmds-value)" ami-12345
equal mmds-json "JSON" "$(said mmds-json)" '{"ami-id":"ami-12345"}'
equal mmds-mac "address" "$(said mmds-mac)" 06:01:23:45:67:01
equal mmds-other-traffic "status of a ping to the host" "$(said mmds-other-traffic)" 0
kill -TERM "$pid"
ends mmds-end 143 "exit_code=143"
ip link set tap0 down
tunctl -d tap0 >/dev/null
