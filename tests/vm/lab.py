"""What tests of containers in a guest have in common: an image, the server, and the commands that a user has."""
import contextlib, io, os, shutil, tarfile, tempfile, time
import vm

SERVE = "sh -c 'echo -900 > /proc/$$/oom_score_adj; exec wardian serve --root /mnt/store >> /tmp/log 2>&1' &"
"""As the unit does it: the kernel is to spare the server."""


def busybox(path):
    """An image of Debian's static busybox."""
    with tarfile.open(path, "w") as tar:
        tar.add(shutil.which("busybox"), "bin/busybox")
        for name in "sh cat sleep seq head tail stty true mknod rm echo mkdir ping httpd wget wc".split():
            link = tarfile.TarInfo("bin/" + name)
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        passwd = b"root:x:0:0:root:/root:/bin/sh\n" + b"".join(b"u%d:x:0:0::/proc/self/fd/%d:/bin/sh\n" % (n, n) for n in range(64))
        file = tarfile.TarInfo("etc/passwd")
        file.size = len(passwd)
        tar.addfile(file, io.BytesIO(passwd))


class Lab:
    def __init__(self, guest):
        self.sh = guest.sh

    def wardian(self, arguments, status=0):
        code, output = self.sh(f"wardian {arguments} 2>&1", check=False)
        assert code == status, f"wardian {arguments}: status {code}\n{output}\n{self.sh('tail -5 /tmp/log; dmesg | tail -5')}"
        return output

    def serve(self, how=SERVE):
        self.sh(how)
        end = time.monotonic() + 60
        while self.sh("wardian ps > /dev/null 2>&1", check=False)[0] != 0:
            assert time.monotonic() < end, f"no server: {self.sh('tail -5 /tmp/log')}"
            time.sleep(0.2)

    def inside(self, command, status=0):
        return self.wardian(f"exec c -- {command}", status).strip()


@contextlib.contextmanager
def guest(name, bundle, program, deadline, fs="ext4", options="defaults", programs=(), modules="", equip=lambda work, share: None):
    """A guest with the program, an image, and an empty file system with a directory for the store. `equip` adds to what is shared with it."""
    work = tempfile.mkdtemp(prefix=f"wardian-{name}.")
    try:
        vm.make_disk(work + "/disk", 1 << 30, fs)
        busybox(work + "/busybox.tar")
        share = {"/bin/wardian": program, "/bin/wardian-keeper": os.path.dirname(program) + "/wardian-keeper",
                 "/share/busybox.tar": work + "/busybox.tar"}
        equip(work, share)
        with vm.Guest(bundle, [work + "/disk"], share, programs, f"{fs} {modules}".strip(), deadline=deadline) as machine:
            machine.sh(f"mount -t {fs} -o {options} /dev/vda /mnt && mkdir /mnt/store")
            yield machine
    finally:
        shutil.rmtree(work)


def play(parts, lab, say):
    """Calls the parts of a test in their order, and tells how long each has taken."""
    for part in parts:
        name, begin = part.__name__.strip("_"), time.monotonic()
        try:
            part(lab)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None
        say(f"  {name}: {time.monotonic() - begin:.1f} s")
