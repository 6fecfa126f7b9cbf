#include "exec/mesh_communicator.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <deque>
#include <functional>
#include <map>

#include "models/base/bf16.h"
#include "models/base/check.h"
#include "models/base/index.h"

namespace trainyard::exec {

namespace {

// Elements [first, first + count) of a tensor.
Operand slice(const Operand& x, std::int64_t first, std::int64_t count) {
  return {static_cast<std::byte*>(x.data) + first * size_of(x.dtype), x.dtype, {count, 1, 1}};
}

// The even share of n elements that member i of g has: [first, first + count).
std::pair<std::int64_t, std::int64_t> share(std::int64_t n, std::size_t i, std::size_t g) {
  const auto members = static_cast<std::int64_t>(g), at = static_cast<std::int64_t>(i);
  const std::int64_t block = (n + members - 1) / members, first = std::min(n, at * block);
  return {first, std::min(n, first + block) - first};
}

template <class T, class Acc, class Load, class Store>
void reduce_as(Reduce reduce, const std::vector<const std::byte*>& parts, std::byte* out, std::int64_t count, Load load,
               Store store) {
  for (std::int64_t e = 0; e < count; ++e) {
    Acc total = load(reinterpret_cast<const T*>(parts[0])[e]);
    for (std::size_t p = 1; p < parts.size(); ++p) {
      const Acc x = load(reinterpret_cast<const T*>(parts[p])[e]);
      total = reduce == Reduce::Sum ? total + x : std::max(total, x);
    }
    reinterpret_cast<T*>(out)[e] = store(total);
  }
}

// out = the parts reduced in order; out may be one of them.
void reduce_parts(Reduce reduce, Dtype dtype, const std::vector<const std::byte*>& parts, std::byte* out,
                  std::int64_t count) {
  const auto same = [](auto x) { return x; };
  switch (dtype) {
    case Dtype::F32: return reduce_as<float, float>(reduce, parts, out, count, same, same);
    case Dtype::F64: return reduce_as<double, double>(reduce, parts, out, count, same, same);
    case Dtype::I32: return reduce_as<std::int32_t, std::int32_t>(reduce, parts, out, count, same, same);
    case Dtype::Bf16: return reduce_as<std::uint16_t, float>(reduce, parts, out, count, bf16_to_float, float_to_bf16);
  }
}

/// Before each message.
struct Header {
  /// A stream, on which messages arrive in order, or kStreamCount and a transfer's key.
  std::int64_t channel = 0;
  std::int64_t bytes = 0;
};
constexpr auto kHeader = static_cast<std::int64_t>(sizeof(Header));
constexpr std::int64_t kReadBytes = 16 << 10;
constexpr std::int64_t kSegmentBytes = 1 << 20;  // of a sum, from all members together
// A longer message that nobody has asked for yet stays in its socket, or the memory of a rank that is late would grow
// by what others have sent ahead. Unless this rank has waited so long for others: what it needs may stand behind.
constexpr std::int64_t kEarlyBytes = 64 << 10;
constexpr int kPatience_ms = 1000;

class MeshCommunicator final : public Communicator {
 public:
  MeshCommunicator(std::int64_t rank, std::vector<int> sockets) : rank_(rank), peers_(sockets.size()) {
    for (std::size_t p = 0; p < sockets.size(); ++p) peers_[p].socket = sockets[p];
    abort_event_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    TY_CHECK(abort_event_ >= 0, "an event descriptor can be made");
  }
  ~MeshCommunicator() override {
    for (const Peer& peer : peers_) {
      if (peer.socket >= 0) close(peer.socket);
    }
    close(abort_event_);
  }

  Ticket all_reduce(const Team& team, Reduce reduce, const Operand& x, const Operand& y) override {
    // Each member sums its share of everybody's, then hands it to all.
    const auto [first, count] = share(x.size(), team.me, team.ranks.size());
    auto sum = std::make_shared<ShareSum>(ShareSum{team, reduce, x, {}, slice(y, first, count), {}, {}});
    for (std::size_t i = 0; i < team.ranks.size(); ++i) sum->shares.push_back(share(x.size(), i, team.ranks.size()));
    sum->then = [this, team, y, out = sum->out](Work& next) {
      for (std::size_t i = 0; i < team.ranks.size(); ++i) {
        if (i == team.me) continue;
        const auto [their_first, their_count] = share(y.size(), i, team.ranks.size());
        send(next, team.ranks[i], channel_of(team), bytes_of(out));
        receive(next, team.ranks[i], channel_of(team), bytes_of(slice(y, their_first, their_count)));
      }
    };
    Work& work = begin();
    sum_segment(work, sum, 0);
    return start(work);
  }

  Ticket all_gather(const Team& team, const Operand& x, const Operand& y) override {
    const std::size_t g = team.ranks.size();
    Work& work = begin();
    const Buffer own = bytes_of(x);
    auto* all = static_cast<std::byte*>(y.data);
    if (all + own.bytes * static_cast<std::int64_t>(team.me) != own.data)
      std::memcpy(all + own.bytes * static_cast<std::int64_t>(team.me), own.data, index(own.bytes));
    for (std::size_t i = 0; i < g; ++i) {
      if (i == team.me) continue;
      send(work, team.ranks[i], channel_of(team), own);
      receive(work, team.ranks[i], channel_of(team), {all + own.bytes * static_cast<std::int64_t>(i), own.bytes});
    }
    return start(work);
  }

  Ticket reduce_scatter(const Team& team, const Operand& x, const Operand& y) override {
    auto sum = std::make_shared<ShareSum>(ShareSum{team, Reduce::Sum, x, {}, y, {}, {}});
    for (std::size_t i = 0; i < team.ranks.size(); ++i)
      sum->shares.emplace_back(y.size() * static_cast<std::int64_t>(i), y.size());
    Work& work = begin();
    sum_segment(work, sum, 0);
    return start(work);
  }

  Ticket all_to_all(const Team& team, const std::vector<Buffer>& sends, const std::vector<Buffer>& receives) override {
    Work& work = begin();
    for (std::size_t i = 0; i < team.ranks.size(); ++i) {
      if (i == team.me) {
        TY_CHECK(sends[i].bytes == receives[i].bytes, "a rank sends itself what it receives");
        std::memmove(receives[i].data, sends[i].data, index(sends[i].bytes));
        continue;
      }
      send(work, team.ranks[i], channel_of(team), sends[i]);
      receive(work, team.ranks[i], channel_of(team), receives[i]);
    }
    return start(work);
  }

  Ticket ring_shift(const Team& team, const std::vector<Operand>& x, const std::vector<Operand>& y) override {
    const std::size_t g = team.ranks.size();
    Work& work = begin();
    for (std::size_t i = 0; i < x.size(); ++i) {
      send(work, team.ranks[(team.me + 1) % g], channel_of(team), bytes_of(x[i]));
      receive(work, team.ranks[(team.me + g - 1) % g], channel_of(team), bytes_of(y[i]));
    }
    return start(work);
  }

  Ticket transfer(const std::vector<Move>& moves, Stream) override {
    Work& work = begin();
    for (const Move& move : moves) {
      if (move.send) {
        send(work, move.peer, kStreamCount + move.key, move.buffer);
      } else {
        receive(work, move.peer, kStreamCount + move.key, move.buffer);
      }
    }
    return start(work);
  }

  bool finished(Ticket ticket) override { return works_.count(ticket) == 0; }

  Problems progress(int wait_ms) override {
    if (works_.empty() && wait_ms == 0) return problems_;
    if (take_up() || !problems_.empty()) return problems_;
    watched_.assign(1, {abort_event_, POLLIN, 0});
    watched_peers_.clear();
    for (std::size_t p = 0; p < peers_.size(); ++p) {
      const Peer& peer = peers_[p];
      if (peer.socket < 0 || (peer.gone && peer.out.empty())) continue;
      const bool reads = !peer.gone && peer.held == Held::No;
      watched_.push_back({peer.socket, static_cast<short>((reads ? POLLIN : 0) | (peer.out.empty() ? 0 : POLLOUT)), 0});
      watched_peers_.push_back(p);
    }
    const int count = poll(watched_.data(), watched_.size(), wait_ms);
    waited_ms_ = count == 0 ? waited_ms_ + wait_ms : 0;
    if (waited_ms_ >= kPatience_ms) give_in();
    if (count <= 0) return problems_;
    if (watched_.front().revents != 0) problems_.push_back(broken("the communicator was aborted"));
    for (std::size_t w = 0; w < watched_peers_.size() && problems_.empty(); ++w) {
      if (watched_[w + 1].revents == 0) continue;
      Peer& peer = peers_[watched_peers_[w]];
      push(peer, watched_peers_[w]);
      if (peer.held != Held::No && (watched_[w + 1].revents & (POLLHUP | POLLERR)) != 0)
        accept(peer, watched_peers_[w], true);
      if (!peer.gone) pull(peer, watched_peers_[w]);
    }
    return problems_;
  }

  void abort() override {
    const std::uint64_t one = 1;
    if (write(abort_event_, &one, sizeof one) < 0) return;  // the counter is full: it has been asked for already
  }

 private:
  // Something under way. When what it sends and receives is done, `then` may start its second half.
  struct Work {
    Ticket ticket = 0;
    int left = 0;  // messages
    std::function<void(Work&)> then;
  };
  // Each member's share of x, summed over the members into that member's `out`.
  struct ShareSum {
    Team team;
    Reduce reduce;
    Operand x;
    std::vector<std::pair<std::int64_t, std::int64_t>> shares;  // by member: first element, elements
    Operand out;
    std::function<void(Work&)> then;  // when it is all there
    std::vector<std::byte> received;  // of one segment, from each member
  };
  struct Outgoing {
    Header header;
    const std::byte* data = nullptr;
    std::int64_t sent = 0;  // of header and data together
    Ticket ticket = 0;
  };
  struct Incoming {
    Buffer buffer;
    Ticket ticket = 0;
  };
  // Whether a message waits in the socket for somebody to ask for it, or for whoever has.
  enum class Held : std::uint8_t { No, Waits, AskedFor };
  struct Peer {
    int socket = -1;
    bool gone = false;
    std::deque<Outgoing> out;
    std::map<std::int64_t, std::deque<Incoming>> expected;  // by channel
    // Messages that came before anyone asked for them.
    std::map<std::int64_t, std::deque<std::vector<std::byte>>> early;
    // The message that is arriving.
    Header header;
    std::int64_t header_got = 0, got = 0;
    std::byte* target = nullptr;
    std::vector<std::byte> buffer = std::vector<std::byte>(kReadBytes);
    std::int64_t buffered_begin = 0, buffered_end = 0;
    std::vector<std::byte> unexpected;
    Held held = Held::No;
  };

  // --- starting

  static std::int64_t channel_of(const Team& team) { return static_cast<std::int64_t>(team.stream); }

  Work& begin() {
    const Ticket ticket = next_ticket_++;
    Work& work = works_[ticket];
    work.ticket = ticket;
    return work;
  }

  // What can leave at once does.
  Ticket start(Work& work) {
    const Ticket ticket = work.ticket;
    settle(work);
    for (std::size_t p = 0; p < peers_.size() && problems_.empty(); ++p) {
      if (!peers_[p].out.empty()) push(peers_[p], p);
    }
    return ticket;
  }

  void send(Work& work, std::int64_t peer, std::int64_t channel, const Buffer& buffer) {
    ++work.left;
    peers_[index(peer)].out.push_back({{channel, buffer.bytes}, buffer.data, 0, work.ticket});
  }

  void receive(Work& work, std::int64_t from, std::int64_t channel, const Buffer& buffer) {
    Peer& peer = peers_[index(from)];
    auto& early = peer.early[channel];
    if (!early.empty()) {
      if (!fits(from, static_cast<std::int64_t>(early.front().size()), buffer.bytes)) return;
      std::copy(early.front().begin(), early.front().end(), buffer.data);
      early.pop_front();
      return;
    }
    if (peer.gone) return lost(index(from));
    ++work.left;
    peer.expected[channel].push_back({buffer, work.ticket});
    if (peer.held == Held::Waits && peer.header.channel == channel) peer.held = Held::AskedFor;
    // It may be arriving at this moment, into memory of its own: then it is handed over when it is whole.
  }

  // Sums elements [done, done + a segment) of every share, then goes on with the next segment. So what is received
  // needs little room, and is still in the near caches when it is summed.
  void sum_segment(Work& work, const std::shared_ptr<ShareSum>& sum, std::int64_t done) {
    const Team& team = sum->team;
    const std::int64_t unit = size_of(sum->x.dtype),
                       segment = kSegmentBytes / unit / static_cast<std::int64_t>(team.ranks.size());
    const auto left = [&](std::size_t i) { return std::clamp<std::int64_t>(sum->shares[i].second - done, 0, segment); };
    const std::int64_t mine = left(team.me);
    sum->received.resize(index(mine * unit) * team.ranks.size());
    std::vector<const std::byte*> parts;
    bool last = true;
    for (std::size_t i = 0; i < team.ranks.size(); ++i) {
      const Operand theirs = slice(sum->x, sum->shares[i].first + done, left(i));
      last &= sum->shares[i].second <= done + segment;
      std::byte* received = sum->received.data() + index(mine * unit) * i;
      parts.push_back(i == team.me ? static_cast<std::byte*>(theirs.data) : received);
      if (i == team.me) continue;
      if (theirs.size() > 0) send(work, team.ranks[i], channel_of(team), bytes_of(theirs));
      if (mine > 0) receive(work, team.ranks[i], channel_of(team), {received, mine * unit});
    }
    work.then = [this, sum, parts, mine, done, segment, last](Work& next) {
      if (mine > 0) {
        const Operand out = slice(sum->out, done, mine);
        reduce_parts(sum->reduce, out.dtype, parts, static_cast<std::byte*>(out.data), mine);
      }
      if (!last) return sum_segment(next, sum, done + segment);
      if (sum->then) sum->then(next);
    };
  }

  // Goes on with work that has nothing left to move.
  void settle(Work& work) {
    while (work.left == 0) {
      if (!work.then) {
        works_.erase(work.ticket);
        return;
      }
      const auto then = std::move(work.then);
      work.then = nullptr;
      then(work);
    }
  }

  void message_done(Ticket ticket) {
    const auto found = works_.find(ticket);
    TY_CHECK(found != works_.end(), "a message belongs to work that is under way");
    --found->second.left;
    settle(found->second);
  }

  // --- moving

  // Messages that were held until somebody asked for them. True when there were any.
  bool take_up() {
    bool any = false;
    for (std::size_t p = 0; p < peers_.size() && problems_.empty(); ++p) {
      if (peers_[p].held != Held::AskedFor) continue;
      any = true;
      if (accept(peers_[p], p, false)) pull(peers_[p], p);
    }
    return any;
  }

  // Whatever is held gets memory of its own.
  void give_in() {
    waited_ms_ = 0;
    for (std::size_t p = 0; p < peers_.size() && problems_.empty(); ++p) {
      if (peers_[p].held != Held::No && accept(peers_[p], p, true)) pull(peers_[p], p);
    }
  }

  void push(Peer& peer, std::size_t who) {
    while (!peer.out.empty() && problems_.empty()) {
      Outgoing& out = peer.out.front();
      const std::int64_t in_header = std::max<std::int64_t>(kHeader - out.sent, 0);
      const std::int64_t in_data = std::max<std::int64_t>(out.sent - kHeader, 0);
      std::array<iovec, 2> parts{{{reinterpret_cast<std::byte*>(&out.header) + (kHeader - in_header), index(in_header)},
                                  {const_cast<std::byte*>(out.data) + in_data, index(out.header.bytes - in_data)}}};
      msghdr message{};
      message.msg_iov = parts.data();
      message.msg_iovlen = parts.size();
      const ssize_t count = ::sendmsg(peer.socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return;
      if (count < 0) return lost(who);
      out.sent += count;
      if (out.sent < kHeader + out.header.bytes) continue;
      const Ticket ticket = out.ticket;
      peer.out.pop_front();
      message_done(ticket);
    }
  }

  // Small messages come through a buffer, several at a time; long ones go straight to where they belong.
  void pull(Peer& peer, std::size_t who) {
    while (problems_.empty() && peer.held == Held::No) {
      if (peer.buffered_begin < peer.buffered_end) {
        if (!consume(peer, who)) return;
        continue;
      }
      const std::int64_t left = peer.header_got == kHeader ? peer.header.bytes - peer.got : 0;
      const bool direct = left >= kReadBytes;
      std::byte* to = direct ? peer.target + peer.got : peer.buffer.data();
      const std::int64_t room = direct ? left : kReadBytes;
      const ssize_t count = ::recv(peer.socket, to, index(room), MSG_DONTWAIT);
      if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return;
      if (count <= 0) return gone(peer, who);
      if (direct) {
        peer.got += count;
        if (peer.got == peer.header.bytes) deliver(peer, who);
      } else {
        peer.buffered_begin = 0;
        peer.buffered_end = count;
      }
      if (count < room && peer.buffered_begin == peer.buffered_end) return;  // there was no more
    }
  }

  // Takes from the buffer what belongs to the message that is arriving. False when something is wrong.
  bool consume(Peer& peer, std::size_t who) {
    const auto take = [&](std::byte* to, std::int64_t& got, std::int64_t whole) {
      const std::int64_t count = std::min(whole - got, peer.buffered_end - peer.buffered_begin);
      std::memcpy(to + got, peer.buffer.data() + peer.buffered_begin, index(count));
      got += count;
      peer.buffered_begin += count;
      return got == whole;
    };
    if (peer.header_got < kHeader) {
      if (!take(reinterpret_cast<std::byte*>(&peer.header), peer.header_got, kHeader)) return true;
      if (!accept(peer, who, false)) return false;
    }
    if (peer.header.bytes == 0 || take(peer.target, peer.got, peer.header.bytes)) deliver(peer, who);
    return problems_.empty();
  }

  // A header is there: decides where its message goes. False when that is nowhere, or not yet.
  bool accept(Peer& peer, std::size_t who, bool at_any_rate) {
    if (peer.header.channel < 0 || peer.header.bytes < 0) return lost(who), false;
    auto& expected = peer.expected[peer.header.channel];
    peer.got = 0;
    peer.held = Held::No;
    if (expected.empty()) {
      if (peer.header.bytes > kEarlyBytes && !at_any_rate) return peer.held = Held::Waits, false;
      peer.unexpected.resize(index(peer.header.bytes));
      peer.target = peer.unexpected.data();
      return true;
    }
    if (!fits(static_cast<std::int64_t>(who), peer.header.bytes, expected.front().buffer.bytes)) return false;
    peer.unexpected.clear();
    peer.target = expected.front().buffer.data;
    return true;
  }

  void deliver(Peer& peer, std::size_t who) {
    auto& expected = peer.expected[peer.header.channel];
    const bool direct = !expected.empty() && peer.target == expected.front().buffer.data;
    peer.header_got = 0;
    if (!direct && expected.empty()) {
      peer.early[peer.header.channel].push_back(std::move(peer.unexpected));
      peer.unexpected.clear();
      return;
    }
    if (!direct) {
      if (!fits(static_cast<std::int64_t>(who), peer.header.bytes, expected.front().buffer.bytes)) return;
      std::copy(peer.unexpected.begin(), peer.unexpected.end(), expected.front().buffer.data);
      peer.unexpected.clear();
    }
    const Ticket ticket = expected.front().ticket;
    expected.pop_front();
    message_done(ticket);
  }

  // --- what goes wrong

  Problem broken(std::string what) const {
    return {fmt::format("rank {}", rank_), "", "", std::move(what), "", ProblemKind::Failed};
  }
  // A rank that has ended is missed only by those who still expect something of it.
  void gone(Peer& peer, std::size_t who) {
    peer.gone = true;
    const bool expected = std::any_of(peer.expected.begin(), peer.expected.end(),
                                      [](const auto& entry) { return !entry.second.empty(); });
    if (expected || peer.header_got > 0 || !peer.out.empty()) lost(who);
  }
  void lost(std::size_t who) { problems_.push_back(broken(fmt::format("rank {} is gone", who))); }
  bool fits(std::int64_t who, std::int64_t sent, std::int64_t wanted) {
    if (sent == wanted) return true;
    problems_.push_back(broken(fmt::format("rank {} sends {} bytes where {} are expected", who, sent, wanted)));
    return false;
  }

  std::int64_t rank_;
  std::vector<Peer> peers_;
  int abort_event_ = -1;
  std::vector<pollfd> watched_;             // the abort event, then
  std::vector<std::size_t> watched_peers_;  // these
  std::map<Ticket, Work> works_;
  Ticket next_ticket_ = 0;
  int waited_ms_ = 0;  // in vain, until now
  Problems problems_;
};

}  // namespace

std::unique_ptr<Communicator> mesh_communicator(std::int64_t rank, std::vector<int> sockets) {
  return std::make_unique<MeshCommunicator>(rank, std::move(sockets));
}

Result<std::vector<std::vector<int>>> connect_mesh(std::int64_t ranks) {
  std::vector<std::vector<int>> sockets(index(ranks), std::vector<int>(index(ranks), -1));
  for (std::size_t a = 0; a < sockets.size(); ++a) {
    for (std::size_t b = a + 1; b < sockets.size(); ++b) {
      int ends[2];
      if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
        for (const auto& row : sockets) {
          for (const int socket : row) {
            if (socket >= 0) close(socket);
          }
        }
        return Problem{"",
                       "",
                       "",
                       fmt::format("no sockets for {} ranks: {}", ranks, std::strerror(errno)),
                       "raise the limit of open files (ulimit -n)",
                       ProblemKind::MissingCapability};
      }
      sockets[a][b] = ends[0];
      sockets[b][a] = ends[1];
    }
  }
  return sockets;
}

}  // namespace trainyard::exec
