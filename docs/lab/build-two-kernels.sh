#!/bin/sh
# build-two-kernels.sh DIR [VERSION]: builds two small kernels from Debian's kernel source, which differ in one call.
#
# DIR/with/vmlinuz     the kernel as it is: unmounting an overlay syncs the whole file system under its upper directory
# DIR/without/vmlinuz  the same without that call, sync_filesystem() in ovl_sync_fs() (fs/overlayfs/super.c)
#
# `wardian lab bisect --kernels DIR/without,DIR/with` then names the one with the call. VERSION is that of the package
# linux-source-VERSION (default: 6.12), which apt downloads and nothing installs. A build takes about 15 minutes on two
# processors and 3 GB in DIR, which are freed at the end. JOBS=N in the environment: so many compilers at a time.
set -eu

[ $# -ge 1 ] || { sed -n '2,/^set /s/^# \{0,1\}//p' "$0" >&2; exit 2; }
version=${2:-6.12}
jobs=${JOBS:-$(nproc)}
mkdir -p "$1"
out=$(readlink -f "$1")
for need in apt-get:apt dpkg-deb:dpkg xz:xz-utils make:make gcc:gcc flex:flex bison:bison bc:bc diff:diffutils; do
  command -v "${need%%:*}" >/dev/null || { echo "$0: ${need%%:*} is missing: apt-get install ${need#*:}" >&2; exit 1; }
done
[ -e /usr/include/libelf.h ] || { echo "$0: libelf.h is missing: apt-get install libelf-dev" >&2; exit 1; }

work=$(mktemp -d "$out/.build.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

echo "downloading linux-source-$version"
(cd "$work" && apt-get -qq -o APT::Sandbox::User=root download "linux-source-$version")
mkdir "$work/source"
# Half of the source code is drivers of graphics cards and documentation, of which only the Kconfig files are needed.
dpkg-deb --fsys-tarfile "$work"/linux-source-*.deb | tar -xO "./usr/src/linux-source-$version.tar.xz" |
  tar -xJ -C "$work/source" --strip-components=1 --exclude='drivers/gpu/drm/*.[ch]' --exclude='Documentation/*.rst'
rm "$work"/linux-source-*.deb

# What a guest of `wardian lab bisect` needs, all built in: PCI and virtio, ext4 and overlayfs, an initial RAM disk; and
# what the recorder needs to name causes: trace events, system calls as such, and readable kernel stacks.
cat > "$work/fragment" <<'CONFIG'
CONFIG_LOCALVERSION="-small"
CONFIG_64BIT=y
CONFIG_SMP=y
CONFIG_ACPI=y
CONFIG_PCI=y
CONFIG_PRINTK=y
CONFIG_BUG=y
CONFIG_MULTIUSER=y
CONFIG_FUTEX=y
CONFIG_EPOLL=y
CONFIG_SIGNALFD=y
CONFIG_TIMERFD=y
CONFIG_EVENTFD=y
CONFIG_INOTIFY_USER=y
CONFIG_FILE_LOCKING=y
CONFIG_FHANDLE=y
CONFIG_POSIX_TIMERS=y
CONFIG_HIGH_RES_TIMERS=y
CONFIG_NAMESPACES=y
CONFIG_MEMBARRIER=y
CONFIG_ADVISE_SYSCALLS=y
CONFIG_BINFMT_ELF=y
CONFIG_BINFMT_SCRIPT=y
CONFIG_BLK_DEV_INITRD=y
CONFIG_PROC_FS=y
CONFIG_PROC_SYSCTL=y
CONFIG_SYSFS=y
CONFIG_SHMEM=y
CONFIG_TMPFS=y
CONFIG_TMPFS_XATTR=y
CONFIG_DEVTMPFS=y
CONFIG_TTY=y
CONFIG_SERIAL_8250=y
CONFIG_SERIAL_8250_CONSOLE=y
CONFIG_BLOCK=y
CONFIG_BLK_DEV=y
CONFIG_VIRTIO_MENU=y
CONFIG_VIRTIO_PCI=y
CONFIG_VIRTIO_BLK=y
CONFIG_VIRTIO_CONSOLE=y
CONFIG_EXT4_FS=y
CONFIG_OVERLAY_FS=y
CONFIG_NET=y
CONFIG_UNIX=y
CONFIG_KALLSYMS=y
CONFIG_STACKTRACE=y
CONFIG_FTRACE=y
CONFIG_FTRACE_SYSCALLS=y
CONFIG_UNWINDER_ORC=y
# CONFIG_CPU_MITIGATIONS is not set
# CONFIG_MODULES is not set
CONFIG
kernel() { make -s -C "$work/source" O="$work/objects" "$@"; }
keep() {  # DIR/NAME/vmlinuz, complete or not there at all
  mkdir -p "$out/$1"
  cp "$work/objects/.config" "$out/$1/config"
  cp "$work/objects/arch/x86/boot/bzImage" "$out/$1/vmlinuz.new"
  mv "$out/$1/vmlinuz.new" "$out/$1/vmlinuz"
  echo "built $out/$1/vmlinuz: $(kernel kernelrelease)"
}
mkdir "$work/objects"
kernel KCONFIG_ALLCONFIG="$work/fragment" allnoconfig
while IFS= read -r line; do
  grep -qxF "$line" "$work/objects/.config" || { echo "$0: linux-source-$version has no $line" >&2; exit 1; }
done < "$work/fragment"

echo "building the kernel as it is"
kernel -j"$jobs" bzImage
keep with

# The one call is taken out; what it would have returned stays.
call='ret = sync_filesystem(upper_sb);'
file=$work/source/fs/overlayfs/super.c
[ "$(grep -cF "$call" "$file")" = 1 ] || { echo "$0: $file does not have the one call: $call" >&2; exit 1; }
cp "$file" "$work/as-it-is.c"
sed -i "s/$call/ret = 0;/" "$file"
mkdir -p "$out/without"
diff -u --label a/fs/overlayfs/super.c --label b/fs/overlayfs/super.c "$work/as-it-is.c" "$file" > "$out/without/patch" || true
echo "building the kernel without the call"
kernel -j"$jobs" bzImage
keep without
