#!/bin/sh
# In the guest: works the store until the power goes. /share/images lists the images. What it tells on hvc0 is what the store has promised.
store="--root /mnt/store --run /run/wardian"
say() { echo "$*" > /dev/hvc0; }
import() {  # image: waits until it is durable, and pins it: what is not pinned a collection may take
  if ! wardian image import "oci:///share/$1:latest" -t "$1" $store > "/tmp/$1" 2>&1; then say "failed import $1: $(tail -1 "/tmp/$1")"
  elif wardian image pin "$1" $store > "/tmp/$1" 2>&1; then say "durable $1"; fi
}
containers() {  # image: root file systems that come and go, and hold what nobody may find again
  n=0; while :; do
    n=$((n + 1)); id=$1-$n
    path=$(wardian rootfs create "$1" "$id" --json $store 2>/tmp/rootfs) || { say "failed rootfs $id: $(tail -1 /tmp/rootfs)"; sleep 1; continue; }
    path=$(echo "$path" | sed -n 's/.*"path": *"\([^"]*\)".*/\1/p')
    dd if=/dev/urandom "of=$path/volatile" bs=64k count=$((n % 20)) 2>/dev/null; seq 1000 > "$path/f1"
    # Every third is there when the power goes.
    [ $((n % 3)) = 0 ] || wardian rootfs delete "$id" $store > /tmp/rootfs 2>&1 || say "failed delete $id: $(tail -1 /tmp/rootfs)"
    [ $((n % 4)) != 0 ] || wardian store gc $store > /tmp/gc 2>&1 || say "failed gc: $(tail -1 /tmp/gc)"
  done
}

set -- $(cat /share/images)
say begin
import "$1"; containers "$1" &
while :; do
  # The first three share their lower layers and come at the same time.
  import "$2" & a=$!; import "$3" & b=$!; import "$4" & c=$!
  wardian image import "oci:///share/$5:latest" -t "$5" --no-wait $store > /tmp/5 2>&1 || say "failed import $5: $(tail -1 /tmp/5)"
  import "$6"; wait $a; wait $b; wait $c
  for image in "$2" "$6"; do
    say "removing $image"
    if wardian image unpin "$image" $store > /tmp/rm 2>&1; then wardian image rm "$image" $store > /tmp/rm 2>&1; fi
  done
  wardian store gc $store > /tmp/gc 2>&1 || say "failed gc: $(tail -1 /tmp/gc)"
done
