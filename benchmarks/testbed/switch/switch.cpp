// The switch of the emulated testbed: moves IP packets between the TUN devices of several network namespaces, each
// with the rate of its port and a fixed latency. Stands in for tc netem where the kernel has none.
//
//     switch OWNER_PID LATENCY_NS BITS_PER_S QUEUE_BYTES ADDRESS=NAMESPACE...
//
// BITS_PER_S 0 means no limit. Makes a device `net0` in every namespace (Linux takes it down again when this program
// ends), prints "ready", then answers one line for each line on stdin:
//
//     link LATENCY_NS BITS_PER_S | cut PORT | heal PORT     ok
//     traffic                                               PACKETS BYTES DROPPED of every directed pair, row by row
//
// It ends when stdin does, or with the process OWNER_PID.
//
// Model, for a packet of B bytes that is read at time t:
//     start   = max(t, source port free);                        source port free = start + B / rate
//     arrival = max(start + latency, destination port free) + B / rate;  destination port free = arrival
// that is a full-duplex port at either end and a cut-through switch between them: an idle path costs latency + B / rate,
// and senders that meet at one receiver share its rate, first come, first served. B counts IP packets as they would
// travel, so a large segment (TSO), which crosses in one piece, is charged the headers of every packet it stands for.

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "alarm.h"
#include "packet.h"

namespace {

constexpr size_t kQueuePackets = 4096;  // of one port; bounds the buffers, which small packets use badly
constexpr int kReadsPerTurn = 16;       // of one port, before what is due is delivered

struct Port {
  uint32_t address = 0;  // host byte order
  int tun = -1;
  bool cut = false;
  Nanoseconds out_free = 0, in_free = 0;
  Queue departing, arriving;
  std::vector<Traffic> to;

  Port() = default;
  Port(Port&&) noexcept = default;
};

class Switch {
 public:
  Switch(Nanoseconds latency, uint64_t bits_per_s, size_t queue_bytes)
      : latency_(latency), bits_per_s_(bits_per_s), queue_bytes_(queue_bytes) {}

  void add(uint32_t address, const char* name_space);
  void run(int owner);

 private:
  void open_tun(Port& port);
  void tell_speed();
  void receive(size_t source);
  void depart(Nanoseconds time);
  void deliver(Nanoseconds time);
  bool commands();
  void command(const char* line);
  Nanoseconds next() const;
  Nanoseconds wire_time(uint32_t bytes) const {
    return bits_per_s_ ? Nanoseconds(bytes * 8ull * 1'000'000'000ull / bits_per_s_) : 0;
  }
  std::unique_ptr<uint8_t[]> take();
  void drop(Packet packet) {
    ports_[packet.source].to[packet.destination].dropped += packet.wire_packets;
    spare_.push_back(std::move(packet.data));
  }

  Nanoseconds latency_;
  uint64_t bits_per_s_;
  size_t queue_bytes_;
  std::vector<Port> ports_;
  std::vector<int> control_;  // a socket in each namespace
  std::vector<std::unique_ptr<uint8_t[]>> spare_;
  std::string input_;
  Alarm alarm_;
};

void Switch::add(uint32_t address, const char* name_space) {
  const int fd = open(name_space, O_RDONLY | O_CLOEXEC);
  if (fd < 0 || setns(fd, CLONE_NEWNET) < 0) fail(name_space);
  close(fd);
  Port port;
  port.address = address;
  open_tun(port);
  control_.push_back(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ports_.push_back(std::move(port));
  for (Port& each : ports_) each.to.resize(ports_.size());
}

void Switch::open_tun(Port& port) {
  port.tun = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
  if (port.tun < 0) fail("/dev/net/tun");
  ifreq request{};
  std::strcpy(request.ifr_name, "net0");
  request.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR;
  if (ioctl(port.tun, TUNSETIFF, &request) < 0) fail("cannot make a TUN device");
  // Without these a segment of 64 KiB would cross as packets of the device's size, two system calls each.
  if (ioctl(port.tun, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4) < 0) fail("TUNSETOFFLOAD");
}

// UCX reads the speed of a device to choose its protocols; a TUN device says 10 Mb/s unless told otherwise.
void Switch::tell_speed() {
  for (int control : control_) {
    ethtool_cmd settings{};
    settings.cmd = ETHTOOL_SSET;
    settings.duplex = DUPLEX_FULL;
    settings.autoneg = AUTONEG_DISABLE;
    ethtool_cmd_speed_set(&settings, bits_per_s_ ? std::max<uint64_t>(bits_per_s_ / 1'000'000, 1) : 100'000);
    ifreq request{};
    std::strcpy(request.ifr_name, "net0");
    request.ifr_data = reinterpret_cast<char*>(&settings);
    ioctl(control, SIOCETHTOOL, &request);  // an old kernel has no such setting; then the speed stays as it is
  }
}

std::unique_ptr<uint8_t[]> Switch::take() {
  if (spare_.empty()) return std::unique_ptr<uint8_t[]>(new uint8_t[kBufferBytes]);  // not touched before use
  auto data = std::move(spare_.back());
  spare_.pop_back();
  return data;
}

void Switch::receive(size_t source) {
  Port& port = ports_[source];
  for (int i = 0; i < kReadsPerTurn; ++i) {
    auto data = take();
    const ssize_t size = read(port.tun, data.get(), kBufferBytes);
    uint32_t address = 0;
    Packet packet{nullptr, size_t(std::max<ssize_t>(size, 0)), 0, 0, source, 0, 0};
    if (size < 0 && errno != EAGAIN && errno != EINTR) fail("a node's device is gone");
    if (size < 0 || !parse(data.get(), packet, address)) {
      spare_.push_back(std::move(data));
      if (size < 0) return;
      continue;
    }
    packet.data = std::move(data);
    while (packet.destination < ports_.size() && ports_[packet.destination].address != address) ++packet.destination;
    if (packet.destination == ports_.size()) {
      spare_.push_back(std::move(packet.data));
      continue;
    }
    const bool full = port.departing.bytes + packet.wire_bytes > queue_bytes_ ||
                      port.departing.packets.size() >= kQueuePackets;
    if (port.cut || full) {
      drop(std::move(packet));
      continue;
    }
    packet.time = std::max(now(), port.out_free);
    port.out_free = packet.time + wire_time(packet.wire_bytes);
    port.departing.push(std::move(packet));
  }
}

// Moves packets whose first bit has left by `time` to their destination, in the order in which they left.
void Switch::depart(Nanoseconds time) {
  for (;;) {
    const auto first = std::min_element(ports_.begin(), ports_.end(), [](const Port& a, const Port& b) {
      return a.departing.next() < b.departing.next();
    });
    if (first->departing.next() > time) return;
    Packet packet = first->departing.pop();
    Port& port = ports_[packet.destination];
    if (port.arriving.bytes > queue_bytes_ || port.arriving.packets.size() >= kQueuePackets) {
      drop(std::move(packet));
      continue;
    }
    packet.time = std::max(packet.time + latency_, port.in_free) + wire_time(packet.wire_bytes);
    port.in_free = packet.time;
    port.arriving.push(std::move(packet));
  }
}

void Switch::deliver(Nanoseconds time) {
  for (Port& port : ports_) {
    while (port.arriving.next() <= time) {
      Packet packet = port.arriving.pop();
      const bool cut = port.cut || ports_[packet.source].cut;
      if (cut || write(port.tun, packet.data.get(), packet.size) < 0) {
        drop(std::move(packet));
        continue;
      }
      Traffic& traffic = ports_[packet.source].to[packet.destination];
      traffic.packets += packet.wire_packets;
      traffic.bytes += packet.wire_bytes;
      spare_.push_back(std::move(packet.data));
    }
  }
}

Nanoseconds Switch::next() const {
  Nanoseconds next = kForever;
  for (const Port& port : ports_) {
    next = std::min(next, port.arriving.next());
    if (!port.departing.packets.empty()) next = std::min(next, port.departing.next() + latency_);
  }
  return next;
}

void Switch::command(const char* line) {
  unsigned long long a = 0, b = 0;
  if (std::sscanf(line, "link %llu %llu", &a, &b) == 2) {
    latency_ = a;
    bits_per_s_ = b;
    tell_speed();
  } else if (std::sscanf(line, "cut %llu", &a) == 1 && a < ports_.size()) {
    ports_[a].cut = true;
  } else if (std::sscanf(line, "heal %llu", &a) == 1 && a < ports_.size()) {
    ports_[a].cut = false;
  } else if (std::strcmp(line, "traffic") == 0) {
    for (const Port& port : ports_)
      for (const Traffic& to : port.to)
        std::printf("%llu %llu %llu ", (unsigned long long)to.packets, (unsigned long long)to.bytes,
                    (unsigned long long)to.dropped);
    std::printf("\n");
    return;
  } else {
    std::printf("unknown command: %s\n", line);
    return;
  }
  std::printf("ok\n");
}

// False once there will be no more of them.
bool Switch::commands() {
  char text[4096];
  const ssize_t size = read(STDIN_FILENO, text, sizeof text);
  if (size <= 0) return false;
  input_.append(text, size);
  for (size_t end; (end = input_.find('\n')) != std::string::npos; input_.erase(0, end + 1))
    command(input_.substr(0, end).c_str());
  return std::fflush(stdout) == 0;
}

void Switch::run(int owner) {
  tell_speed();
  std::vector<pollfd> polls;
  for (const Port& port : ports_) polls.push_back({port.tun, POLLIN, 0});
  polls.push_back({STDIN_FILENO, POLLIN, 0});
  polls.push_back({owner, POLLIN, 0});
  std::printf("ready\n");
  std::fflush(stdout);
  for (;;) {
    const Nanoseconds due = next();
    const int ready = alarm_.wait(polls, due);
    if (ready > 0) {
      for (size_t i = 0; i < ports_.size(); ++i)
        if (polls[i].revents) receive(i);
      if (polls[ports_.size()].revents && !commands()) return;
      if (polls[ports_.size() + 1].revents) return;
    }
    const Nanoseconds time = now();
    depart(time);
    deliver(time);
  }
}

// The network of a real cluster does not slow down when its machines are busy: run as soon as there is something to do.
void be_prompt() {
  prctl(PR_SET_TIMERSLACK, 1);
  sched_param param{};
  param.sched_priority = 1;
  if (sched_setscheduler(0, SCHED_FIFO, &param) < 0) setpriority(PRIO_PROCESS, 0, -20);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 7) {
    std::fprintf(stderr, "usage: switch OWNER_PID LATENCY_NS BITS_PER_S QUEUE_BYTES ADDRESS=NAMESPACE...\n");
    return 2;
  }
  const int owner = syscall(SYS_pidfd_open, std::atoi(argv[1]), 0);
  if (owner < 0) fail("owner");
  Switch hub(std::atoll(argv[2]), std::strtoull(argv[3], nullptr, 10), std::strtoull(argv[4], nullptr, 10));
  for (int i = 5; i < argc; ++i) {
    std::string word = argv[i];
    const size_t equals = word.find('=');
    in_addr address{};
    if (equals == std::string::npos || inet_pton(AF_INET, word.substr(0, equals).c_str(), &address) != 1) {
      std::fprintf(stderr, "not ADDRESS=NAMESPACE: %s\n", argv[i]);
      return 2;
    }
    hub.add(ntohl(address.s_addr), word.c_str() + equals + 1);
  }
  be_prompt();
  hub.run(owner);
}
