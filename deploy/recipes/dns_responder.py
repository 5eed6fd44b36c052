"""An authoritative DNS responder, over UDP and TCP, on dnslib.

    pip install dnslib
    prefork run dns_responder:OverUdp --bind udp://127.0.0.1:5353 --config dns_responder.toml

    dig @127.0.0.1 -p 5353 www.example.test
    dig @127.0.0.1 -p 5353 big.example.test TXT

One pool for both transports: what is too long for a datagram is cut, and dig asks again over TCP, at the same port. The
file has OverTcp served as well, and threads: a TCP client may keep its connection and say nothing. Port 53 wants a
socket that systemd hands over, or the capability CAP_NET_BIND_SERVICE. The zone is read when the module is imported:
edit it and reload.
"""

import struct

from dnslib import OPCODE, QTYPE, RCODE, RR, DNSError, DNSRecord

from prefork import DatagramRequestHandler, StreamRequestHandler

ZONE = """
example.test.      3600 IN SOA ns.example.test. hostmaster.example.test. 1 7200 900 1209600 300
example.test.      3600 IN NS  ns.example.test.
ns.example.test.   3600 IN A   127.0.0.1
www.example.test.   300 IN A   192.0.2.10
www.example.test.   300 IN AAAA 2001:db8::10
"""
RECORDS = RR.fromZone(ZONE) + [
    RR.fromZone(f'big.example.test. 300 IN TXT "{number:03} {"x" * 200}"')[0] for number in range(10)
]
ORIGIN = RECORDS[0].rname
PLAIN_UDP_SIZE = 512  # without EDNS, RFC 1035 4.2.1


def answer(query: DNSRecord) -> DNSRecord:
    """The reply: records of the zone, or the reason why there are none."""
    reply, name, wanted = query.reply(), query.q.qname, QTYPE[query.q.qtype]
    reply.header.ra = 0  # nobody is asked on a client's behalf
    if query.header.opcode != OPCODE.QUERY:
        reply.header.rcode = RCODE.NOTIMP
        return reply
    if not name.matchSuffix(ORIGIN):
        reply.header.rcode, reply.header.aa = RCODE.REFUSED, 0
        return reply
    known = [record for record in RECORDS if record.rname == name]
    found = [record for record in known if wanted in (QTYPE[record.rtype], "ANY")]
    reply.add_answer(*found)
    if not known:
        reply.header.rcode = RCODE.NXDOMAIN
    if not found:
        reply.add_auth(RECORDS[0])  # how long "there is none" may be remembered
    return reply


def udp_size(query: DNSRecord) -> int:
    """How much the client takes in one datagram: it says so by EDNS, RFC 6891."""
    return max([PLAIN_UDP_SIZE, *(record.rclass for record in query.ar if QTYPE[record.rtype] == "OPT")])


class OverUdp(DatagramRequestHandler):
    """A datagram, a reply. What does not fit is cut, and the client asks again over TCP."""

    def handle(self) -> None:
        try:
            query = DNSRecord.parse(self.rfile.read())
        except DNSError:
            return  # not DNS: say nothing, the sender's address may be forged
        packed = answer(query).pack()
        if len(packed) > udp_size(query):
            cut = query.reply()
            cut.header.tc = 1
            packed = cut.pack()
        self.wfile.write(packed)


class OverTcp(StreamRequestHandler):
    """Messages with their length in front, as many as the client sends, RFC 7766."""

    timeout = 10.0  # a silent client holds a thread no longer

    def handle(self) -> None:
        try:
            while len(prefix := self.rfile.read(2)) == 2:
                query = DNSRecord.parse(self.rfile.read(struct.unpack("!H", prefix)[0]))
                packed = answer(query).pack()
                self.wfile.write(struct.pack("!H", len(packed)) + packed)
        except (DNSError, TimeoutError):
            pass  # RFC 7766 6.2.3: close
