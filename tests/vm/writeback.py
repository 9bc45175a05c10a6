#!/usr/bin/env python3
"""The disk fails while the store works, and heals: what was lost is not trusted, who was hit is told, the rest goes on.

The store is on a device-mapper device. What kernels do when a write fails is in README.md ("Lost writes"); kernel() checks it."""
import argparse, json, os, shlex, shutil, sys, tempfile, time
import images, vm

STORE = "--root /mnt/store --run /run/wardian"
DISK, POOL = 768 << 20, 256 << 20
LIMIT = 240
"""Seconds that the guest may live."""
OPTIONS = {"xfs": "pquota", "ext4": "prjquota,commit=300,errors=continue"}
"""ext4's journal is committed when somebody asks for it, not every 5 s: a commit while writes fail is the end of the file system."""
QUIET = "echo 0 > /proc/sys/vm/dirty_writeback_centisecs; echo 720000 > /proc/sys/fs/xfs/xfssyncd_centisecs 2>/dev/null; true"
"""Nothing is written before somebody asks for it."""


class Lab:
    """A guest with the store's file system on the device `store`, and what can be done to both."""

    def __init__(self, guest, fs, work):
        self.guest, self.sh, self.fs, self.work, self.device = guest, guest.sh, fs, work, "/dev/vda"
        self.sectors = DISK // 512
        self.sh(QUIET)

    # The device: "store" on "disk" on the machine's own

    def device_on(self, device, sectors):
        self.device, self.sectors = device, sectors
        for name, below in ("disk", device), ("store", "/dev/mapper/disk"):
            self.sh(f"dmsetup create --noudevsync {name} --table '0 {sectors} linear {below} 0' && dmsetup mknodes {name}")

    def mount(self):
        self.sh(f"mount -t {self.fs} -o {OPTIONS[self.fs]} /dev/mapper/store /mnt && mkdir -p /mnt/store")

    def hold(self):
        """Writes wait from now on; reads do not."""
        self.table("store", "delay /dev/mapper/disk 0 0 /dev/mapper/disk 0 3600000")

    def release(self):
        """Those that wait go on."""
        self.table("store", "linear /dev/mapper/disk 0")

    def fail(self):
        """Writes fail from now on."""
        self.table("disk", f"flakey {self.device} 0 0 3600 1 error_writes")

    def heal(self):
        self.table("disk", f"linear {self.device} 0")

    def table(self, name, target):
        # Without a flush: that would be a commit, at the worst moment.
        self.sh(f"dmsetup suspend --noudevsync --nolockfs --noflush {name}; dmsetup load {name} --table '0 {self.sectors} {target}' && dmsetup resume --noudevsync {name}")

    # The store

    def serve(self):
        """Starts a server; its log goes to /tmp/log."""
        self.sh(f"wardian serve {STORE} --listen unix:/run/garden.sock >> /tmp/log 2>&1 & echo $! > /tmp/server")
        self.until("the server answers", lambda: self.api("GET", "ping", check=False)[0] == 200)

    def signal(self, name):
        self.sh(f"kill -{name} $(cat /tmp/server)")

    def api(self, method, path, body=None, check=True):
        """A request to the Garden API: its reply, or with check=False (status, reply)."""
        data = f"-d {shlex.quote(json.dumps(body))}" if body is not None else ""
        output = self.sh(f"curl -s -m 60 -w '\\n%{{http_code}}' -X {method} {data} --unix-socket /run/garden.sock http://guest/{path}; true")
        reply, _, status = output.rpartition("\n")
        reply = json.loads(reply) if reply.strip().startswith("{") else reply
        if check:
            assert status == "200", f"{method} {path}: {status} {reply}"
            return reply
        return int(status), reply

    def create(self, handle, image, check=True):
        return self.api("POST", "containers", {"handle": handle, "rootfs": f"oci:///share/{image.name}:latest"}, check)

    def ask_for(self, handle, image):
        """Asks for a container and does not wait for it."""
        body = json.dumps({"handle": handle, "rootfs": f"oci:///share/{image.name}:latest"})
        self.sh(f"curl -s -X POST -d {shlex.quote(body)} --unix-socket /run/garden.sock http://guest/containers > /dev/null 2>&1 &")

    def exists(self, handle):
        return self.api("GET", f"containers/{handle}/info", check=False)[0] == 200

    def events(self, handle):
        return " ".join(self.api("GET", f"containers/{handle}/info").get("Events") or [])

    def log(self):
        """What the servers have logged, an object a line."""
        return [json.loads(line) for line in self.sh("cat /tmp/log").splitlines() if line.startswith("{")]

    def records(self):
        """layer.json of each layer in its place, by chain."""
        output = self.sh("cd /mnt/store/layers && for chain in *; do [ ! -e $chain/layer.json ] || { cat $chain/layer.json; echo; }; done")
        return {record["chain_id"]: record for record in map(json.loads, filter(None, output.splitlines()))}

    def durable(self, image):
        """Waits until the image is durable."""
        def all_():
            records = self.records()
            return all(records.get(chain, {}).get("durable") for chain in image.chains)
        self.until(f"{image.name} is durable", all_)
        time.sleep(1)  # the record's rename is synced after one can see it

    def until(self, what, true, seconds=30):
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, f"not within {seconds} s: {what}\n{self.sh('tail -5 /tmp/log; dmesg | tail -5')}"
            time.sleep(0.2)

    def check_trusted(self, all_images, what):
        """Each layer marked durable is what its image says, on the disk: the page cache still has what the disk has lost."""
        self.sh("sync; echo 3 > /proc/sys/vm/drop_caches")
        should = {chain: layer for image in all_images for chain, layer in zip(image.chains, image.layers)}
        found, _ = images.trees(self.guest.fetch("/mnt/store/layers", 1))
        for chain, record in self.records().items():
            if record["durable"]:
                wrong = images.difference(found[chain], should[chain].tree)
                assert not wrong, f"{what}: the layer {chain} is marked durable, and on the disk {wrong}"

    def container(self, handle):
        """Where the container's root file system can be reached in the guest."""
        record = self.sh(f"grep -lF '\"handle\": \"{handle}\"' /run/wardian/containers/*/state.json").strip()
        id_ = record.split("/")[-2]
        pid = self.sh(f"cat $(find /sys/fs/cgroup -path '*wardian-*/{id_}/cgroup.procs') | head -1").strip()
        assert pid, f"{handle} has no process"
        return f"/proc/{pid}/root"

    def fsync(self, root):
        """Whether a file written in this file system can be synced."""
        return self.sh(f"echo x > {root}/synced && sync {root}/synced", check=False)[0] == 0

    def written_back(self):
        """Waits until the server's thread that makes layers durable waits for the device."""
        task = "for task in /proc/$(cat /tmp/server)/task/*; do [ \"$(cat $task/comm)\" != durability ] || grep State $task/status; done 2>/dev/null; true"
        self.until("a layer is written back", lambda: "D (disk" in self.sh(task))

    def lose_writes(self):
        """What the server is writing back is lost, and the device is well again before it hears of that."""
        self.written_back()
        self.signal("STOP")  # ends its wait for the disk first
        self.lose_held()

    def lose_held(self):
        self.fail()
        self.release()
        time.sleep(0.5)
        self.heal()


def kernel(lab):
    """What the rest builds on. README.md, "Lost writes", has it in words."""
    sh = lab.sh
    status = lambda script: sh(script, check=False)[0]
    overlay = lambda name, options: status(f"cd /mnt/k && mkdir -p {name} l u{name} w{name} && mount -t overlay -o {options}lowerdir=l,upperdir=u{name},workdir=w{name} o {name}")
    synced = lambda path: status(f"sync {path}") == 0
    syncfs = lambda: "error" not in sh("xfs_io -r -c syncfs /mnt 2>&1; true")
    # Held open from before the error on; its commands come by a pipe.
    sh("mkdir /mnt/k; sync -f /mnt; mkfifo /tmp/held; sleep 3600 > /tmp/held & xfs_io -r /mnt < /tmp/held > /tmp/told 2>&1 &")
    held = lambda: "error" not in sh(": > /tmp/told; echo syncfs > /tmp/held; sleep 1; cat /tmp/told")
    assert overlay("before", "volatile,") == 0 and status("echo x > /mnt/k/before/f && sync /mnt/k/before/f") == 0
    assert held(), "syncfs fails before anything has"
    sh("yes | dd of=/mnt/k/lost bs=64k count=8 iflag=fullblock 2>/dev/null")
    lab.fail()
    sh("xfs_io -c 'sync_range -w 0 0' /mnt/k/lost; sleep 0.5")
    lab.heal()
    assert overlay("unseen", "volatile,") != 0, "a volatile overlay can be mounted though a write was lost that nobody has heard of"
    assert overlay("plain", "") == 0, "an overlay that is not volatile cannot be mounted"
    assert not synced("/mnt/k/before/f") and overlay("again", "volatile,") != 0, "an fsync in a volatile overlay cleared the error"
    assert not syncfs(), "syncfs does not report the lost write"
    assert syncfs(), "syncfs reports it twice"
    assert overlay("after", "volatile,") == 0 and status("echo x > /mnt/k/after/f && sync /mnt/k/after/f") == 0, "not well after the report"
    assert not synced("/mnt/k/before/f"), "a volatile overlay mounted before the error got well"
    assert not held() and held(), "a descriptor from before the error does not report it once, though another has"
    good = "yes | dd bs=64k count=8 iflag=fullblock 2>/dev/null | cmp - /mnt/k/lost"
    assert status(good) == 0, "the page cache has lost it"
    sh("echo 3 > /proc/sys/vm/drop_caches")
    assert status(good) != 0, "it is on the disk"
    sh("cd /mnt/k && for m in before plain after; do umount $m; done; killall sleep xfs_io; cd /; rm -r /mnt/k")


def hiccup(lab, made):
    """Writes fail for a moment, while a layer is being made durable."""
    base, hit, later = made[:3]
    lab.create("old", base)
    lab.durable(base)
    lab.hold()
    lab.ask_for("hit", hit)
    lab.lose_writes()
    lab.signal("CONT")
    lab.until("hit is created", lambda: lab.exists("hit"))
    own = set(hit.chains) - set(base.chains)
    lab.until("a layer is suspect", lambda: any(line["fields"]["message"] == "layer.suspect" for line in lab.log()))
    said = [line["fields"] for line in lab.log() if line["fields"]["message"] == "layer.suspect"]
    assert {fields["layer"] for fields in said} <= own, f"suspect are {said}, written were {own}"
    assert all("neighbours" in fields for fields in said), said
    for handle in "old", "hit":
        lab.until(f"{handle} says that it was hit", lambda: "destroy and create it again" in lab.events(handle))
        assert not lab.fsync(lab.container(handle)), f"{handle} was hit, and fsync in it works"
    # Creates go on, of the image that was hit as well, and are volatile and well, without a new server.
    for handle, image in ("new", base), ("again", hit):
        lab.create(handle, image)
        assert not lab.events(handle), f"{handle} came after the error, and says: {lab.events(handle)}"
        assert lab.fsync(lab.container(handle)), f"fsync fails in {handle}, which came after the error"
        assert '"honest":false' in lab.sh(f"grep -h '' /run/wardian/rootfs/*.json | grep -F '{image.name}' | tail -1"), f"{handle} is not volatile"
    lab.durable(hit)
    lab.check_trusted(made, "after a moment of failing writes")
    for handle in "old", "hit", "new", "again":
        lab.api("DELETE", f"containers/{handle}")


def killed(lab, made):
    """The same, and the server is killed before it hears of it; somebody else is told, and memory gets short."""
    base, image = made[0], made[3]
    lab.create("old", base)
    lab.durable(base)
    lab.hold()
    lab.ask_for("orphan", image)
    lab.written_back()
    lab.signal("KILL")
    lab.lose_held()
    lab.sh("sync; sync -f /mnt; sync -f /mnt; echo 3 > /proc/sys/vm/drop_caches")
    lab.serve()
    lab.create("heir", image)
    lab.durable(image)
    lab.check_trusted(made, "after a server was killed while writes failed")
    for handle in "old", "heir":
        lab.api("DELETE", f"containers/{handle}")


class Test:
    def __init__(self, bundle, fs, seed, program, say=print):
        self.bundle, self.fs, self.seed, self.program, self.say = bundle, fs, seed, program, say

    def run(self, parts):
        work = tempfile.mkdtemp(prefix="wardian-writeback.")
        try:
            vm.make_disk(work + "/disk", DISK, self.fs)
            vm.make_disk(work + "/out", 4 << 30)
            vm.make_disk(work + "/pool", 1 << 30)
            made = images.images(self.seed)
            for image in made:
                image.write(work + "/images")
            share = {"/bin/wardian": self.program, "/bin/wardian-keeper": os.path.dirname(self.program) + "/wardian-keeper", "/share": work + "/images"}
            with vm.Guest(self.bundle, [work + "/disk", work + "/out", work + "/pool"], share, PROGRAMS[self.fs], MODULES + self.fs,
                          deadline=LIMIT) as guest:
                lab = Lab(guest, self.fs, work)
                lab.device_on("/dev/vda", DISK // 512)
                lab.mount()
                kernel(lab)
                lab.serve()
                for part in parts:
                    begin = time.monotonic()
                    part(lab, made)
                    self.say(f"  {part.__name__}: {time.monotonic() - begin:.1f} s")
        finally:
            shutil.rmtree(work)


PROGRAMS = {"xfs": ["dmsetup", "curl", "tar", "xfs_io", "mkfs.xfs"], "ext4": ["dmsetup", "curl", "tar", "xfs_io", "mkfs.ext4"]}
MODULES = "quota_v2 dm-mod dm-flakey dm-delay dm-thin-pool loop veth "
PARTS = [hiccup, killed]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kernel", default="6.1")
    p.add_argument("--fs", choices=PROGRAMS, default="xfs")
    p.add_argument("--seed", type=int, default=1, help="of the images")
    p.add_argument("--part", action="append", choices=[part.__name__ for part in PARTS], help="[default: all]")
    a = p.parse_args()
    program = os.environ.get("WARDIAN") or vm.TARGET + "/x86_64-unknown-linux-gnu/release/wardian"
    try:
        Test(vm.kernel(a.kernel), a.fs, a.seed, program).run([part for part in PARTS if not a.part or part.__name__ in a.part])
    except (AssertionError, vm.MachineError) as error:
        print(f"failed: {error}")
        sys.exit(1)


if __name__ == "__main__":
    main()
