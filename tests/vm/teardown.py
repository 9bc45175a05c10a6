#!/usr/bin/env python3
"""teardown: the story's seconds, on a disk that writes 50 MB/s: how long unmounts wait there, and what has written.

Overlay mounts with an app's worth of data in each are unmounted at once (`wardian lab teardown`). Their unmount waits until everything is
on the disk, that of volatile ones for nothing. Then the causes of writing that need a kernel whose settings nobody else minds."""
import argparse, json, sys, tempfile
import vm

MOUNTS, MB, RATE = 10, 20, 50_000_000
MEMORY = 3072
"""MiB. With less, the kernel would begin to write before anybody unmounts (vm.dirty_background_ratio)."""

CAUSES = [
    ("--unmount serial", "sync"),
    ("--again", "flush_at_close"),
    ("--no-overlay --age 9 --sysctl vm.dirty_expire_centisecs=100 --sysctl vm.dirty_writeback_centisecs=50", "age"),
    ("--no-overlay --age 2 --sysctl vm.dirty_background_bytes=4194304", "memory_pressure"),
]
"""Switches, and what must have written most."""


class Test:
    def __init__(self, bundle, fs, program, say=print):
        self.bundle, self.fs, self.program, self.say = bundle, fs, program, say

    def run(self):
        with tempfile.TemporaryDirectory(prefix="wardian-teardown.") as work:
            vm.make_disk(work + "/disk", 4 << 30, self.fs)
            disk = {"file": work + "/disk", "cache": "unsafe", "throttling.bps-write": RATE}
            with vm.Guest(self.bundle, [disk], {"/bin/wardian": self.program}, modules=self.fs, memory=MEMORY) as guest:
                guest.sh(f"mount -t {self.fs} -o {vm.MOUNT[self.fs]} /dev/vda /mnt")
                durable, volatile = self.teardown(guest, "--durable"), self.teardown(guest, "--volatile")
                for how, cause in CAUSES:
                    self.caused(guest, how, cause)
                left = guest.sh("ls -A /mnt | grep -v lost+found; ls -A /run/wardian-lab | grep -v lock; grep -c wardian-lab /proc/mounts; true").split()
        assert left == ["0"], f"left behind: {left}"
        # What waits for the disk waits as long as that takes, and the disk's first second may be a burst.
        assert durable >= 3, f"unmounted after {durable:.2f} s: {MOUNTS * MB} MiB cannot be on the disk then"
        assert volatile <= 0.3, f"volatile overlays took {volatile:.2f} s to unmount"

    def report(self, guest, switches):
        guest.sh(f"wardian lab teardown --fs /mnt --json /tmp/report {switches} 2>&1")
        return json.loads(guest.sh("cat /tmp/report"))

    def teardown(self, guest, how):
        """Seconds that the slowest unmount took."""
        report = self.report(guest, f"--mounts {MOUNTS} --mb {MB} {how}")
        phase = next(phase for phase in report["phases"] if phase["name"] == "unmount")
        self.say(f"  {how}: the slowest unmount took {phase['max_ms']:.1f} ms; {report['diagnosis']['verdict']}")
        return phase["max_ms"] / 1000

    def caused(self, guest, how, cause):
        diagnosis = self.report(guest, f"--mounts 4 --mb 10 {how}")["diagnosis"]
        self.say(f"  {how}: {diagnosis['verdict']}")
        first = diagnosis["causes"][:1]
        assert first and first[0]["cause"] == cause, f"{how}: {cause} has written, and the diagnosis says {diagnosis['causes']}"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kernel", default="6.12")
    p.add_argument("--fs", choices=["xfs", "ext4"], default="ext4")
    a = p.parse_args()
    try:
        Test(vm.kernel(a.kernel), a.fs, vm.program()).run()
    except (AssertionError, vm.MachineError) as error:
        print(f"failed: {error}")
        sys.exit(1)


if __name__ == "__main__":
    main()
