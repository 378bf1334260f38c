# Ways around the capture, one line each: TECHNIQUE HOST PORT TEXT [MORE...]; answers `ok` when TEXT came back from an
# echo server, `sent` for what expects no answer, `failed WHY` otherwise. Runs in a pod, as root.
import array, ctypes, mmap, os, socket, struct, sys

libc = ctypes.CDLL(None, use_errno=True)


def answer(s, text):
    s.settimeout(2)
    return "ok" if s.recv(1000) == text else "ended"


def talk(s, host, port, text):
    s.settimeout(2)
    s.connect((host, port))
    s.sendall(text)
    return answer(s, text)


def tcp():
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM)


def plain(host, port, text):
    return talk(tcp(), host, port, text)


def mapped(host, port, text):
    return talk(socket.socket(socket.AF_INET6, socket.SOCK_STREAM), "::ffff:" + host, port, text)


def fastopen(host, port, text):
    s = tcp()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("qq", 2, 0))
    s.sendto(text, socket.MSG_FASTOPEN, (host, port))
    return answer(s, text)


def fastopen_connect(host, port, text):
    s = tcp()
    s.setsockopt(socket.IPPROTO_TCP, 30, 1)
    return talk(s, host, port, text)


def mptcp(host, port, text):
    return talk(socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262), host, port, text)


def device(host, port, text):
    s = tcp()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
    return talk(s, host, port, text)


def marked(host, port, text):
    s = tcp()
    s.setsockopt(socket.SOL_SOCKET, 36, 0x539)
    return talk(s, host, port, text)


def bound(host, port, text, source):
    s = tcp()
    s.setsockopt(socket.IPPROTO_IP, 19, 1)  # IP_TRANSPARENT: any source
    s.bind((source, 0))
    return talk(s, host, port, text)


def io_uring(host, port, text):
    params = ctypes.create_string_buffer(120)
    ring = libc.syscall(425, 4, params)
    if ring < 0:
        raise OSError(ctypes.get_errno(), "io_uring_setup")
    words = struct.unpack("<10I", params.raw[:40])
    sq = struct.unpack("<8I", params.raw[40:72])
    cq = struct.unpack("<8I", params.raw[80:112])
    size = max(sq[6] + words[0] * 4, cq[5] + words[1] * 16)
    rings = mmap.mmap(ring, size, mmap.MAP_SHARED | 0x8000, offset=0)
    sqes = mmap.mmap(ring, words[0] * 64, mmap.MAP_SHARED | 0x8000, offset=0x10000000)
    s = tcp()
    address = ctypes.create_string_buffer(struct.pack("<H", 2) + struct.pack(">H", port) + socket.inet_aton(host) + bytes(8), 16)
    # opcode CONNECT (16), the descriptor, length in `off`, address in `addr`
    sqes[0:64] = struct.pack("<BBHiQQ", 16, 0, 0, s.fileno(), 16, ctypes.addressof(address)).ljust(64, b"\0")
    rings[sq[6] : sq[6] + 4] = struct.pack("<I", 0)
    rings[sq[1] : sq[1] + 4] = struct.pack("<I", 1)
    if libc.syscall(426, ring, 1, 1, 1, None, 0) < 0:
        raise OSError(ctypes.get_errno(), "io_uring_enter")
    result = struct.unpack("<i", rings[cq[5] + 8 : cq[5] + 12])[0]
    if result < 0:
        raise OSError(-result, "io_uring connect")
    s.sendall(text)
    return answer(s, text)


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def syn(source, host, port, text, fragment=0):
    ends = socket.inet_aton(source) + socket.inet_aton(host)
    head = lambda sum: struct.pack(">HHIIBBHHH", 45678, port, 1, 0, 5 << 4, 2, 65535, sum, 0)
    whole = head(0) + text
    tcp_part = head(checksum(ends + struct.pack(">BBH", 0, 6, len(whole)) + whole)) + text
    ip = lambda sum: struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp_part), 77, fragment, 64, 6, sum) + ends
    return ip(checksum(ip(0))) + tcp_part


def raw(host, port, text, source):
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    s.sendto(syn(source, host, port, text), (host, 0))
    return "sent"


def raw_fragment(host, port, text, source):
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    s.sendto(syn(source, host, port, text, 0x2000), (host, 0))
    return "sent"


def gateway():
    for line in open("/proc/net/arp"):
        words = line.split()
        if words[0] == "169.254.1.1":
            return bytes.fromhex(words[3].replace(":", ""))
    raise OSError(0, "no gateway in the ARP table")


def packet(host, port, text, source, tag=b""):
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    s.bind(("eth0", 0))
    own = s.getsockname()[4]
    s.send(gateway() + own + tag + b"\x08\x00" + syn(source, host, port, text))
    return "sent"


def vlan(host, port, text, source):
    return packet(host, port, text, source, b"\x81\x00\x00\x07")


def in_namespace(pid, make):
    """What `make` returns (a socket) when it is called in the namespace of another process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    child = os.fork()
    if child == 0:
        try:
            with open(f"/proc/{pid}/ns/net") as ns:
                if libc.setns(ns.fileno(), 0) < 0:
                    raise OSError(ctypes.get_errno(), "setns")
            made = make()
            socket.send_fds(theirs, [b"x"], [made.fileno()])
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    ours.settimeout(2)
    _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    return socket.socket(fileno=fds[0])


def passed(host, port, text, pid):
    return talk(in_namespace(int(pid), tcp), host, port, text)


def moved(host, port, text, group):
    child_reads, parent_writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with open(group + "/cgroup.procs", "w") as f:
                f.write(str(os.getpid()))
            result = plain(host, port, text)
        except OSError as error:
            result = "failed " + str(error)
        os.write(parent_writes, result.encode())
        os._exit(0)
    os.waitpid(pid, 0)
    return os.read(child_reads, 1000).decode()


if __name__ == "__main__":
    for line in sys.stdin:
        technique, host, port, text, *more = line.split()
        try:
            print(globals()[technique](host, int(port), text.encode(), *more), flush=True)
        except OSError as error:
            print("failed", error, flush=True)
