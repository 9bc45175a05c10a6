#!/usr/bin/env python3
"""Containers where cgroups are v2 alone and root may do everything: limits, metrics, device rules, out of memory, a killed server, and whom the kernel
kills for want of memory. By the commands that a user has."""
import argparse, json, time
import lab, vm

LIMIT = 420


def limits(lab):
    lab.wardian("run --name c -d --memory 64M --pids 30 --cpu-shares 512 /share/busybox.tar -- sleep 100000")
    group = "/sys/fs/cgroup/"
    assert lab.inside(f"cat {group}memory.max {group}pids.max").split() == ["67108864", "30"]
    assert lab.inside("cat /proc/self/cgroup") == "0::/"
    lab.inside("sh -c 'for n in $(seq 20); do sleep 0.1 & done; wait'")
    lab.inside("head -c 10000000 /dev/zero > /dev/null")
    used = json.loads(lab.wardian("stats --no-stream --json"))
    used = used[0] if isinstance(used, list) else used
    text = json.dumps(used)
    assert used["handle"] == "c" and used["memory_bytes"] > 10_000, text
    told = json.loads(lab.wardian("inspect c"))
    assert "67108864" in json.dumps(told), told


def scores(lab):
    score = "cat /proc/self/oom_score_adj"
    assert lab.inside(score) == "0"
    assert lab.wardian(f"run --rm /share/busybox.tar -- {score}").strip() == "0"
    spared = lab.sh("for p in $(pidof wardian wardian-keeper); do cat /proc/$p/oom_score_adj; done").split()
    assert spared and set(spared) == {"-900"}, spared


def out_of_memory(lab):
    lab.inside("sh -c 'tail -c 200000000 /dev/zero'", 137)
    assert "Out of memory" in lab.wardian("inspect c")


def terminal(lab):
    assert lab.inside("sh -c 'echo no'") == "no"
    assert lab.wardian("exec -t c -- stty size").split() == ["24", "80"]


FORBIDDEN = ["b 7 0", "b 254 0", "b 253 0", "c 1 1", "c 1 11", "c 10 237"]
ATTACK = "for n in " + " ".join(f'"{node}"' for node in FORBIDDEN) + """; do rm -f /dev/x; mknod /dev/x $n || exit 3
(: </dev/x) 2>&1 && echo opened $n; (: >>/dev/x) 2>&1 && echo opened $n; done; rm /dev/x"""
ALLOWED = """mkdir -p /dev/net; [ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200
for n in null zero full random urandom tty ptmx fuse net/tun; do (: <>/dev/$n) 2>&1; done; head -c3 /dev/zero >/dev/null && echo good"""


def devices(lab):
    """Rules are a program on the cgroup here: each server loads two, and they are not to pile up."""
    lab.wardian("run --name p --privileged -d /share/busybox.tar -- sleep 100000")

    def check(command):
        said = lab.wardian(f"{command} sh -c '{ATTACK}'").splitlines()
        assert len(said) == 2 * len(FORBIDDEN) and all(l.endswith("/dev/x: Operation not permitted") for l in said), said
        said = lab.wardian(f"{command} sh -c '{ALLOWED}'")
        assert "not permitted" not in said and said.endswith("good\n"), said
    for _ in range(2):
        check("exec p --")
        check("run --rm --privileged /share/busybox.tar --")
        # Everybody may read what is no device of the host's.
        assert lab.inside("sh -c 'for n in null zero full random urandom tty ptmx; do (: <>/dev/$n) 2>&1; done; echo good'").endswith("good")
        lab.sh("kill -9 $(pidof wardian)")
        lab.serve()
    check("exec p --")
    loaded = int(lab.sh("grep -c wardian_devices /proc/kallsyms; true"))
    assert 2 <= loaded <= 4, f"{loaded} programs"
    assert "device-rules" not in lab.sh("cat /tmp/log")
    lab.wardian("rm p")


def descriptors(lab):
    """A process is cloned into its v2 cgroup by a descriptor of that directory of the host: it must not have it when it looks at paths."""
    up = "../" * 8
    lab.sh("mkdir /tmp/host; echo secret > /tmp/host/secret; chmod -R a+rX /tmp/host")
    ways = [f"-w /proc/self/fd/$n c -- cat {up}tmp/host/secret", f"-u u$n c -- cat {up}tmp/host/secret",
            f"c -- /proc/self/fd/$n/{up}bin/busybox echo secret"]
    said = lab.sh("for n in $(seq 0 63); do " + "; ".join(f"wardian exec {way}" for way in ways) + "; done 2>/dev/null; echo good")
    assert said.strip() == "good", said


def undumpable(lab):
    """fs.suid_dumpable=1 makes whoever changes its credentials readable and traceable: the files of its /proc are its user's then."""
    lab.sh("echo 1 > /proc/sys/fs/suid_dumpable; (head -c 512 /share/busybox.tar; sleep 30) | wardian cp - c:/in > /tmp/cp 2>&1 &")
    look = "for p in $(grep -l '^Name:.wardian-keeper' /proc/[0-9]*/status); do grep -q '^Uid:.4294967294' $p && stat -c %u ${p%status}environ; done; true"
    end = time.monotonic() + 20
    while not (owners := lab.sh(look).split()):
        assert time.monotonic() < end, lab.sh("cat /tmp/cp")
        time.sleep(0.2)
    assert set(owners) == {"0"}, owners
    lab.sh("echo 0 > /proc/sys/fs/suid_dumpable; kill $(pidof sleep); true")


def survival(lab):
    lab.sh("kill -9 $(pidof wardian)")
    lab.serve()
    assert lab.inside("cat /proc/1/comm") == "garden-init"
    lab.wardian("stop --kill c")
    said = lab.wardian("ps -a")
    assert "stopped" in said or "exited" in said, said
    lab.wardian("rm c")
    lab.wardian("run --name c -d /share/busybox.tar -- sleep 100000")
    lab.sh("kill -9 $(pidof wardian)")
    time.sleep(0.5)
    lab.wardian("reset --root /mnt/store --yes")
    assert lab.sh("pidof wardian-keeper garden-init; find /sys/fs/cgroup -name 'wardian-*'; true").strip() == ""
    assert "nothing is left" in lab.wardian("doctor --leaks")


def dead(lab):
    return int(lab.sh("cat /sys/fs/cgroup/wardian-*/cgroup.stat | sed -n 's/^nr_dying_descendants //p'"))


def cache(lab):
    """The blocks of directories that containers have made stay in the page cache, and would keep each container's cgroup in the kernel."""
    lab.sh("for n in $(seq 20); do wardian run --rm /share/busybox.tar -- sh -c "
           "'for n in 1 2 3 4; do mkdir -p /new$n/deep; echo x > /new$n/deep/file; done' || exit 1; done")
    end = time.monotonic() + 120
    # What is kept for its cache is closed to others.
    while lab.sh("find /sys/fs/cgroup/wardian-* -mindepth 1 -type d ! -perm -001; true").strip():
        assert time.monotonic() < end, "cgroups are kept"
        time.sleep(1)
    time.sleep(3)
    # All of them, if they were not kept. Some of other things stay for a while.
    assert dead(lab) <= 8, f"{dead(lab)} dead cgroups of 20"


PARTS = [limits, scores, terminal, descriptors, undumpable, out_of_memory, devices, cache, survival]


class Test:
    def __init__(self, bundle, program, say=print):
        self.bundle, self.program, self.say = bundle, program, say

    def run(self):
        with lab.guest("containers", self.bundle, self.program, LIMIT, modules="veth") as guest:
            tried = lab.Lab(guest)
            tried.serve()
            lab.play(PARTS, tried, self.say)


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--kernel", default="6.12")
    a = p.parse_args()
    Test(vm.kernel(a.kernel), vm.program()).run()
