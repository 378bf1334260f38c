# A hand-made HBONE peer: TLS by Python's own library, HTTP/2 frames byte by byte. Arguments: HOST. One line each:
#   cert HEX          the PEM of certificate chain and key to show from now on; `cert -` shows none
#   raw HEX           sends bytes in place of a TLS handshake
#   tls HEX           sends bytes in place of the HTTP/2 preface
#   frames HEX        sends frames after preface and SETTINGS
#   FIELD=VALUE ...   sends one request with these header fields (":method=CONNECT ...") and, when it is
#                     accepted, the text `hello`
# Answers with what the server did: `status N [TEXT]`, `reset N`, `goaway N`, `refused WHY` (TLS), `closed`, `waits`.
import socket, ssl, struct, sys, tempfile

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
host, shown = sys.argv[1], None


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def field(name, value):
    word = lambda text: bytes([len(text)]) + text.encode()
    return b"\x00" + word(name) + word(value)


def connect():
    tcp = socket.create_connection((host, 15008), timeout=3)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    if shown:
        context.load_cert_chain(shown)
    return context.wrap_socket(tcp)


def exactly(s, count):
    data = b""
    while len(data) < count:
        more = s.recv(count - len(data))
        if not more:
            raise EOFError
        data += more
    return data


STATUS = {"88": 200, "8c": 400, "8d": 404, "8e": 500, "48826801": 401, "48836c0cff": 503}


def status(block):
    while block and 0x20 <= block[0] < 0x40:
        block = block[1:]
    text = block.hex()
    return next((code for prefix, code in STATUS.items() if text.startswith(prefix)), text)


def outcome(s, request=False):
    """What the server answers; a PING of ours tells the end of the answers to frames that need none."""
    while True:
        head = exactly(s, 9)
        length = int.from_bytes(head[:3], "big")
        kind, flags = head[3], head[4]
        payload = exactly(s, length)
        if kind == 1:
            code = status(payload)
            if code != 200 or not request:
                return f"status {code}"
            s.sendall(frame(0, 1, 1, b"hello"))
            while True:
                head = exactly(s, 9)
                payload = exactly(s, int.from_bytes(head[:3], "big"))
                if head[3] == 0:
                    return f"status 200 {payload.decode()}"
        if kind == 3:
            return f"reset {struct.unpack('>I', payload)[0]}"
        if kind == 7:
            return f"goaway {struct.unpack('>II', payload[:8])[1]}"
        if kind == 6 and flags & 1:
            return "alive"


def perform(verb, rest):
    global shown
    if verb == "cert":
        if rest == "-":
            shown = None
        else:
            with tempfile.NamedTemporaryFile(delete=False) as file:
                file.write(bytes.fromhex(rest))
            shown = file.name
        return "shown"
    if verb == "raw":
        s = socket.create_connection((host, 15008), timeout=3)
        s.sendall(bytes.fromhex(rest))
        s.shutdown(socket.SHUT_WR)
        while s.recv(1000):
            pass
        return "closed"
    s = connect()
    if verb == "tls":
        s.sendall(bytes.fromhex(rest))
        return outcome(s)
    s.sendall(PREFACE + frame(4, 0, 0))
    if verb == "frames":
        s.sendall(bytes.fromhex(rest) + frame(6, 0, 0, b"12345678"))
        return outcome(s)
    pairs = [pair.rsplit("=", 1) for pair in [verb, *rest.split()]]
    s.sendall(frame(1, 4, 1, b"".join(field(name, value) for name, value in pairs)))
    return outcome(s, True)


for line in sys.stdin:
    verb, _, rest = line.strip().partition(" ")
    try:
        print(perform(verb, rest), flush=True)
    except EOFError:
        print("closed", flush=True)
    except ssl.SSLError as error:
        print("refused", error.reason, flush=True)
    except TimeoutError:
        print("waits", flush=True)
    except OSError as error:
        print("closed", type(error).__name__, flush=True)
