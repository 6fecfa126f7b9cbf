#include "exec/control_channel.h"

#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <vector>

namespace trainyard::exec {

ControlChannel& ControlChannel::operator=(ControlChannel&& other) noexcept {
  std::swap(socket_, other.socket_);
  return *this;
}

ControlChannel::~ControlChannel() { close(); }

void ControlChannel::close() {
  if (socket_ >= 0) ::close(socket_);
  socket_ = -1;
}

std::optional<std::pair<ControlChannel, ControlChannel>> ControlChannel::make() {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) return std::nullopt;
  return std::make_pair(ControlChannel(ends[0]), ControlChannel(ends[1]));
}

bool ControlChannel::send(const nlohmann::json& message) const {
  const std::vector<std::uint8_t> bytes = nlohmann::json::to_cbor(message);
  ssize_t sent = -1;
  do {
    sent = ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  return sent == static_cast<ssize_t>(bytes.size());
}

std::optional<nlohmann::json> ControlChannel::receive() const {
  // ECONNRESET says once that the other end left without reading all; what it had to say still comes.
  const auto again = [] { return errno == EINTR || errno == ECONNRESET; };
  std::vector<std::uint8_t> bytes;
  ssize_t size = -1;
  do {  // MSG_TRUNC: the message's true size
    size = ::recv(socket_, nullptr, 0, MSG_PEEK | MSG_TRUNC);
  } while (size < 0 && again());
  if (size <= 0) return std::nullopt;
  bytes.resize(static_cast<std::size_t>(size));
  do {
    size = ::recv(socket_, bytes.data(), bytes.size(), 0);
  } while (size < 0 && again());
  if (size <= 0) return std::nullopt;
  return nlohmann::json::from_cbor(bytes);
}

}  // namespace trainyard::exec
