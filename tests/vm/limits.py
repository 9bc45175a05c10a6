#!/usr/bin/env python3
"""Disk limits by project quota, as this host's kernel may lack it. By the commands that a user has."""
import argparse, json, time
import lab, vm

LIMIT = 420
MB = 1 << 20
IMAGE = "/share/busybox.tar"
SLACK = MB // 2
"""Directories, and what a file system needs to describe files, count as well."""


def run(lab, name, flags):
    lab.wardian(f"run --name {name} -d {flags} {IMAGE} -- sleep 100000")


def write(lab, name, file, megabytes, status=0):
    # busybox tells the error of a write in its cat alone.
    return lab.wardian(f"exec {name} -- sh -c 'head -c {megabytes * MB} /dev/zero | cat > {file}'", status)


def used(lab, name):
    return json.loads(lab.wardian(f"inspect {name}"))["metrics"]["DiskStat"]


def near(is_, wanted):
    assert abs(is_ - wanted) <= SLACK, f"{is_ / MB:.2f} MB, not {wanted / MB:.2f}"


def bytes_(lab):
    """Both kinds of root; the bound is exact, and counted at once."""
    for name, flags in ("a", ""), ("p", "--privileged"):
        run(lab, name, f"--disk 20M --disk-scope exclusive {flags}")
        near(used(lab, name)["ExclusiveBytesUsed"], 0)
        write(lab, name, "/one", 3)
        near(used(lab, name)["ExclusiveBytesUsed"], 3 * MB)
        write(lab, name, "/two", 10)
        near(used(lab, name)["ExclusiveBytesUsed"], 13 * MB)
        said = write(lab, name, "/three", 10, 1)
        assert "No space left" in said or "quota exceeded" in said, said
        near(used(lab, name)["ExclusiveBytesUsed"], 20 * MB)
        lab.wardian(f"exec {name} -- rm /three")
        near(used(lab, name)["ExclusiveBytesUsed"], 13 * MB)


def neighbour(lab):
    """One that has no limit, and one whose limit is its own."""
    run(lab, "n", "")
    write(lab, "n", "/many", 40)
    near(used(lab, "n")["ExclusiveBytesUsed"], 40 * MB)
    write(lab, "p", "/a", 6)
    lab.wardian("rm n")


def live(lab):
    lab.wardian("limit a --disk 40M")
    write(lab, "a", "/three", 20)
    write(lab, "a", "/four", 20, 1)
    lab.wardian("limit a --disk 10M")
    write(lab, "a", "/five", 1, 1)
    lab.wardian("exec a -- rm -f /one /two /three /four /five")
    write(lab, "a", "/six", 8)
    assert json.loads(lab.wardian("inspect a"))["limits"]["disk"] == {"byte_hard": 10 * MB, "scope": 1}


def inodes(lab):
    run(lab, "i", "--inodes 50")
    # The image has no /proc, /sys and the like: these are made, and count.
    made = used(lab, "i")["ExclusiveInodesUsed"]
    assert made < 15, made
    lab.wardian(f"exec i -- sh -c 'for n in $(seq {50 - made}); do echo > /$n || exit 1; done'")
    assert used(lab, "i")["ExclusiveInodesUsed"] == 50, used(lab, "i")
    lab.wardian("exec i -- sh -c 'echo > /one'", 1)
    lab.wardian("rm i")


def scope(lab):
    """The image counts, unless it is told not to; one that is larger than the limit is refused and leaves nothing."""
    image = used(lab, "a")["TotalBytesUsed"] - used(lab, "a")["ExclusiveBytesUsed"]
    assert image > MB, image
    said = lab.wardian(f"run --rm --disk {image} {IMAGE} -- true", 125)
    assert "smaller than" in said, said
    run(lab, "t", f"--disk {image + 5 * MB}")
    write(lab, "t", "/a", 4)
    write(lab, "t", "/b", 2, 1)
    lab.wardian("rm t")


def restart(lab):
    """The next server knows what its predecessor's containers may write, and what they have written."""
    lab.sh("kill -9 $(pidof wardian)")
    lab.serve()
    near(used(lab, "a")["ExclusiveBytesUsed"], 8 * MB)
    write(lab, "a", "/more", 8, 1)
    lab.wardian("limit a --disk none")
    write(lab, "a", "/more", 30)


def burst(lab):
    """Projects are used again, and only those that count nothing: a new container has nothing of an earlier one."""
    for _ in range(2):
        for n in range(4):
            run(lab, f"b{n}", "--disk 5M --disk-scope exclusive")
        for n in range(4):
            near(used(lab, f"b{n}")["ExclusiveBytesUsed"], 0)
            write(lab, f"b{n}", "/a", 4)
        lab.wardian("rm " + " ".join(f"b{n}" for n in range(4)))


def nothing_left(lab):
    lab.wardian("rm a p")
    end = time.monotonic() + 60
    while int(json.loads(lab.wardian("store usage --json --root /mnt/store"))["trash_bytes"]) > MB:
        assert time.monotonic() < end, lab.wardian("store usage --root /mnt/store")
        time.sleep(0.5)
    lab.sh("kill $(pidof wardian); while pidof wardian; do sleep 0.1; done; rm -rf /mnt/store; sync")
    # The projects' limits are gone with them. Nothing but the root directory is left to count.
    assert "nothing is left" in lab.wardian("doctor --leaks")


PARTS = [bytes_, neighbour, live, inodes, scope, restart, burst, nothing_left]


class Test:
    def __init__(self, bundle, fs, program, say=print):
        self.bundle, self.fs, self.program, self.say = bundle, fs, program, say

    def run(self):
        options = vm.MOUNT[self.fs]
        with lab.guest("limits", self.bundle, self.program, LIMIT, self.fs, options, modules="veth") as guest:
            tried = lab.Lab(guest)
            tried.serve()
            lab.play(PARTS, tried, self.say)


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--kernel", default="6.12")
    p.add_argument("--fs", default="xfs", choices=["xfs", "ext4"])
    a = p.parse_args()
    Test(vm.kernel(a.kernel), a.fs, vm.program()).run()
