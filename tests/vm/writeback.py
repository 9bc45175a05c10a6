#!/usr/bin/env python3
"""The disk fails while the store works, and heals: what was lost is not trusted, who was hit is told, the rest goes on.

The store is on a device-mapper device. What kernels do when a write fails is in README.md ("Lost writes"); kernel() checks it."""
import argparse, json, os, shlex, shutil, sys, tempfile, time
import images, vm

STORE = "--root /mnt/store --run /run/wardian"
DISK, POOL = 1 << 30, 256 << 20
BIG = 3 << 20
"""A file that the store awaits by itself, before it asks the file system for a sync (durable.rs)."""
LIMIT = 420
"""Seconds that the guest may live; it takes 60 to 90 where the host is idle."""
OPTIONS = {"xfs": "pquota", "ext4": "prjquota,commit=300,errors=continue"}
JOURNAL = {"xfs": "-l size=192m", "ext4": "-J size=192"}
QUIET = "echo 0 > /proc/sys/vm/dirty_writeback_centisecs; echo 720000 > /proc/sys/fs/xfs/xfssyncd_centisecs 2>/dev/null; true"
"""Nothing is written before somebody asks for it, the journal neither: it has room, and its clocks stand. A commit while writes fail is
the end of the file system (see gone())."""


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
        self.make_fs(JOURNAL[self.fs])

    def make_fs(self, options):
        """busybox's shell prefers its own mkfs to the host's, unless that has its path."""
        program, *own = vm.MKFS[self.fs]
        self.sh(f"{shutil.which(program)} {shlex.join(own)} {options} /dev/mapper/store")

    def thin_device_on(self, device):
        """A thin volume larger than its pool, which refuses data at once when it is full."""
        self.device, self.sectors, meta = device, DISK // 512, 8192
        self.pool = lambda size: f"0 {size} thin-pool /dev/mapper/meta /dev/mapper/data 128 0 1 error_if_no_space"
        make = lambda name, table: self.sh(f"dmsetup create --noudevsync {name} --table '{table}' && dmsetup mknodes {name}")
        make("meta", f"0 {meta} linear {device} 0")
        make("data", f"0 {POOL // 512} linear {device} {meta}")
        make("pool", self.pool(POOL // 512))
        self.sh("dmsetup message pool 0 'create_thin 0'")
        make("store", f"0 {self.sectors} thin /dev/mapper/pool 0")
        self.make_fs({"xfs": "-K", "ext4": "-E nodiscard"}[self.fs])

    def grow_pool(self):
        size = DISK // 512
        for name, table in ("data", f"0 {size} linear {self.device} 8192"), ("pool", self.pool(size)):
            self.sh(f"dmsetup suspend --noudevsync {name}; dmsetup load {name} --table '{table}' && dmsetup resume --noudevsync {name}")

    def mount(self):
        self.sh(f"mount -t {self.fs} -o {OPTIONS[self.fs]} /dev/mapper/store /mnt && mkdir -p /mnt/store")

    def hold(self):
        """Writes wait from now on; reads do not. XFS forces its log where it wants blocks that a transaction not yet written has freed, so
        there are none."""
        self.sh("sync -f /mnt")
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
        self.sh(f"dmsetup suspend --noudevsync --nolockfs --noflush {name}; "
                f"dmsetup load {name} --table '0 {self.sectors} {target}' && dmsetup resume --noudevsync {name}")

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
        whole, _, _ = self.sh("cat /tmp/log").rpartition("\n")  # the last line may be on its way
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]

    def records(self):
        """layer.json of each layer in its place, by chain."""
        output = self.sh("cd /mnt/store/layers && for chain in *; do cat $chain/layer.json 2>/dev/null && echo; done; true")
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
        """Waits until the server's thread that makes layers durable waits for a file's data, in sync_file_range (system call 277)."""
        task = "for task in /proc/$(cat /tmp/server)/task/*; do [ \"$(cat $task/comm)\" != durability ] || grep -o '^277 ' $task/syscall; done 2>/dev/null; true"
        self.until("a layer is written back", lambda: "277" in self.sh(task))

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
    lab.until("a layer is suspect", lambda: any(line["message"] == "wardian.layer.suspect" for line in lab.log()))
    said = [line["data"] for line in lab.log() if line["message"] == "wardian.layer.suspect"]
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
    # The orphan may have been made before the server's end.
    for handle in "old", "orphan", "heir":
        lab.api("DELETE", f"containers/{handle}", check=handle != "orphan")


def gone(lab, made):
    """Every write fails, the journal's too, and the file system gives up: no way back without a new mount. The server says so, lets
    containers go, and is well again on the file system mounted anew."""
    base, other = made[0], made[4]
    lab.create("old", base)
    lab.fail()
    lab.sh("echo x > /mnt/written; sync")
    lab.until("creates are refused", lambda: lab.create("none", other, check=False)[0] == 500)
    for handle in "old", "none":
        lab.api("DELETE", f"containers/{handle}", check=False)
        assert not lab.exists(handle), f"{handle} cannot be destroyed"
    lab.heal()
    lab.signal("TERM")
    lab.until("the server ends", lambda: lab.sh("kill -0 $(cat /tmp/server)", check=False)[0] != 0)
    lab.sh("umount /mnt")
    # It lives as long as anybody has a part of it mounted, and another mount would be the same one.
    lab.until("nobody holds the file system", lambda: "dm-1" not in lab.sh(f"ls /sys/fs/{lab.fs}"))
    lab.mount()
    lab.serve()
    lab.create("new", other)
    lab.durable(other)
    lab.check_trusted(made, "on the file system mounted anew")
    lab.api("DELETE", "containers/new")


def full_pool(lab, made):
    """The file system has room, the thin pool under it has none: data is refused (ENOSPC) long after it was written."""
    base, hit = made[:2]
    lab.create("old", base)
    lab.durable(base)
    used, total = map(int, lab.sh("dmsetup status pool").split()[5].split("/"))
    lab.sh(f"dd if=/dev/zero of=/mnt/filler bs=64k count={total - used - 16} conv=fsync 2>&1")
    lab.ask_for("hit", hit)
    lab.until("old says that it was hit", lambda: "destroy and create it again" in lab.events("old"), 60)
    assert not all(lab.records().get(chain, {}).get("durable") for chain in hit.chains), f"{hit.name} is durable, and there is no room for it"
    lab.grow_pool()
    lab.create("again", hit)
    lab.durable(hit)
    assert lab.fsync(lab.container("again")), "fsync fails in a container made after the pool has grown"
    lab.check_trusted(made, "after the pool was full")


class Test:
    def __init__(self, bundle, fs, seed, program, say=print):
        self.bundle, self.fs, self.seed, self.program, self.say = bundle, fs, seed, program, say

    def run(self, parts):
        work = tempfile.mkdtemp(prefix="wardian-writeback.")
        try:
            vm.make_disk(work + "/disk", DISK)

            vm.make_disk(work + "/out", 4 << 30)
            vm.make_disk(work + "/pool", 2 << 30)
            made = images.images(self.seed, big=BIG)
            for image in made:
                image.write(work + "/images")
            share = {"/bin/wardian": self.program, "/bin/wardian-keeper": os.path.dirname(self.program) + "/wardian-keeper", "/share": work + "/images"}
            with vm.Guest(self.bundle, [f"{work}/{name}" for name in ("disk", "out", "pool")], share, PROGRAMS[self.fs], MODULES + self.fs,
                          deadline=LIMIT) as guest:
                lab = Lab(guest, self.fs, work)
                if parts == [full_pool]:
                    lab.thin_device_on("/dev/vdc")
                    lab.mount()
                else:
                    lab.device_on("/dev/vda", DISK // 512)
                    lab.mount()
                    kernel(lab)
                lab.serve()
                for part in parts:
                    begin = time.monotonic()
                    try:
                        part(lab, made)
                    except AssertionError as error:
                        raise AssertionError(f"{part.__name__}: {error}\n{lab.sh('dmesg | tail -8; tail -8 /tmp/log')}") from None
                    self.say(f"  {part.__name__}: {time.monotonic() - begin:.1f} s")
        finally:
            shutil.rmtree(work)


PROGRAMS = {"xfs": ["dmsetup", "curl", "tar", "xfs_io", "mkfs.xfs"], "ext4": ["dmsetup", "curl", "tar", "xfs_io", "mkfs.ext4"]}
MODULES = "quota_v2 dm-mod dm-flakey dm-delay dm-thin-pool loop veth "
PARTS = [hiccup, killed, gone]
THIN = [full_pool]
"""On a thin volume of their own. XFS only: its log has room from the beginning, ext4 hurts its metadata."""


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kernel", default="6.1")
    p.add_argument("--fs", choices=PROGRAMS, default="xfs")
    p.add_argument("--seed", type=int, default=1, help="of the images")
    p.add_argument("--part", action="append", choices=[part.__name__ for part in PARTS + THIN], help="[default: all on an ordinary volume]")
    a = p.parse_args()
    try:
        Test(vm.kernel(a.kernel), a.fs, a.seed, vm.program()).run([part for part in PARTS + THIN if part.__name__ in (a.part or [part.__name__ for part in PARTS])])
    except (AssertionError, vm.MachineError) as error:
        print(f"failed: {error}")
        sys.exit(1)


if __name__ == "__main__":
    main()
