#!/usr/bin/env python3
"""The Debian package where systemd runs: installed, started, used, upgraded, removed and purged. systemd of this host is in the guest, in namespaces
of its own, on a disk with the packages that it needs."""
import argparse, os, shutil, subprocess, sys, tempfile, time
import lab, vm

LIMIT = 900
# What is in the machine besides what these need.
PACKAGES = "base-files base-passwd bash coreutils dash diffutils dpkg findutils grep gzip libc-bin login mount passwd sed systemd tar util-linux xz-utils".split()
TOP = os.path.join(vm.HERE, "../..")


def closure(names):
    """The installed packages that these depend on, themselves included."""
    form = "${Package}\t${Pre-Depends}, ${Depends}\t${Provides}\n"
    needs, provider = {}, {}
    for line in subprocess.check_output(["dpkg-query", "-W", "-f", form], text=True).splitlines():
        name, depends, provides = line.split("\t")
        needs[name] = depends
        for one in provides.split(","):
            provider.setdefault(one.split("(")[0].strip(), name)
    found, todo = set(), list(names)
    while todo:
        name = todo.pop()
        name = name if name in needs else provider.get(name)
        if name and name not in found:
            found.add(name)
            for alternatives in needs[name].split(","):
                each = [one.split("(")[0].split(":")[0].strip() for one in alternatives.split("|")]
                todo += [one for one in each if one in needs or one in provider][:1]
    return found


def system(root):
    """Copies a small Debian of this host's files into a directory."""
    packages = closure(PACKAGES)
    for name in "bin sbin lib lib64".split():
        os.makedirs(f"{root}/usr/{name}")
        os.symlink(f"usr/{name}", f"{root}/{name}")
    files = subprocess.check_output(["dpkg-query", "-L", *sorted(packages)], text=True).splitlines()
    files = {f for f in files if f.startswith("/") and f != "/." and not f.startswith(("/usr/share/doc", "/usr/share/man", "/usr/share/locale"))}
    real = sorted({os.path.realpath(os.path.dirname(f)) + "/" + os.path.basename(f) for f in files})
    real = [f for f in real if os.path.islink(f) or os.path.isfile(f)]
    listed = "\0".join(f.lstrip("/") for f in real).encode()
    with subprocess.Popen(["tar", "-C", "/", "-c", "--null", "-T", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as packer:
        unpacker = subprocess.Popen(["tar", "-C", root, "-x"], stdin=packer.stdout)
        packer.stdin.write(listed)
        packer.stdin.close()
        assert unpacker.wait() == 0
    for name in "dev proc sys run root tmp var/tmp var/log var/lib/dpkg/info var/lib/dpkg/updates etc/systemd/system/wardian.service.d".split():
        os.makedirs(f"{root}/{name}", exist_ok=True)
    for name in "awk pager".split():
        link = f"/etc/alternatives/{name}"
        if os.path.exists(link) and not os.path.exists(f"{root}/usr/bin/{name}"):
            os.symlink(os.path.realpath(link), f"{root}/usr/bin/{name}")
    with open("/var/lib/dpkg/status") as f, open(f"{root}/var/lib/dpkg/status", "w") as to:
        for paragraph in f.read().split("\n\n"):
            if paragraph.split("\n")[0].removeprefix("Package: ") in packages:
                to.write(paragraph + "\n\n")
    for name in os.listdir("/var/lib/dpkg/info"):
        if name.endswith(".list") and name.removesuffix(".list").split(":")[0] in packages:
            shutil.copy(f"/var/lib/dpkg/info/{name}", f"{root}/var/lib/dpkg/info/{name}")
    write = lambda name, text: open(f"{root}/{name}", "w").write(text)
    write("var/lib/dpkg/arch", "")
    write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n")
    write("etc/group", "root:x:0:\nnogroup:x:65534:\n")
    write("etc/shadow", "root:*:1::::::\n")
    write("etc/gshadow", "root:*::\n")
    write("etc/nsswitch.conf", "passwd: files\ngroup: files\n")
    write("etc/machine-id", "")
    write("etc/ld.so.conf", "/usr/lib/x86_64-linux-gnu\n/usr/lib\n")
    # The guest's kernel has no modules for a network.
    write("etc/systemd/system/wardian.service.d/test.conf", "[Service]\nEnvironment=WARDIAN_NETWORK=none\n")
    os.symlink("/usr/lib/systemd/system/basic.target", f"{root}/etc/systemd/system/default.target")


class Test:
    def __init__(self, bundle, program, say):
        self.bundle, self.program, self.say = bundle, program, say

    def run(self):
        work = tempfile.mkdtemp(prefix="wardian-package.")
        try:
            os.makedirs(work + "/root")
            system(work + "/root")
            package = work + "/root/root/wardian.deb"
            subprocess.run([TOP + "/packaging/deb/build", os.path.dirname(self.program), package], check=True, stdout=subprocess.DEVNULL)
            lab.busybox(work + "/root/root/busybox.tar")
            subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", work + "/root", work + "/disk", "2G"], check=True)
            programs = ("/usr/bin/unshare", "/usr/bin/nsenter")
            with vm.Guest(self.bundle, [work + "/disk"], {}, programs, "ext4", memory=2048, deadline=LIMIT) as guest:
                self.guest = guest
                self.boot()
                lab.play([install, use, upgrade, remove, purge], self, self.say)
        finally:
            shutil.rmtree(work)

    def boot(self):
        self.guest.sh("""mount -t ext4 /dev/vda /mnt; cd /mnt
            for d in dev sys; do mount --rbind /$d $d; done; mount -t tmpfs -o mode=755 run run
            mkdir /sys/fs/cgroup/systemd
            cat > /run/boot << 'EOF'
echo $$ > /sys/fs/cgroup/systemd/cgroup.procs
exec /usr/bin/unshare --pid --fork --mount --uts --ipc --cgroup sh -c '
  umount -l /mnt/sys/fs/cgroup; mount -t cgroup2 cgroup /mnt/sys/fs/cgroup; mount -t proc proc /mnt/proc
  # As switch_root does it: in a chroot that is not the root of its mount namespace nobody can make a user namespace.
  cd /mnt; mount -o move . /
  exec env -i container=vm PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot . /lib/systemd/systemd' > /run/systemd.log 2>&1
EOF
            setsid sh /run/boot < /dev/null > /dev/null 2>&1 &""")
        end = time.monotonic() + 120
        while True:
            status, said = self.inside("systemctl is-system-running --wait", check=False)
            if said.strip() in ("running", "degraded"):
                return
            assert time.monotonic() < end, f"systemd: {status} {said}\n{self.guest.sh('cat /run/systemd.log; dmesg | tail -20')}"
            time.sleep(0.5)

    def inside(self, script, check=True):
        """Runs a script beside systemd."""
        quoted = script.replace("'", "'\\''")
        find = "for p in /proc/[0-9]*; do [ \"$(cat $p/comm 2>/dev/null)\" = systemd ] && grep -q 'NSpid:.*[[:space:]]1$' $p/status && basename $p; done"
        return self.guest.sh(f"pid=$({find} | head -1); [ -n \"$pid\" ] || exit 9; "
                             f"/usr/bin/nsenter -t $pid -m -u -i -p -C -r -w env PATH=/usr/sbin:/usr/bin:/sbin:/bin sh -c '{quoted}' 2>&1", check)


def serves(t):
    states = t.inside("systemctl is-active wardian.socket wardian.service; true").split()
    assert states == ["active", "active"], t.inside("systemctl status --no-pager --lines 30 wardian.socket wardian.service; journalctl --no-pager -n 60; true")
    socket = t.inside("stat -c '%a %G' /run/wardian/garden.sock").split()
    assert socket == ["660", "wardian"], socket
    info = t.inside("wardian info")
    assert "(there is none)" not in info, info


def install(t):
    said = t.inside("dpkg -i /root/wardian.deb")
    try:
        serves(t)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{said}") from None


def use(t):
    t.inside("wardian image import /root/busybox.tar -t bb")
    assert t.inside("wardian run --rm bb -- echo hello").strip() == "hello"
    t.inside("wardian run -d --name c bb -- sleep 100000")
    t.inside("echo 'max-containers = 7' >> /etc/wardian/wardian.toml")


def upgrade(t):
    t.inside("dpkg -i /root/wardian.deb")
    assert t.inside("systemctl is-active wardian.service").strip() == "active"
    assert t.inside("wardian exec c -- echo alive").strip() == "alive"
    assert "max-containers = 7" in t.inside("cat /etc/wardian/wardian.toml")


def remove(t):
    t.inside("dpkg -r wardian")
    assert t.inside("systemctl is-active wardian.service", check=False)[0] != 0
    left = t.inside("ls /usr/bin/wardian /usr/lib/wardian /run/wardian/garden.sock 2>/dev/null; find /sys/fs/cgroup -name 'wardian-*'; "
                    "grep -ls wardian-keeper /proc/[0-9]*/comm; true")
    assert left.strip() == "", left
    assert t.inside("ls -d /etc/wardian/wardian.toml /var/lib/wardian/layers").strip()
    # What was removed and is installed again serves again, with the settings and the images that were left.
    t.inside("dpkg -i /root/wardian.deb")
    serves(t)
    assert t.inside("wardian run --rm bb -- echo again").strip() == "again"
    t.inside("dpkg -r wardian")


def purge(t):
    t.inside("dpkg -P wardian")
    # The group stays: an administrator may have made it.
    left = t.inside("ls -d /etc/wardian 2>/dev/null; true").strip()
    assert left == "", left


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--kernel", default="6.12")
    a = p.parse_args()
    Test(vm.kernel(a.kernel), vm.program(), print).run()
