"""A disk with a volatile write cache: what has not been flushed may be lost when the power goes.

qemu reaches it as an NBD server (protocol: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md). Writes stay in
this process until a flush puts them into the file. Disk.cut() is the power loss: each 4 KiB block written since the last flush
is on the disk, is not, or (tears) is torn at a 512-byte sector, by the dice. Of several writes to one block only the last one or none is
seen, and all that was flushed is there."""
import os, random, socket, struct, threading

BLOCK, SECTOR = 4096, 512
OPTION, GO, ABORT = 0x49484156454F5054, 7, 2
REPLY_MAGIC, ACK, INFO, UNSUPPORTED = 0x3E889045565A9, 1, 3, 0x80000001
HAS_FLAGS, SEND_FLUSH = 1, 4
READ, WRITE, DISCONNECT, FLUSH = 0, 1, 2, 3
EIO, EINVAL = 5, 22


class Disk:
    """cut_in_flush: the power goes within the so-manieth flush, after a part of it has reached the disk; on_cut is called then.
    lies: flushes are acknowledged and nothing is done, as bad disks do; to show that a test sees it.
    tears: False: a disk whose blocks of 4 KiB are written whole or not at all, as disks with physical sectors of 4 KiB promise."""

    def __init__(self, path, sock, seed, cut_in_flush=None, on_cut=None, lies=False, tears=True):
        self.file = os.open(path, os.O_RDWR)
        self.size = os.fstat(self.file).st_size
        self.dice, self.cut_in_flush, self.on_cut, self.lies = random.Random(seed), cut_in_flush, on_cut, lies
        self.tears = tears
        self.cache, self.flushes, self.power, self.lost = {}, 0, True, 0
        self.lock = threading.Lock()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(sock)
        self.listener.listen(1)
        self.drive = {"file.driver": "nbd", "file.server.type": "unix", "file.server.path": sock, "cache": "writeback"}
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def block(self, index):
        data = self.cache.get(index)
        return data if data is not None else os.pread(self.file, BLOCK, index * BLOCK)

    def read(self, offset, length):
        first, last = offset // BLOCK, (offset + length - 1) // BLOCK
        if not any(i in self.cache for i in range(first, last + 1)):
            return os.pread(self.file, length, offset)
        data = b"".join(self.block(i) for i in range(first, last + 1))
        return data[offset - first * BLOCK:][:length]

    def write(self, offset, data):
        at = 0
        while at < len(data):
            index, begin = divmod(offset + at, BLOCK)
            part = data[at:at + BLOCK - begin]
            if len(part) < BLOCK:
                old = self.block(index)
                part = old[:begin] + part + old[begin + len(part):]
            self.cache[index] = part
            at = (index + 1) * BLOCK - offset

    def flush(self):
        self.flushes += 1
        if self.flushes == self.cut_in_flush:
            self.settle()
        elif not self.lies:
            for index, data in self.cache.items():
                os.pwrite(self.file, data, index * BLOCK)
            self.cache.clear()

    def cut(self):
        """The power loss. Nothing of the file is touched afterwards."""
        with self.lock:
            if self.power:
                self.settle()

    def settle(self):
        self.power = False
        for index, data in self.cache.items():
            torn = self.dice.randrange(BLOCK // SECTOR) if self.tears else 0
            sectors = self.dice.choice((0, 0, 0, BLOCK // SECTOR, BLOCK // SECTOR, torn))
            os.pwrite(self.file, data[:sectors * SECTOR], index * BLOCK)
            self.lost += sectors * SECTOR < BLOCK
        self.cache.clear()
        if self.on_cut:
            self.on_cut()

    def close(self):
        """An orderly end: everything is on the disk."""
        with self.lock:
            if self.power:
                self.lies, self.cut_in_flush = False, None
                self.flush()
                self.power = False
        self.listener.close()
        os.close(self.file)

    def serve(self):
        try:
            self.peer, _ = self.listener.accept()
            with self.peer, self.peer.makefile("rb") as self.stream:
                if self.handshake():
                    while self.request():
                        pass
        except (OSError, struct.error):
            pass  # qemu is gone

    def take(self, form):
        return struct.unpack(form, self.stream.read(struct.calcsize(form)))

    def handshake(self):
        self.peer.sendall(b"NBDMAGIC" + struct.pack(">QH", OPTION, 1))
        self.take(">I")
        while True:
            _, option, length = self.take(">QII")
            self.stream.read(length)
            if option == GO:
                info = struct.pack(">HQH", 0, self.size, HAS_FLAGS | SEND_FLUSH)
                self.peer.sendall(struct.pack(">QIII", REPLY_MAGIC, option, INFO, len(info)) + info)
                self.peer.sendall(struct.pack(">QIII", REPLY_MAGIC, option, ACK, 0))
                return True
            self.peer.sendall(struct.pack(">QIII", REPLY_MAGIC, option, ACK if option == ABORT else UNSUPPORTED, 0))
            if option == ABORT:
                return False

    def request(self):
        _, _, kind, cookie, offset, length = self.take(">IHHQQI")
        data, error = b"", 0
        payload = self.stream.read(length) if kind == WRITE else b""
        with self.lock:
            if kind == DISCONNECT:
                return False
            if not self.power:
                return False
            if kind == READ:
                data = self.read(offset, length)
            elif kind == WRITE:
                self.write(offset, payload)
            elif kind == FLUSH:
                self.flush()
                if not self.power:
                    return False
            else:
                error = EINVAL
        self.peer.sendall(struct.pack(">IIQ", 0x67446698, error, cookie) + data)
        return True
