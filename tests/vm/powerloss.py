#!/usr/bin/env python3
"""The power goes while the store works; afterwards every layer that it trusts is what its image says, and what it
reported as durable is there.

Rounds follow each other on one disk (disk.py: a volatile write cache): a boot opens the store that the last one left, checks it,
and works it until its own end comes, at a moment thrown by the dice: some time, or in the middle of a flush."""
import argparse, json, os, random, shutil, sys, tempfile, threading, time
import disk, images, vm

STORE = "--root /mnt/store --run /run/wardian"
DISK = 768 << 20
MAX_LOAD = 12.0
"""Seconds until the power goes at the latest."""
CHECK = {"xfs": "xfs_repair -n /dev/vda", "ext4": "e2fsck -fn /dev/vda"}
TEARS = {"xfs": True, "ext4": False}
"""ext4 with checksums does not survive a commit block of its journal that is torn: the mount fails with "journal transaction … is
corrupt" (jbd2 takes a bad checksum in the last commit block for corruption). It asks for disks that write 4 KiB whole."""
PROGRAMS = {"xfs": ["xfs_repair"], "ext4": ["e2fsck"]}
NO_SYNC = f"""#!/bin/sh
exec {shutil.which('strace') or 'strace'} -f -qq -o /dev/null --seccomp-bpf -e trace=fsync,fdatasync,syncfs,sync_file_range \\
  -e inject=fsync,fdatasync,syncfs,sync_file_range:retval=0 /bin/wardian.real "$@"
"""
"""In the place of the program: its syncs do nothing and succeed."""
LIMIT = 300
"""Seconds that one boot may take; it takes 20 to 30 where the host is idle."""


class Promises:
    """What the store has said, told by the guest line by line; it outlives the guest."""

    def __init__(self):
        self.durable, self.failed, self.begun = set(), [], threading.Event()

    def hear(self, line):
        word, _, rest = line.strip().partition(" ")
        if word == "begin":
            self.begun.set()
        elif word == "durable":
            self.durable.add(rest)
        elif word == "removing":
            self.durable.discard(rest)
        elif word == "failed":
            self.failed.append(rest)


class Test:
    def __init__(self, bundle, fs, seed, program, sabotage=None, say=print):
        self.bundle, self.fs, self.seed, self.program, self.sabotage, self.say = bundle, fs, seed, program, sabotage, say
        self.dice, self.promises = random.Random(seed), Promises()
        self.images = {}  # all that were ever made, by name

    def run(self, rounds):
        self.work = tempfile.mkdtemp(prefix="wardian-powerloss.")
        try:
            vm.make_disk(self.work + "/disk", DISK, self.fs)
            vm.make_disk(self.work + "/out", 4 << 30)
            for number in range(rounds + 1):
                self.boot(number, last=number == rounds)
        finally:
            shutil.rmtree(self.work)

    def boot(self, number, last):
        share = {"/bin/wardian": self.program}
        keeper = os.path.dirname(self.program) + "/wardian-keeper"
        if os.path.exists(keeper):
            share["/bin/wardian-keeper"] = keeper
        new = images.images(f"{self.seed}.{number}")
        folder = f"{self.work}/images{number}"
        os.mkdir(folder)
        for image in new:
            self.images[image.name] = image
            image.write(folder)
        with open(folder + "/images", "w") as f:
            f.write(" ".join(image.name for image in new))
        shutil.copy(vm.HERE + "/powerloss.sh", folder + "/powerloss.sh")
        in_flush = self.dice.randrange(5, 60) if self.dice.random() < 0.5 else None
        until = self.dice.uniform(3, MAX_LOAD)
        cut = threading.Event()
        power = disk.Disk(self.work + "/disk", f"{self.work}/disk{number}.sock", f"{self.seed}.{number}", lies=self.sabotage == "lies",
                          tears=TEARS[self.fs])
        modules = self.fs + " quota_v2 dm-mod"
        programs = PROGRAMS[self.fs] + ["tar"]
        if self.sabotage == "sync":
            programs.append("strace")
            share["/bin/wardian.real"] = share["/bin/wardian"]
            share["/bin/wardian"] = folder + "/no-sync"
            with open(folder + "/no-sync", "w") as f:
                f.write(NO_SYNC)
            os.chmod(folder + "/no-sync", 0o755)
        self.promises.begun.clear()
        with vm.Guest(self.bundle, [power.drive, self.work + "/out"], {**share, "/share": folder}, programs, modules,
                      deadline=LIMIT, hear=self.promises.hear) as guest:
            begin = time.monotonic()
            self.check(guest, number)
            if last:
                self.still_works(guest, new)
                return
            checked = time.monotonic()
            flushes = power.flushes
            if in_flush:
                with power.lock:
                    power.cut_in_flush, power.on_cut = flushes + in_flush, cut.set
            guest.sh("sh /share/powerloss.sh > /dev/null 2>&1 &")
            self.promises.begun.wait(30)
            cut.wait(until if not in_flush else MAX_LOAD)
            power.cut()
            guest.kill()
        shutil.rmtree(folder)
        if self.promises.failed:
            raise AssertionError(f"round {number}: {self.promises.failed[0]}")
        self.say(f"  round {number}: checked in {checked - begin:.1f} s, worked for {time.monotonic() - checked:.1f} s, power lost "
                 f"{'in' if in_flush and cut.is_set() else 'after'} flush {power.flushes - flushes}, {power.lost} blocks lost or torn, "
                 f"{len(self.promises.durable)} images reported durable so far")

    def check(self, guest, number):
        status, output = guest.sh(f"mount -t {self.fs} -o {vm.MOUNT[self.fs]} /dev/vda /mnt 2>&1 || {{ dmesg | tail -20; false; }}", check=False)
        assert status == 0, f"the file system cannot be mounted: {output}"
        guest.sh("mkdir -p /mnt/store /run/wardian")
        if number == 0:
            return
        # As the power loss left it, then as the store takes it. Nothing at all may be left, where nothing was promised.
        guest.sh("mkdir -p /mnt/store/layers")
        found, records = images.trees(guest.fetch("/mnt/store/layers", 1))
        guest.sh(f"wardian store usage --json {STORE}")
        kept = guest.sh("""cd /mnt/store/layers && for chain in *; do grep -sq '"durable": *true' $chain/layer.json && echo $chain; done; true""").split()
        all_ = guest.sh("ls /mnt/store/layers").split()
        should = {chain: layer for image in self.images.values() for chain, layer in zip(image.chains, image.layers)}
        for chain in {*kept, *all_, *(c for c, r in records.items() if b'"durable":true' in r.replace(b" ", b""))}:
            assert chain in should, f"the layer {chain} is of no image"
            assert chain in found, f"the layer {chain} was not there when the power came back"
            wrong = images.difference(found[chain], should[chain].tree)
            assert not wrong, f"the layer {chain} is trusted, and half: {wrong}"
        assert set(all_) == set(kept), f"layers of another boot that are not durable were kept: {set(all_) - set(kept)}"
        for name in self.promises.durable:
            lost = set(self.images[name].chains) - set(kept)
            assert not lost, f"{name} was reported durable, and these of its layers are lost: {lost}"
        names = {image["name"] for image in json.loads(guest.sh(f"wardian image ls --json {STORE}")) if image["pinned"]}
        assert self.promises.durable <= names, f"reported durable and pinned, and the names are lost: {self.promises.durable - names}"
        # What was thrown away is deleted now; a command does it apart from itself otherwise.
        collected = guest.sh(f"wardian store gc {STORE} 2>&1; wardian store reap --wait {STORE} 2>&1")
        for place in "staging", "rootfs":
            left = guest.sh(f"find /mnt/store/{place} -mindepth 1 | head -20").split()
            assert not left, f"left in {place}/ after a collection: {left}\n{collected}"
        listed = guest.sh(f"wardian rootfs list {STORE}").strip()
        assert "image" not in listed, f"root file systems outlived the boot: {listed}"
        guest.sh("umount /mnt")
        status, output = guest.sh(CHECK[self.fs] + " 2>&1", check=False)
        assert status == 0, f"the file system is not clean: {output[-1000:]}"
        guest.sh(f"mount -t {self.fs} -o {vm.MOUNT[self.fs]} /dev/vda /mnt")

    def still_works(self, guest, new):
        """The store that has seen all this takes new images, whole."""
        for image in new[:2]:
            guest.sh(f"wardian image import oci:///share/{image.name}:latest -t {image.name} --json {STORE}")
        found, records = images.trees(guest.fetch("/mnt/store/layers", 1))
        for image in new[:2]:
            for chain, layer in zip(image.chains, image.layers):
                assert b'"durable":true' in records[chain].replace(b" ", b""), f"import has waited, and {chain} is not durable"
                wrong = images.difference(found[chain], layer.tree)
                assert not wrong, f"the new layer {chain} is not right: {wrong}"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kernel", default="6.1")
    p.add_argument("--fs", choices=CHECK, default="xfs")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--seed", type=int, default=random.randrange(10**6), help="repeats the dice of a run, though not the guest's timing")
    p.add_argument("--sabotage", choices=("sync", "lies"), help="sync: the store's syncs do nothing (needs strace); lies: the disk's flushes do nothing. The test must fail")
    a = p.parse_args()
    print(f"powerloss --kernel {a.kernel} --fs {a.fs} --rounds {a.rounds} --seed {a.seed}" + (f" --sabotage {a.sabotage}" if a.sabotage else ""))
    try:
        Test(vm.kernel(a.kernel), a.fs, a.seed, vm.program(), a.sabotage).run(a.rounds)
    except (AssertionError, vm.MachineError) as error:
        print(f"failed: {error}")
        sys.exit(1)


if __name__ == "__main__":
    main()
