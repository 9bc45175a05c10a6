#!/usr/bin/env python3
"""fingerprints: what the recorder recognises, met for real: each known reason to wait is provoked in a guest, and `wardian lab record` must name it.

The disks are slow enough that who waits is seen waiting. 6.1 has the lock of the shrinkers, which later kernels do without; cgroups are v2."""
import argparse, json, sys, tempfile
import vm

MEMORY = 1024
DISK = 1 << 30
SLOW = {"throttling.bps-write": 20_000_000, "throttling.iops-total": 200}
"""A disk on which metadata is read piece by piece for a while, and 20 MB take a second."""

OVERLAY = """mkdir -p l u w o; {fill}; mount -t overlay overlay -o lowerdir=l,upperdir=u,workdir=w o"""
"""Not volatile: the unmount syncs, and so does each copy."""


class Test:
    def __init__(self, bundle, kernel, program, say=print):
        self.bundle, self.kernel, self.program, self.say = bundle, kernel, program, say
        self.met = []

    def run(self):
        with tempfile.TemporaryDirectory(prefix="wardian-fingerprints.") as work:
            plain = "mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0".split()
            kinds = [plain, plain + ["-O", "^has_journal"], vm.MKFS["btrfs"], None, None]
            for n, mkfs in enumerate(kinds):
                vm.make_disk(f"{work}/{n}", DISK)
                if mkfs:
                    vm.subprocess.run(mkfs + [f"{work}/{n}"], check=True)
            disks = [{"file": f"{work}/{n}", "cache": "unsafe", "discard": "unmap"} | SLOW for n in range(len(kinds))]
            disks[4] |= {"throttling.iops-total": 50}
            share = {"/bin/wardian": self.program}
            modules = "ext4 btrfs dm-mod"
            with vm.Guest(self.bundle, disks, share, ["dmsetup", "mkfs.ext4", "fstrim"], modules, MEMORY, cpus=2, deadline=400) as guest:
                self.guest = guest
                guest.sh("mkdir /a /b /c /d /e; mount -t ext4 /dev/vda /a && mount -t ext4 -o discard /dev/vdb /b && mount -t btrfs /dev/vdc /c")
                for part in self.parts():
                    part()
                left = guest.sh("ls /sys/kernel/tracing/instances").split()
                assert not left, f"trace instances are left: {left}"

    def parts(self):
        yield from (self.sync_at_unmount, self.copy_up, self.mass_unlink, self.slow_discard, self.trim, self.direct)
        yield from (self.cgroup_writer, self.inode_switching, self.btrfs, self.mapped)
        if self.kernel == "6.1":
            yield self.shrinker_lock

    def record(self, what, dir_, script, before="true"):
        """The report of the script, recorded in a directory."""
        self.guest.sh(f"cd {dir_} && {{ {before}; }} 2>&1")
        self.guest.sh(f"cat > /tmp/script <<'END'\n{script}\nEND\ncd {dir_} && wardian lab record --json /tmp/report -- sh -ec '. /tmp/script' 2>&1")
        report = json.loads(self.guest.sh("cat /tmp/report"))
        diagnosis = report["diagnosis"]
        cost = report["recording"]["cost"]
        self.say(f"  {what}: {diagnosis['verdict']} (cost {cost['share'] * 100:.2f} %)")
        return report, diagnosis

    def recognised(self, name, report):
        """The fingerprint must be among those that were recognised; the longest wait that shows it is told."""
        diagnosis = report["diagnosis"]
        found = next((f for f in diagnosis["fingerprints"] if f["id"] == name), None)
        assert found, f"{name} was not recognised in {diagnosis['fingerprints']}; waited: {diagnosis['waited'][:3]}"
        self.say(f"    {name}: {found['evidence'][:300]}")
        self.met.append(name)

    def first(self, report, cause):
        first = report["diagnosis"]["causes"][:1]
        assert first and first[0]["cause"] == cause, f"{cause} has written most, and the diagnosis says {report['diagnosis']['causes']}"
        return first[0]

    def sync_at_unmount(self):
        before = OVERLAY.format(fill="true") + "; dd if=/dev/zero of=neighbour bs=1M count=20"
        report, _ = self.record("sync at unmount", "/a", "echo x > o/x; umount o", before)
        self.recognised("sync-at-unmount", report)
        # It is over when the program ends that unmounts, and both are seen.
        wait = max((w for w in report["recording"]["waits"] if w["task"]["comm"] == "umount"), key=lambda w: w["ms"])
        assert wait["begin_ms"] + wait["ms"] <= report["recording"]["length_ms"], wait
        self.guest.sh("rm -rf /a/*")

    def copy_up(self):
        before = OVERLAY.format(fill="for n in 1 2 3 4 5; do dd if=/dev/urandom of=l/$n bs=1M count=6; done; sync -f l")
        report, _ = self.record("copy-up", "/a", "for n in 1 2 3 4 5; do chmod 600 o/$n; done", before)
        self.recognised("fsync-on-copy-up", report)
        self.guest.sh("umount /a/o; rm -rf /a/*")

    def mass_unlink(self):
        """Files that are nowhere in memory: each deletion reads what it has to change."""
        # Small groups of blocks, each with inodes and bitmaps of its own, and a directory in each.
        self.guest.sh("mkfs.ext4 -q -F -g 1024 -O ^flex_bg,^resize_inode -E lazy_itable_init=0,lazy_journal_init=0 /dev/vde 200M && mount -t ext4 /dev/vde /e")
        self.guest.sh("cd /e; for d in $(seq 50); do mkdir $d; for n in $(seq 3); do echo x > $d/$n; done; done; cd /; umount /e; mount -t ext4 /dev/vde /e")
        try:
            report, _ = self.record("mass unlink", "/e", "rm -r [0-9]*")
            self.recognised("mass-unlink", report)
        finally:
            self.guest.sh("umount /e")

    def slow_discard(self):
        """Without a journal ext4 discards while it deletes, and waits for each piece."""
        before = "dd if=/dev/zero of=big bs=1M count=1; for n in $(seq 200); do dd if=/dev/zero of=f$n bs=128k count=1 2>/dev/null; done; sync"
        report, diagnosis = self.record("discards", "/b", "rm f*", before)
        discards = diagnosis["discards"][:1]
        assert discards and discards[0]["cause"] == "deletion" and discards[0]["bytes"] >= 20 << 20, diagnosis["discards"]
        assert discards[0]["asked_by"]["comm"] in ("rm", "sh"), discards
        self.recognised("slow-discard", report)

    def trim(self):
        _, diagnosis = self.record("fstrim", "/a", "fstrim /a")
        discards = diagnosis["discards"][:1]
        assert discards and discards[0]["cause"] == "trim" and discards[0]["bytes"] >= 100 << 20, diagnosis["discards"]

    def direct(self):
        report, _ = self.record("direct I/O", "/a", "dd if=/dev/zero of=direct bs=1M count=10 oflag=direct")
        assert self.first(report, "direct")["asked_by"]["comm"] == "dd"
        self.guest.sh("rm -f /a/direct; sync")

    def cgroup_writer(self):
        """Each cgroup has a flusher's list of its own, and who asked for the sync is known all the same."""
        script = "mkdir /sys/fs/cgroup/writer; sh -c 'echo $$ > /sys/fs/cgroup/writer/cgroup.procs; dd if=/dev/zero of=f bs=1M count=10'; sync -f f"
        report, _ = self.record("a writer in a cgroup of its own", "/a", script)
        sync = self.first(report, "sync")
        assert sync["asked_by"]["syscall"] == "syncfs" and sync["data_of"][0]["task"]["comm"] in ("dd", "sh"), sync
        self.guest.sh("rmdir /sys/fs/cgroup/writer; rm /a/f")

    def inode_switching(self):
        """Clean inodes of a removed cgroup change hands while their file system is unmounted. That is a matter of milliseconds, so that it is
        tried some times, and told if it was not met."""
        script = """for n in $(seq 12); do
            mkdir /sys/fs/cgroup/gone; mount -t ext4 -o noatime /dev/vdd /d
            sh -c 'echo $$ > /sys/fs/cgroup/gone/cgroup.procs; for i in $(seq 400); do echo x > /d/$i; done; sync -f /d'
            rmdir /sys/fs/cgroup/gone; usleep $((n * 8000)); umount /d; done"""
        self.guest.sh("mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0 /dev/vdd 200M")
        report, diagnosis = self.record("inode switching", "/a", script)
        if any(f["id"] == "cgroup-writeback-wait" for f in diagnosis["fingerprints"]):
            self.recognised("cgroup-writeback-wait", report)
        else:
            self.say("    cgroup-writeback-wait: not met: no unmount was seen waiting for it")

    def btrfs(self):
        """A file system without a block device's number, whose data other workers submit than the flusher."""
        report, _ = self.record("btrfs", "/c", "dd if=/dev/zero of=f bs=1M count=16; sync -f f")
        assert report["recording"]["fs_type"] == "btrfs" and report["recording"]["devices"] == ["254:32"], report["recording"]["devices"]
        sync = self.first(report, "sync")
        assert sync["bytes"] >= 15 << 20, sync

    def mapped(self):
        """The writes to a mapped device are counted once, and those to the disk below are not added."""
        self.guest.sh("umount /b; echo 0 1000000 linear /dev/vdb 0 | dmsetup create mapped; dmsetup mknodes; mkfs.ext4 -q -F /dev/mapper/mapped; mount -t ext4 /dev/mapper/mapped /b")
        report, _ = self.record("a mapped device", "/b", "dd if=/dev/zero of=f bs=1M count=16; sync -f f")
        sync = self.first(report, "sync")
        assert 15 << 20 <= sync["bytes"] <= 20 << 20, sync
        said = self.guest.sh("cd /b; wardian lab teardown --fs /b --mounts 3 --mb 4 --json /tmp/report --yes 2>&1")
        report = json.loads(self.guest.sh("cat /tmp/report"))
        assert any(f["id"] == "sync-at-unmount" for f in report["diagnosis"]["fingerprints"]), said
        self.guest.sh("umount /b; dmsetup remove mapped")

    def shrinker_lock(self):
        """Until 6.6 one lock was held while memory was reclaimed, and taken by each mount and unmount."""
        before = "mkdir -p /tmp/many m; cd /tmp/many; for d in $(seq 40); do mkdir $d; done; for n in $(seq 20000); do :; done; for d in $(seq 40); do for n in $(seq 300); do : > $d/$n; done; done"
        script = """(for n in $(seq 30); do echo 2 > /proc/sys/vm/drop_caches; find / -xdev > /dev/null; done) &
            for n in $(seq 150); do mount -t tmpfs x m; umount m; done; wait"""
        report, diagnosis = self.record("shrinkers", "/a", script, before)
        if any(f["id"] == "shrinker-lock" for f in diagnosis["fingerprints"]):
            self.recognised("shrinker-lock", report)
        else:
            self.say("    shrinker-lock: not met: no mount was seen waiting for it")
        self.guest.sh("rm -rf /tmp/many")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kernel", default="6.12")
    a = p.parse_args()
    try:
        Test(vm.kernel(a.kernel), a.kernel, vm.program()).run()
    except (AssertionError, vm.MachineError) as error:
        print(f"failed: {error}")
        sys.exit(1)


if __name__ == "__main__":
    main()
