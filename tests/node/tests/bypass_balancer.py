# A socket-level load balancer, as other software brings it: a program on connect4 of a cgroup that sends one virtual
# address to a backend. Arguments: CGROUP VIP BACKEND. Prints `ready`; the program goes when its process does.
import ctypes, os, socket, struct, sys

libc = ctypes.CDLL(None, use_errno=True)
PROG_LOAD, LINK_CREATE, CGROUP_SOCK_ADDR, CONNECT4 = 5, 28, 18, 10


def bpf(command, attributes):
    buffer = ctypes.create_string_buffer(attributes, 144)
    result = libc.syscall(321, command, buffer, 144)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"bpf({command})")
    return result


def instruction(code, registers, offset, value):
    return struct.pack("<BBhI", code, registers, offset, value)


group, vip, backend = sys.argv[1:]
number = lambda address: struct.unpack("<I", socket.inet_aton(address))[0]
program = b"".join(
    [
        instruction(0x61, 0x12, 4, 0),  # r2 = ctx->user_ip4
        instruction(0xB4, 0x03, 0, number(vip)),  # w3 = vip
        instruction(0x5D, 0x32, 2, 0),  # if r2 != r3, leave it alone
        instruction(0xB4, 0x04, 0, number(backend)),  # w4 = backend
        instruction(0x63, 0x41, 4, 0),  # ctx->user_ip4 = r4
        instruction(0xB7, 0x00, 0, 1),  # allow
        instruction(0x95, 0x00, 0, 0),
    ]
)
code = ctypes.create_string_buffer(program, len(program))
licence = ctypes.create_string_buffer(b"Apache-2.0")
attributes = struct.pack("<IIQQ", CGROUP_SOCK_ADDR, len(program) // 8, ctypes.addressof(code), ctypes.addressof(licence))
loaded = bpf(PROG_LOAD, attributes.ljust(68, b"\0") + struct.pack("<I", CONNECT4))
link = bpf(LINK_CREATE, struct.pack("<IIII", loaded, os.open(group, os.O_RDONLY), CONNECT4, 0))
print("ready", flush=True)
sys.stdin.read()
