// A packet on its way through the switch, and the queues and counters that it passes.

#pragma once

#include <netinet/in.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <utility>

#include "alarm.h"

// virtio_net_hdr of linux/virtio_net.h, which not every release of the headers lets C++ include.
struct OffloadHeader {
  uint8_t flags, gso_type;
  uint16_t hdr_len, gso_size, csum_start, csum_offset;
};
constexpr size_t kHeaderBytes = sizeof(OffloadHeader);
static_assert(kHeaderBytes == 10);
constexpr size_t kBufferBytes = kHeaderBytes + (64 << 10) + 256;

struct Packet {
  std::unique_ptr<uint8_t[]> data;
  size_t size;  // as read, with the offload header
  uint32_t wire_bytes, wire_packets;
  size_t source, destination;
  Nanoseconds time;  // start while it waits at its source, arrival afterwards
};

struct Queue {
  std::deque<Packet> packets;
  size_t bytes = 0;

  void push(Packet packet) {
    bytes += packet.wire_bytes;
    packets.push_back(std::move(packet));
  }
  Packet pop() {
    Packet packet = std::move(packets.front());
    packets.pop_front();
    bytes -= packet.wire_bytes;
    return packet;
  }
  Nanoseconds next() const { return packets.empty() ? kForever : packets.front().time; }
};

struct Traffic {
  uint64_t packets = 0, bytes = 0, dropped = 0;
};

// Fills in how the packet looks on the wire and where it goes; false if it is no IPv4 packet.
inline bool parse(const uint8_t* data, Packet& packet, uint32_t& address) {
  OffloadHeader header;
  if (packet.size < kHeaderBytes + 20) return false;
  std::memcpy(&header, data, kHeaderBytes);
  const uint8_t* ip = data + kHeaderBytes;
  const size_t length = packet.size - kHeaderBytes;
  if (ip[0] >> 4 != 4) return false;
  address = uint32_t(ip[16]) << 24 | uint32_t(ip[17]) << 16 | uint32_t(ip[18]) << 8 | ip[19];
  packet.wire_packets = 1;
  packet.wire_bytes = length;
  const size_t ip_bytes = (ip[0] & 15) * 4;
  if (header.gso_size > 0 && ip[9] == IPPROTO_TCP && length >= ip_bytes + 20) {
    const size_t headers = ip_bytes + (ip[ip_bytes + 12] >> 4) * 4;
    if (length > headers) {
      packet.wire_packets = (length - headers + header.gso_size - 1) / header.gso_size;
      packet.wire_bytes = length + (packet.wire_packets - 1) * headers;
    }
  }
  return true;
}
