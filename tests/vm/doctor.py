#!/usr/bin/env python3
"""`wardian doctor` where there are quotas, thin pools and disks that lose writes."""
import argparse, json, shutil, tempfile
import vm, writeback

LIMIT = 180
"""Seconds that the guest may live; it takes 20 to 30 where the host is idle."""


def doctor(lab, *options):
    """The report, and the exit code."""
    before = lab.sh("ls -A /mnt; cat /proc/self/mountinfo; find /sys/fs/cgroup -type d")
    code, output = lab.sh(f"wardian doctor --json --root /mnt/store {' '.join(options)}", check=False)
    assert lab.sh("ls -A /mnt; cat /proc/self/mountinfo; find /sys/fs/cgroup -type d") == before, "the doctor has left something"
    report = json.loads(output)
    report["ids"] = {hazard["id"] for hazard in report["hazards"]}
    return report, code


def quota(lab):
    report, code = doctor(lab)
    # What the host would allow is told, and that nothing of it is in use.
    assert report["limit_driver"] == "project-quota", report["limit_drivers"]
    allowed = [driver["name"] for driver in report["limit_drivers"] if driver["state"] == "yes"]
    assert "project-quota" in allowed, report["limit_drivers"]
    assert code == 0 and report["features"]["overlay_idmapped_layers"]["state"] == "yes", report
    assert not report["ids"] & {"unseen-writeback-error", "discard", "thin-pool-overcommitted", "no-journal"}, report["hazards"]


def lost_write(lab):
    """The doctor sees it, as often as it looks, and leaves it to be reported to whoever asks."""
    lab.sh("yes | dd of=/mnt/lost bs=64k count=8 iflag=fullblock 2>/dev/null")
    lab.fail()
    lab.sh("xfs_io -c 'sync_range -w 0 0' /mnt/lost; sleep 0.5")
    lab.heal()
    for _ in range(2):
        report, code = doctor(lab)
        assert "unseen-writeback-error" in report["ids"] and code == 0, report["hazards"]
        assert report["features"]["overlay_volatile"]["state"] == "unknown", report["features"]
        assert doctor(lab, "--strict", "--no-measure")[1] == 5
    assert "error" in lab.sh("xfs_io -r -c syncfs /mnt 2>&1; true"), "the doctor has swallowed the error"
    assert "unseen-writeback-error" not in doctor(lab)[0]["ids"]


def thin_pool(lab):
    """A volume of 1 GB in a pool of 256 MB."""
    lab.thin_device_on("/dev/vdb")
    lab.mount()
    report, _ = doctor(lab, "--no-measure")
    assert [pool["name"] for pool in report["filesystem"]["thin_pools"]] == ["pool"], report["filesystem"]
    assert "thin-pool-overcommitted" in report["ids"], report["hazards"]
    # In steps: meanwhile ext4 initializes its tables, and a pool that has no space left fails writes.
    for step in range(20):
        used, total = map(int, lab.sh("dmsetup status pool").split()[5].split("/"))
        missing = total * 91 // 100 - used
        if missing <= 0:
            break
        lab.sh(f"dd if=/dev/zero of=/mnt/filler{step} bs=64k count={missing // 2 + 1} conv=fsync 2>&1")
    assert "thin-pool-full" in doctor(lab, "--no-measure")[0]["ids"]


class Test:
    def __init__(self, bundle, fs, program):
        self.bundle, self.fs, self.program = bundle, fs, program

    def run(self):
        work = tempfile.mkdtemp(prefix="wardian-doctor.")
        try:
            disks = [f"{work}/{name}" for name in ("disk", "pool")]
            for disk in disks:
                vm.make_disk(disk, 2 << 30)
            share = {"/bin/wardian": self.program}
            with vm.Guest(self.bundle, disks, share, writeback.PROGRAMS[self.fs], writeback.MODULES + self.fs, deadline=LIMIT) as guest:
                lab = writeback.Lab(guest, self.fs, work)
                lab.device_on("/dev/vda", writeback.DISK // 512)
                lab.mount()
                quota(lab)
                lost_write(lab)
                lab.sh("umount /mnt; dmsetup remove --noudevsync store")
                thin_pool(lab)
        finally:
            shutil.rmtree(work)


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--kernel", default="6.12")
    p.add_argument("--fs", default="xfs", choices=("xfs", "ext4"))
    a = p.parse_args()
    Test(vm.kernel(a.kernel), a.fs, vm.program()).run()
