"""A virtual machine under a chosen kernel, driven from the host: Guest.sh() runs a script in it.

The guest's root is an initramfs: busybox, the programs named (with their libraries), and what is shared. There is no network and
nothing of the host's is mounted. Uses KVM where it works, else emulates (TCG)."""
import base64, ctypes, os, shutil, signal, socket, stat, subprocess, sys, tarfile, tempfile, threading, time

HERE = os.path.dirname(os.path.realpath(__file__))
TARGET = os.environ.get("CARGO_TARGET_DIR") or os.path.realpath(HERE + "/../../target")
MKFS = {
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "ext4": "mkfs.ext4 -q -F -O quota,project -E quotatype=usrquota:grpquota:prjquota,lazy_itable_init=1".split(),
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
}
OLD_XFS = ["-c", "options=/usr/share/xfsprogs/mkfs/lts_6.1.conf"]
MOUNT = {"xfs": "uquota,pquota", "ext4": "prjquota", "btrfs": "defaults"}
FAILED, TIMEOUT = 125, 124
"""Exit status of a command whose machine failed, and of one that took too long."""
# An exception, so that machines and folders go.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
os.environ["PATH"] += ":/usr/local/sbin:/usr/sbin:/sbin"  # mkfs, for a user who is not root


class MachineError(Exception):
    """The machine failed or took too long: the test has said nothing."""

    def __init__(self, text, status=FAILED):
        super().__init__(text)
        self.status = status


def kernel(name):
    """The folder of the kernel's bundle: `name` is one, or what getkernel takes (6.1)."""
    if os.path.isdir(name):
        return os.path.realpath(name)
    got = subprocess.run([HERE + "/getkernel", name], stdout=subprocess.PIPE, text=True)
    if got.returncode != 0:
        raise MachineError(f"no kernel {name}")
    return got.stdout.split()[-1]


def program():
    """The wardian that is tested: $WARDIAN, or what ./dev has built."""
    return os.environ.get("WARDIAN") or TARGET + "/x86_64-unknown-linux-gnu/release/wardian"


def size(text):
    """Bytes of `50M`, `2G`, `512`."""
    unit = {"K": 10, "M": 20, "G": 30, "T": 40}.get(text[-1].upper())
    return int(text[:-1]) << unit if unit else int(text)


def make_disk(path, bytes_, fs=None):
    """A sparse file, with an empty file system if one is named."""
    with open(path, "wb") as f:
        f.truncate(bytes_)
    if fs:
        # A newer mkfs.xfs sets features that 6.1 refuses. An old one has no such file, or (Debian 12) cannot read its own.
        if fs == "xfs" and subprocess.run(MKFS[fs] + OLD_XFS + [path], stderr=subprocess.DEVNULL).returncode == 0:
            return
        subprocess.run(MKFS[fs] + [path], check=True)


def acceleration():
    # KVM_PVM offers /dev/kvm, but emulates a stock kernel instruction by instruction: it never boots.
    works = os.access("/dev/kvm", os.R_OK | os.W_OK) and not os.path.exists("/sys/module/kvm_pvm")
    return "kvm" if works else "tcg"


def die_with_parent():
    # No qemu outlives its test, however that ends. PR_SET_PDEATHSIG is 1 (linux/prctl.h).
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Archive:
    """An initramfs in the making (cpio, "newc": Documentation/driver-api/early-userspace/buffer-format.rst)."""

    def __init__(self, file):
        self.file, self.dirs = file, set()

    def entry(self, name, mode, data=b""):
        fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
        for part in (head, data):
            self.file.write(part + b"\0" * (-len(part) % 4))

    def parents(self, name):
        above = os.path.dirname(name)
        if above and above not in self.dirs:
            self.parents(above)
            self.dirs.add(above)
            self.entry(above, stat.S_IFDIR | 0o755)

    def add(self, host, name):
        """The host's file, or folder with all in it, as `name` (without a leading slash)."""
        if os.path.isdir(host):
            for child in sorted(os.listdir(host)):
                self.add(f"{host}/{child}", f"{name}/{child}")
            return
        self.parents(name)
        with open(host, "rb") as f:
            self.entry(name, stat.S_IFREG | (0o755 if os.access(host, os.X_OK) else 0o644), f.read())

    def program(self, name):
        """A program of the host's and the libraries it needs."""
        path = shutil.which(name)
        if not path:
            raise MachineError(f"{name} is not installed here")
        self.add(path, path.lstrip("/"))
        for line in subprocess.run(["ldd", path], capture_output=True, text=True).stdout.splitlines():
            library = next((word for word in line.split() if word.startswith("/")), None)
            if library and library.lstrip("/") not in self.dirs:
                self.dirs.add(library.lstrip("/"))
                self.add(library, library.lstrip("/"))

    def end(self):
        self.entry("TRAILER!!!", 0)


class Guest:
    """A running machine. Ends with its `with` block, by force: what is to be on a disk must be unmounted or synced before.

    disks: /dev/vda and so on, each the path of a raw file or a dict of qemu's drive options. share: {path in the guest: the host's
    file or folder}, copied in. programs: of the host's. deadline: seconds that the machine may live. hear: called with each line
    that the guest writes to /dev/hvc0, from a thread of its own."""

    def __init__(self, bundle, disks=(), share=None, programs=(), modules="", memory=1024, cpus=1, deadline=300, hear=None, accel=None):
        self.bundle, self.disks, self.share, self.programs = bundle, disks, share or {}, programs
        self.modules, self.memory, self.cpus, self.deadline, self.hear = modules, memory, cpus, deadline, hear
        self.accel = accel or acceleration()
        self.late, self.qemu = False, None

    def __enter__(self):
        self.dir = tempfile.mkdtemp(prefix="wardian-vm.")
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.qemu:
            self.timer.cancel()
            self.kill()
            self.reader.join()
            self.control.close()
        shutil.rmtree(self.dir, ignore_errors=True)

    def start(self):
        with open(self.dir + "/initrd", "wb") as f:  # the kernel unpacks archives that follow each other
            with open(self.bundle + "/base.cpio", "rb") as base:
                shutil.copyfileobj(base, f)
            archive = Archive(f)
            archive.add(HERE + "/init", "init")
            archive.entry("vm.env", stat.S_IFREG | 0o644, f"MODULES='{self.modules}'\n".encode())
            for name in self.programs:
                archive.program(name)
            for name, host in self.share.items():
                archive.add(os.path.realpath(host), name.strip("/"))
            archive.end()
        kvm = self.accel == "kvm"
        command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
                   "-smp", str(self.cpus), "-m", f"{self.memory}M",
                   "-accel", "kvm" if kvm else "tcg,thread=multi", "-cpu", "host" if kvm else "max,la57=off",
                   "-kernel", self.bundle + "/vmlinuz", "-initrd", self.dir + "/initrd",
                   "-append", "console=ttyS0 loglevel=5 panic=-1 mitigations=off cgroup_no_v1=all random.trust_cpu=on raid=noautodetect",
                   "-serial", f"file:{self.dir}/log", "-device", "virtio-serial-pci",
                   "-chardev", "stdio,id=o,signal=off", "-device", "virtconsole,chardev=o",
                   "-chardev", f"socket,id=c,path={self.dir}/control,server=on,wait=off", "-device", "virtserialport,chardev=c,name=vm"]
        for disk in self.disks:
            disk = disk if isinstance(disk, dict) else {"file": disk, "cache": "unsafe"}
            command += ["-drive", ",".join(f"{k}={v}" for k, v in ({"format": "raw", "if": "virtio"} | disk).items())]
        self.qemu = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, preexec_fn=die_with_parent)
        self.timer = threading.Timer(self.deadline, self.expire)
        self.timer.start()
        self.reader = threading.Thread(target=self.read)
        self.reader.start()
        self.control = socket.socket(socket.AF_UNIX)
        while True:
            try:
                self.control.connect(self.dir + "/control")
                break
            except OSError:
                if self.qemu.poll() is not None:
                    raise self.failed() from None
                time.sleep(0.02)
        self.answer = self.control.makefile("rb")
        self.sh("true")

    def read(self):
        for line in self.qemu.stdout:
            if self.hear:
                self.hear(line.decode(errors="replace"))

    def expire(self):
        self.late = True
        self.qemu.kill()

    def kill(self):
        """Ends the machine as a power loss does; its page cache is lost."""
        self.qemu.kill()
        self.qemu.wait()

    def log(self, lines=25):
        """The end of the kernel's log."""
        try:
            with open(self.dir + "/log", errors="replace") as f:
                return "".join(f.readlines()[-lines:])
        except FileNotFoundError:
            return ""

    def failed(self):
        if self.late:
            return MachineError(f"no end after {self.deadline:g} s", TIMEOUT)
        return MachineError("the machine ended; the end of its log:\n" + self.log())

    def sh(self, script, check=True):
        """Runs the script; its output, both streams together. With check=False (status, output)."""
        try:
            self.control.sendall(base64.b64encode(script.encode()) + b"\n")
            head = self.answer.readline().split()
            if len(head) != 2:
                raise self.failed()
            output = self.answer.read(int(head[1])).decode(errors="replace")
        except OSError:
            raise self.failed() from None
        if not check:
            return int(head[0]), output
        if head[0] != b"0":
            raise AssertionError(f"status {head[0].decode()}: {script}\n{output}")
        return output

    def fetch(self, folder, disk):
        """The guest's folder as a tarfile, through the disk numbered so in `disks`, a scratch file of the host's. `programs` must name tar."""
        device = "/dev/vd" + "abcdefgh"[disk]
        # busybox's shell prefers its own tar to the host's that is asked for, which knows xattrs. Its status is 1 where a
        # file changes meanwhile.
        self.sh(f"{shutil.which('tar')} -c --xattrs --xattrs-include='*' -f {device} -C {folder} .; [ $? -le 1 ] && sync {device}")
        return tarfile.open(self.disks[disk])
