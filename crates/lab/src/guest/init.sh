#!/bin/busybox sh
# Pid 1 of a guest. It gets scripts on the virtio port named "wardian", a line of base64 each, and answers each with a
# line "STATUS BYTES" and so many bytes of output. The kernel's log is on ttyS0.
export PATH=/files:/bin:/sbin:/usr/bin:/usr/sbin HOME=/root TERM=dumb
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
say() { echo "wardian: $*" > /dev/kmsg; }
for module in /modules/*; do
  [ -e "$module" ] || continue
  # Some of several implementations may be for other processors.
  insmod "$module" 2> /tmp/failed || say "not loaded: $(cat /tmp/failed)"
done
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs tmp /tmp
mount -t tracefs trace /sys/kernel/tracing 2> /dev/null
hostname guest
tries=0
while :; do
  for port in /sys/class/virtio-ports/*; do
    [ "$(cat "$port/name" 2> /dev/null)" = wardian ] && break 2
  done
  tries=$((tries + 1))
  [ $tries -lt 100 ] || { say "no virtio port: this kernel lacks virtio_pci or virtio_console"; poweroff -f; }
  usleep 100000
done
exec 8<> "/dev/${port##*/}"
echo ready >&8
while read -r line <&8; do
  echo "$line" | base64 -d > /tmp/.script
  (cd /root && exec setsid sh /tmp/.script) < /dev/null > /tmp/.output 2>&1 8>&-
  status=$?
  echo "$status $(stat -c %s /tmp/.output)" >&8
  cat /tmp/.output >&8
done
poweroff -f
